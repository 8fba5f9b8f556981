"""A kind for tests of the whole way: it waits, then does as it was told."""

import asyncio
from datetime import timedelta

from jobq.models import Outcome
from jobq.plugins import Context, Kind
from jobq.specs import Spec


class Nap(Spec):
    """Sleep so many seconds, then end as ``then`` says; ``say`` goes to the log first."""

    seconds: float = 0.0
    then: str = "succeed"
    say: str = ""


class NapExecutor:
    kind = Kind("NAP", Nap, timeout=timedelta(seconds=60))

    async def execute(self, spec: Nap, ctx: Context) -> Outcome:
        if spec.say:
            ctx.log(spec.say, "stdout")
        await asyncio.sleep(spec.seconds)
        if spec.then == "fail":
            return Outcome.failed("it was told to fail", error_class="told")
        return Outcome.succeeded({"slept": spec.seconds})
