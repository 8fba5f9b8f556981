"""A kind whose executor counts its own executions: one line in a file as each begins, and one as it ends."""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from uuid import UUID

from jobq.models import Outcome
from jobq.plugins import Context, Kind
from jobq.specs import Spec


class Tally(Spec):
    """Say in ``file`` that it begins, wait so many seconds, say that it ends."""

    file: str
    seconds: float = 0.0


class TallyExecutor:
    kind = Kind("TALLY", Tally, timeout=timedelta(seconds=60), max_attempts=100, retry_lost=True)

    async def execute(self, spec: Tally, ctx: Context) -> Outcome:
        _append(spec.file, "begun", ctx)
        await asyncio.sleep(spec.seconds)
        _append(spec.file, "ended", ctx)
        return Outcome.succeeded()


def _append(file: str, what: str, ctx: Context) -> None:
    line = f"{what} {ctx.job.id} {ctx.job.attempt} {time.time()}\n".encode()
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, line)  # in one piece: appended as a whole, whoever appends beside it
    finally:
        os.close(descriptor)


@dataclass(slots=True)
class Execution:
    """What an executor did; ``ended`` None: it was killed or stopped."""

    job: UUID
    attempt: int
    begun: float
    ended: float | None = None


class Executions:
    """All that executors have written so far."""

    def __init__(self, file: Path) -> None:
        self.all: list[Execution] = []
        open_: dict[tuple[UUID, int], Execution] = {}
        for what, job, attempt, at in _lines(file):
            key = (UUID(job), int(attempt))
            if what == "begun":
                open_[key] = Execution(*key, float(at))
                self.all.append(open_[key])
            else:
                open_[key].ended = float(at)

    def __len__(self) -> int:
        return len(self.all)

    @property
    def ended(self) -> Counter[UUID]:
        """How often each job was executed to its end."""
        return Counter(one.job for one in self.all if one.ended is not None)

    def twice(self) -> list[tuple[UUID, int]]:
        """Attempts that were executed more than once: two owners had the same number."""
        counts = Counter((one.job, one.attempt) for one in self.all)
        return [key for key, count in counts.items() if count > 1]

    def overlaps(self) -> list[tuple[Execution, Execution]]:
        """Executions of one job of which the later began before the earlier had ended by itself."""
        latest: dict[UUID, Execution] = {}
        found = []
        for one in sorted(self.all, key=lambda one: one.begun):
            before = latest.get(one.job)
            if before is not None and before.ended is not None and before.ended > one.begun:
                found.append((before, one))
            latest[one.job] = one
        return found


def _lines(file: Path) -> Iterator[list[str]]:
    for line in file.read_text().splitlines() if file.exists() else []:
        yield line.split()
