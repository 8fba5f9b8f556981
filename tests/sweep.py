"""A sweep: every call that a golden run met fails once in a run of its own, many runs side by side."""

import json
import math
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import count, product, zip_longest
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Self

from tests.failpoints import AFTER, BEFORE, KILL, RAISE, Fault

ROOT = Path(__file__).parent.parent
ROLES = ("scheduler", "worker")
GOLDEN_RUNS = 3
_TRIES = 3
"""So often is a run made whose fault did not happen: a call that depends on the moment does not come in each run."""

Faults = dict[str, Fault]


@dataclass
class Request:
    """A run that somebody wants."""

    folder: str
    mix: str
    database_url: str
    broker_url: str
    crm: str = ""
    docker_host: str = ""
    faults: dict[str, Fault] = field(default_factory=dict)
    """By role: of the process that is started first."""

    @classmethod
    def read(cls, line: str) -> Self:
        told = json.loads(line)
        return cls(**{**told, "faults": {role: Fault(**fault) for role, fault in told["faults"].items()}})

    @property
    def is_unsigned(self) -> bool:
        """Does the worker fail to sign off? On SQLite that is not tried again: its lease runs out."""
        fault = self.faults.get("worker")
        return fault is not None and fault.how == RAISE and "sign_off" in fault.name and "sqlite" in self.database_url


@dataclass
class Result:
    """What came of it."""

    complaints: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    """Roles whose fault did not happen."""
    seconds: float = 0.0
    deaths: list[str] = field(default_factory=list)
    reports: dict[str, Any] = field(default_factory=dict)
    """What the last process of each role met."""
    ends: dict[str, int] = field(default_factory=dict)


@dataclass
class Place:
    """The servers of a sweep. ``database`` makes a database of a run's own, and gives its URL and what removes it."""

    folder: Path
    database: Callable[[], tuple[str, Callable[[], None]]]
    redis: str
    """Its URL, without the number of the database."""
    crm: str = ""
    docker: str = ""


class Bench:
    """Warm processes that make runs, as many at once as there are."""

    def __init__(self, processes: int) -> None:
        self._numbers = count()
        self._stack = ExitStack()
        self._free: SimpleQueue[tuple[int, Any]] = SimpleQueue()
        pairs = [socket.socketpair() for _ in range(processes)]
        theirs = [pair[1].fileno() for pair in pairs]
        command = [sys.executable, "-m", "tests.faulted", *map(str, theirs)]
        self._process = subprocess.Popen(command, cwd=ROOT, pass_fds=theirs)
        for number, (ours, other) in enumerate(pairs):
            other.close()
            self._stack.enter_context(ours)
            self._free.put((number, self._stack.enter_context(ours.makefile("rw"))))
        self._threads = self._stack.enter_context(ThreadPoolExecutor(processes))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._process.wait(30)

    def runs(self, place: Place, mix: str, wanted: Iterable[Faults]) -> Iterator[tuple[Faults, Result]]:
        """Make a run with each of these, and tell what came of it; in any order."""
        futures = {self._threads.submit(self._run, place, mix, faults): faults for faults in wanted}
        for future in as_completed(futures):
            yield futures[future], future.result()

    def _run(self, place: Place, mix: str, faults: Faults) -> Result:
        for _ in range(_TRIES):
            result = self._try(place, mix, faults)
            if result.complaints or not any(faults[role].steady for role in result.missed):
                break
        return result

    def _try(self, place: Place, mix: str, faults: Faults) -> Result:
        number, lines = self._free.get()
        url, remove = place.database()
        folder = place.folder / f"run-{next(self._numbers)}"
        request = Request(str(folder), mix, url, f"{place.redis}/{number}", place.crm, place.docker, faults)
        try:
            print(json.dumps(asdict(request)), file=lines, flush=True)
            return Result(**json.loads(lines.readline()))
        finally:
            self._free.put((number, lines))
            remove()


# --- the points ------------------------------------------------------------------------------------------------------


@dataclass
class Point:
    """A name that was met, and how often at least."""

    role: str
    name: str
    count: int
    runs: int = 0
    twofold: bool = False
    late: bool = True

    def add(self, seen: int, *, twofold: bool, late: bool) -> None:
        """Met in another run."""
        self.count, self.runs = min(self.count, seen), self.runs + 1
        self.twofold, self.late = self.twofold or twofold, self.late and late

    def faults(self, how: str, *, replies_get_lost: bool) -> Iterator[Fault]:
        """The first call; of those that change something also the second, fourth, eighth, …, before and after it."""
        moments = [BEFORE, AFTER] if self.twofold and (how == KILL or replies_get_lost) else [BEFORE]
        powers = int(math.log2(self.count)) + 1 if self.twofold else 1
        for power, when in product(range(powers), moments):
            yield Fault(self.name, 2**power, when, how, self.late, self.steady)

    @property
    def steady(self) -> bool:
        """Is it met in each run?"""
        return self.runs == GOLDEN_RUNS


def golden(bench: Bench, place: Place, mix: str, runs: int = GOLDEN_RUNS) -> list[Point]:
    """Every point of the mix, from runs in which nothing fails."""
    points: dict[tuple[str, str], Point] = {}
    for _, result in bench.runs(place, mix, [{}] * runs):
        assert not result.complaints, result.complaints
        for role, told in result.reports.items():
            for name, seen in told["seen"].items():
                point = points.setdefault((role, name), Point(role, name, seen))
                point.add(seen, twofold=name in told["twofold"], late=name in told["late"])
    return [points[key] for key in sorted(points)]


def sweep(points: Sequence[Point], *, replies_get_lost: bool) -> list[Faults]:
    """What is to be tried: each fault once. A run has one of the scheduler's and one of the worker's, of one sort."""
    wanted: list[Faults] = []
    for how in (KILL, RAISE):
        of_role: dict[str, list[Fault]] = {role: [] for role in ROLES}
        for point in points:
            of_role[point.role] += point.faults(how, replies_get_lost=replies_get_lost)
        pairs = zip_longest(*of_role.values())
        wanted += [{role: fault for role, fault in zip(ROLES, pair, strict=True) if fault} for pair in pairs]
    return wanted


def wrong(tried: Iterable[tuple[Faults, Result]]) -> list[str]:
    """What the runs complain of, and which faults did not happen although they do in each run."""
    found = []
    for faults, result in tried:
        what = " and ".join(f"the {role}'s {fault}" for role, fault in faults.items())
        missed = [f"the {role}'s did not happen" for role in result.missed if faults[role].steady]
        found += [f"{what}: {complaint}" for complaint in result.complaints + missed]
    return found
