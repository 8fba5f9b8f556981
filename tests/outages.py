"""Work that is under way while something happens to the database, and what must hold when it has passed."""

import re
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import pytest

from jobq import Unavailable
from tests.command import Command
from tests.fleet import Fleet
from tests.services import wait_until

QUICK = {"lease": 9, "renew_every": 1, "drain_timeout": 5}
ONCE = {"max_attempts": 1, "retry_lost": False}
"""What must not be done twice: it goes on without the database."""
EACH_SLOT: dict[str, Any] = {"misfire": "catch_up", "max_catch_up": 100, "overlap": "allow"}


@dataclass
class Work:
    """Jobs that run while something happens to the database, on workers that live."""

    fleet: Fleet
    seconds: float
    accepted: set[Any] = field(default_factory=set)
    unsure: int = 0
    """Jobs of which the error said that nobody knows."""

    def begin(self) -> None:
        """Two schedulers, two workers, and twenty jobs that run."""
        for _ in range(2):
            self.fleet.scheduler()
            self.fleet.worker("nap:50")
        self.workers = {worker.id for worker in self.fleet.jobq.workers.list()}
        request = {"kind": "NAP", "spec": {"seconds": self.seconds}, "retry": ONCE}
        self.held = self.fleet.jobq.enqueue_many([request] * 20)
        self.accepted |= set(self.held)
        wait_until(lambda: self.running() == 20, timeout=30, what="the jobs to run")

    def running(self) -> int:
        return int(self.fleet.ask("SELECT count(*) FROM jobq_jobs WHERE status = 'RUNNING'")[0][0])

    def goes_on(self) -> float:
        """A new job is accepted and executed; the seconds that this took."""
        began = time.monotonic()
        job = wait_until(self._enqueue, timeout=60, interval=0.1, what="the database to take jobs")
        self.fleet.jobq.wait(job.id, timeout=60)
        self.accepted.add(job.id)
        return time.monotonic() - began

    def _enqueue(self) -> Any:
        try:
            return self.fleet.jobq.enqueue({}, kind="NAP")
        except Unavailable as told:
            self.unsure += "may have been made" in (told.hint or "")
            return None

    def offer(self, count: int, **spec: Any) -> bool:
        """Enqueue so many short jobs; False: the database took none."""
        try:
            self.accepted |= set(self.fleet.jobq.enqueue_many([{"kind": "NAP", "spec": spec}] * count))
        except Unavailable as told:
            self.unsure += count if "may have been made" in (told.hint or "") else 0
            return False
        return True

    def check(self, *, slots: bool = False, retold: bool = False) -> None:
        """Nobody was given up, every job ended once and was executed once, and each loop told it once.

        ``slots``: there are jobs of a schedule, too. ``retold``: the outage came and went.
        """
        self.fleet.wait_until_done(60)
        self.fleet.check_ledger(self.accepted)
        others = self.fleet.ask(
            "SELECT id, status, reason FROM jobq_jobs WHERE status <> 'COMPLETED' AND reason <> 'workflow_terminated'"
        )
        assert not others
        made = self.fleet.ask("SELECT count(*) FROM jobq_jobs WHERE slot_at IS NULL")[0][0]
        assert 0 <= made - len(self.accepted) <= self.unsure, "each was stored once, and nothing that was refused"
        if slots:
            made = [row[0] for row in self.fleet.ask("SELECT slot_at FROM jobq_jobs WHERE slot_at IS NOT NULL")]
            assert len(made) == len(set(made)) == (max(made) - min(made)).total_seconds() + 1
        elif not retold:
            assert max(outages_told(self.fleet).values(), default=0) <= 1
        assert {worker.id for worker in self.fleet.jobq.workers.list()} == self.workers, "a live worker was given up"
        lost = self.fleet.ask("SELECT job_id FROM jobq_attempts WHERE outcome <> 'COMPLETED'")
        assert not {UUID(str(row[0])) for row in lost} & set(self.held), "a running job of a live worker was given up"


def outages_told(fleet: Fleet) -> Counter[tuple[str, str]]:
    """How often each loop of each process said that it waits."""
    told = Counter[tuple[str, str]]()
    for log in fleet.folder.glob("*.log"):
        told.update((log.name, loop) for loop in re.findall(r"the loop (\S+) waits", log.read_text()))
    return told


def outlast(seconds: float) -> None:
    """Wait for so long: longer than a lease."""
    began = time.monotonic()
    wait_until(lambda: time.monotonic() - began > seconds, timeout=2 * seconds, interval=0.2, what="the outage")


def refused(fleet: Fleet) -> None:
    """Who enqueues is told so: an application by an exception, a person by exit code 3."""
    with pytest.raises(Unavailable) as told:
        fleet.jobq.enqueue({}, kind="NAP", name="refused")
    assert told.value.code == "database_unavailable"
    command = Command(fleet.folder, is_warm=True, **fleet.environment)
    heartbeat = ("enqueue", "heartbeat", "http://service.example/", "--name", "refused")
    command.refused("database_unavailable", *heartbeat, exit_code=3)


def nothing_was_refused_and_done(fleet: Fleet) -> None:
    assert not fleet.ask("SELECT 1 FROM jobq_jobs WHERE name = 'refused'")


def report(what: str, seconds: float) -> None:
    print(f"{what} {seconds:.1f} s")
