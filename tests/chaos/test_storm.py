"""Random kills of everything, over a long run: `make chaos JOBS=10000 KILLS=200`. Prints the ledger, and as JSON."""

import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.ledger import Book, show
from tests.rig import Rig
from tests.services import Postgres, Redis, wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(2400)]

JOBS = int(os.environ.get("JOBS") or 1000)
KILLS = int(os.environ.get("KILLS") or 30)
SEED = int(os.environ.get("SEED") or random.randrange(1 << 30))
VICTIMS = {"worker": 8, "scheduler": 5, "backends": 5, "broker": 2}
"""Who is killed, in so many of 20 cases."""
LEASE, NEIGHBOURS, TAKEOVER = 30, 10, 5
"""Seconds within which the design says that jobs go on."""


@pytest.fixture
def rig(tmp_path: Path, postgres_url: str, redis_url: str) -> Iterator[Rig]:
    """Everything at its default settings: the lease is 30 s."""
    with Rig(tmp_path, postgres_url, redis_url, redis_url) as rig:
        rig.start(workers=4, schedulers=3)
        yield rig


class Storm:
    """Kills one after the other, as the dice say, and starts what it killed."""

    def __init__(self, rig: Rig, postgres: Postgres, redis: Redis) -> None:
        self.rig, self.postgres, self.redis = rig, postgres, redis
        self.dice = random.Random(SEED)
        self.book = Book(rig)
        self.crew: dict[str, list[subprocess.Popen[bytes]]] = {
            "scheduler": rig.fleet.processes[:3], "worker": rig.fleet.processes[3:],
        }  # fmt: skip
        self.strike: dict[str, Callable[[], None]] = {
            "worker": lambda: self.process("worker", self.rig.start_worker),
            "scheduler": lambda: self.process("scheduler", self.rig.fleet.scheduler),
            "backends": self.backends,
            "broker": self.broker,
        }

    def ready(self, role: str) -> list[int]:
        """Places in the crew of those that are at work, where there are two at least."""
        seen = {
            "worker": "SELECT pid FROM jobq_workers WHERE dead_at IS NULL",
            "scheduler": "SELECT split_part(name, ':', 2)::int FROM jobq_schedulers",
        }
        pids = {pid for (pid,) in self.rig.fleet.ask(seen[role])}
        places = [place for place, process in enumerate(self.crew[role]) if process.pid in pids]
        return places if len(places) >= 2 else []

    def process(self, role: str, start: Callable[[], subprocess.Popen[bytes]]) -> None:
        """SIGKILL one of two or more that are at work; the next one is started and not waited for."""
        place = self.dice.choice(wait_until(lambda: self.ready(role), timeout=120, what=f"two {role}s"))
        victim = self.crew[role][place]
        self.book.note(role, victim.pid)
        victim.kill()
        victim.wait()
        self.crew[role][place] = start()

    def backends(self) -> None:
        self.book.note("backends")
        self.postgres.execute(
            "SELECT pg_terminate_backend(pid) FROM (SELECT pid FROM pg_stat_activity WHERE application_name IN "
            "('jobq-worker', 'jobq-scheduler') ORDER BY random() LIMIT 3) AS victims"
        )

    def broker(self) -> None:
        self.redis.kill()
        self.book.note("broker")
        self.redis.start()

    def flush(self) -> None:
        self.book.note("flush")
        self.redis.flush()


def test_no_job_is_lost_doubled_or_stuck_while_everything_is_killed_again_and_again(
    rig: Rig, postgres_server: Postgres, redis_server: Redis
) -> None:
    storm = Storm(rig, postgres_server, redis_server)
    dice, began = storm.dice, time.monotonic()
    flushes = set(dice.sample(range(KILLS), max(KILLS // 10, 2)))
    for kill in range(KILLS):
        rig.load(JOBS // KILLS + (kill < JOBS % KILLS), seconds=dice.uniform(0.1, 0.7))
        pause = dice.uniform(0.3, 2.5)
        struck = time.monotonic()
        wait_until(lambda: time.monotonic() - struck > pause, interval=0.05)  # noqa: B023 - the storm's own pace
        storm.strike[dice.choices(list(VICTIMS), list(VICTIMS.values()))[0]]()
        if kill in flushes:
            storm.flush()
    rig.fleet.wait_until_done(300)

    ledger = storm.book.close(seed=SEED, seconds=round(time.monotonic() - began))
    show(ledger)
    rig.settle()
    assert ledger["ends"] == {"COMPLETED·succeeded": JOBS}
    assert ledger["lost"] == ledger["doubled"] == ledger["mismatches"] == 0
    assert ledger["claimed_again"]["p99"] <= NEIGHBOURS
    assert ledger["promoted_after_a_scheduler"]["most"] <= TAKEOVER
    assert ledger["claimed_after_a_flush"]["most"] <= TAKEOVER
