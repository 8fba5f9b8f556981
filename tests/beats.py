"""A kind that shows when it really runs: each attempt adds an instant to a file of its own, ten times a second."""

import asyncio
import time
from datetime import timedelta
from pathlib import Path

from jobq.models import Outcome
from jobq.plugins import Context, Kind
from jobq.specs import Spec


class Beat(Spec):
    """Run for so many seconds at the first attempt, and for three at later ones, and say so in a folder."""

    folder: str
    seconds: float


class BeatExecutor:
    kind = Kind("BEAT", Beat, timeout=timedelta(seconds=300))

    async def execute(self, spec: Beat, ctx: Context) -> Outcome:
        ends = time.monotonic() + (spec.seconds if ctx.job.attempt == 1 else 3)
        with (Path(spec.folder) / f"{ctx.job.id}.{ctx.job.attempt}.beats").open("a", buffering=1) as file:
            while time.monotonic() < ends:
                file.write(f"{time.monotonic()}\n")
                await asyncio.sleep(0.1)
        return Outcome.succeeded()
