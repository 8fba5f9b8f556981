"""A kind for tests of the whole way: it waits, then does as it was told."""

import asyncio
import logging
from datetime import timedelta
from pathlib import Path

from jobq.models import Outcome
from jobq.plugins import Context, Kind
from jobq.specs import Spec


class Nap(Spec):
    """Sleep so many seconds, then end as ``then`` says, after the first ``fails`` attempts; ``say`` goes to the log.

    Each execution adds a line to the file ``trace``: the job and its attempt.
    """

    seconds: float = 0.0
    then: str = "succeed"
    fails: int = 0
    say: str = ""
    trace: str = ""


class NapExecutor:
    kind = Kind("NAP", Nap, timeout=timedelta(seconds=60))

    async def execute(self, spec: Nap, ctx: Context) -> Outcome:
        if spec.trace:
            add_line(Path(spec.trace), f"{ctx.job.id} {ctx.job.attempt}\n")
        if spec.say:
            ctx.log(spec.say, "stdout")
        await asyncio.sleep(spec.seconds)
        if spec.then == "fail" or ctx.job.attempt <= spec.fails:
            return Outcome.failed("it was told to fail", error_class="told")
        return Outcome.succeeded({"slept": spec.seconds})


class Tell(Spec):
    """Tell everything that one was told in confidence, in the way that ``how`` says."""

    secrets: dict[str, str]
    how: str = "raise"


class TellExecutor:
    """What a careless plugin does."""

    kind = Kind("TELL", Tell, timeout=timedelta(seconds=10))

    async def execute(self, spec: Tell, ctx: Context) -> Outcome:
        told = " ".join(ctx.secrets.values())
        ctx.log(f"I know {told}", "stdout")
        if spec.how == "raise":
            raise ValueError(f"a password like {told} cannot be used")
        return Outcome.failed(f"refused: {told!r}", error_class=told, result={"answer": [told, {told: 1}]})


class Mutter(Spec):
    """Write to the worker's own log what one was told in confidence."""

    secrets: dict[str, str]


class MutterExecutor:
    """A plugin that logs as other libraries do: on its task, on a thread, and with a traceback."""

    kind = Kind("MUTTER", Mutter, timeout=timedelta(seconds=10))

    async def execute(self, spec: Mutter, ctx: Context) -> Outcome:
        log = logging.getLogger("plugin.mutter")
        told = " ".join(ctx.secrets.values())
        log.warning("on the task: %s", told)
        await asyncio.to_thread(log.warning, "on a thread: %s", told)
        try:
            raise ValueError(f"{told} is no number")
        except ValueError:
            log.exception("with a traceback")
        return Outcome.succeeded()


def add_line(file: Path, line: str) -> None:
    """Whole, whoever writes to the file at the same time."""
    with file.open("a") as end:
        end.write(line)
