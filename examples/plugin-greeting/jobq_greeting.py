"""A job kind for jobq: GREETING greets somebody, as often as asked.

    jobq.enqueue({"name": "Ada", "times": 2}, kind="GREETING")

Everything that a kind can need is here: a checked spec, a log, steps, a result, failures that retry rules can name.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Annotated

from pydantic import Field

from jobq import Context, Kind, Outcome, Spec


class Greeting(Spec):
    """Whom to greet. A job with another field, or another type, is refused when it is enqueued."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    times: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    pause: Annotated[float, Field(ge=0, le=60)] = 0.0
    """Seconds between two greetings."""


class GreetingExecutor:
    """One instance per worker process greets many people at once, so it keeps nothing of a job in itself."""

    kind = Kind("GREETING", Greeting, timeout=timedelta(seconds=30), max_attempts=2)

    async def execute(self, spec: Greeting, ctx: Context) -> Outcome:
        """Greet. At its timeout, or when the job is canceled, the worker interrupts it at an ``await``."""
        if spec.name == "nobody":
            return Outcome.failed("there is nobody to greet", error_class="nobody", retry=False)
        with ctx.step("greet"):
            for number in range(1, spec.times + 1):
                ctx.log(f"hello {spec.name}")
                if number < spec.times:
                    await asyncio.sleep(spec.pause)
        return Outcome.succeeded({"greeted": spec.name, "times": spec.times})
