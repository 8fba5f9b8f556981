"""Executors for tests of the way around them: they do next to nothing, and remember what they did."""

import asyncio
import threading
import time
from collections import Counter
from datetime import timedelta
from typing import ClassVar
from uuid import UUID

from jobq.models import Outcome
from jobq.plugins import Context, Kind
from jobq.specs import Spec

executed: Counter[UUID] = Counter()
"""How often each job was executed in this process."""
recovered: Counter[UUID] = Counter()
"""How often each job was taken over in this process."""


class Noop(Spec):
    """Wait ``seconds``, say something, then end as ``then`` says."""

    seconds: float = 0.0
    say: str = ""
    then: str = "succeed"


def end(spec: Noop) -> Outcome:
    """The outcome that the spec asks for."""
    match spec.then:
        case "fail":
            return Outcome.failed("it was told to fail", error_class="told")
        case "raise":
            raise LookupError("it was told to raise")
        case "requeue":
            return Outcome.requeued(timedelta(minutes=1), "it was told to wait")
        case "unstorable":
            return Outcome.succeeded({"set"})
        case "nothing":
            return None  # type: ignore[return-value]
        case _:
            return Outcome.succeeded({"did": "nothing"})


class NoopExecutor:
    kind = Kind("NOOP", Noop, timeout=timedelta(seconds=60))

    async def execute(self, spec: Noop, ctx: Context) -> Outcome:
        executed[ctx.job.id] += 1
        if spec.say:
            ctx.log(spec.say, "stdout")
        with ctx.step("nothing"):
            await asyncio.sleep(spec.seconds)
        return end(spec)


class PlainExecutor:
    """The same as a plain function: it runs in a thread, and nothing can interrupt it."""

    kind = Kind("PLAIN", Noop, timeout=timedelta(seconds=60))
    threads: ClassVar[set[int]] = set()

    def execute(self, spec: Noop, ctx: Context) -> Outcome:
        executed[ctx.job.id] += 1
        self.threads.add(threading.get_ident())
        time.sleep(spec.seconds)
        return end(spec)


class HostedExecutor:
    """Work that lives on a host and outlives its worker; ``spec.seconds`` count from when it was begun there."""

    kind = Kind("HOSTED", Noop, timeout=timedelta(seconds=60), max_attempts=1, retry_lost=False)
    host = "engine-of-the-test"
    cooperative = True

    async def execute(self, spec: Noop, ctx: Context) -> Outcome:
        executed[ctx.job.id] += 1
        ctx.log("begun\n", "stdout")
        ctx.executing()
        return await self._follow(spec, ctx)

    async def recover(self, spec: Noop, ctx: Context) -> Outcome:
        recovered[ctx.job.id] += 1
        ctx.log("taken over\n", "stdout")
        return await self._follow(spec.model_copy(update={"seconds": 0.0}), ctx)

    async def _follow(self, spec: Noop, ctx: Context) -> Outcome:
        try:
            await asyncio.wait_for(ctx.stopped(), spec.seconds or 0.01)
        except TimeoutError:
            return end(spec)
        return Outcome.stopped()


EVERY = ["tests.plugins:NoopExecutor", "tests.plugins:PlainExecutor", "tests.plugins:HostedExecutor"]
