"""Workers and schedulers on one SQLite file: killed while they write, and on a full disk."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from uuid import UUID

import pytest

from tests.fleet import Fleet
from tests.outages import QUICK, Work, nothing_was_refused_and_done, outlast, refused, report
from tests.services import child, require_root, wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(480)]

SEED = int(os.environ.get("SEED", "0")) or random.randrange(1 << 30)
AGAIN = {"max_attempts": 100, "initial": 0.1, "maximum": 0.5, "retry_lost": True}
CUSTOMER = """
import os
from jobq import JobQ

with JobQ() as jobq:
    while True:
        print(*jobq.enqueue_many([{"kind": "NAP", "name": "batch"}] * 40), flush=True)
"""


def is_sound(file: Path) -> bool:
    """Whether SQLite finds nothing wrong with the file."""
    with closing(sqlite3.connect(file)) as connection:
        return connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_processes_that_are_killed_while_they_write_lose_no_job_and_spoil_no_file(
    tmp_path: Path, sqlite_url: str, redis_url: str
) -> None:
    dice = random.Random(SEED)
    print(f"seed {SEED}")
    with Fleet(tmp_path, sqlite_url, redis_url, **QUICK) as fleet:
        crew = [
            ("scheduler", fleet.scheduler()),
            ("worker", fleet.worker("nap:20")),
            ("worker", fleet.worker("nap:20")),
        ]
        accepted = set[UUID]()
        for _ in range(4):
            for _ in range(10):
                accepted |= set(fleet.jobq.enqueue_many([{"kind": "NAP", "retry": AGAIN}] * 10))
            place = dice.randrange(len(crew))
            role, victim = crew[place]
            victim.kill()
            victim.wait()
            crew[place] = (role, fleet.scheduler() if role == "scheduler" else fleet.worker("nap:20"))
        fleet.wait_until_done(120)
        fleet.check_ledger(accepted)
        assert fleet.ends() == {"COMPLETED·succeeded": len(accepted)}
        assert is_sound(tmp_path / "jobq.sqlite3")


def test_what_a_killed_application_was_told_is_stored_and_nothing_is_stored_in_part(
    tmp_path: Path, sqlite_url: str, redis_url: str
) -> None:
    with Fleet(tmp_path, sqlite_url, redis_url, **QUICK) as fleet:
        told = set[str]()
        for number in range(5):
            out = tmp_path / f"customer{number}"
            with out.open("wb") as output:
                customers = [
                    child([sys.executable, "-c", CUSTOMER], env=fleet.environment, stdout=output) for _ in range(2)
                ]
                wait_until(lambda out=out: out.read_text().count("\n") >= 4, timeout=60, what="jobs to be accepted")
                for customer in customers:
                    customer.send_signal(signal.SIGKILL)
                    customer.wait()
            told |= {word for line in out.read_text().split("\n")[:-1] for word in line.split()}
        stored = {str(UUID(row[0])) for row in fleet.ask("SELECT id FROM jobq_jobs")}
        assert told <= stored
        assert len(stored) % 40 == 0, "a batch is stored as a whole"
        assert not fleet.ask("SELECT id FROM jobq_jobs WHERE id NOT IN (SELECT job_id FROM jobq_job_data)")
        assert is_sound(tmp_path / "jobq.sqlite3")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder that is a file system in memory, of 24 MiB."""
    require_root("a file system of its own")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "jobq-test", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=False)


def test_a_full_disk_costs_no_worker_and_no_job(
    tmp_path: Path, small_disk: Path, sqlite_template: Path, redis_url: str
) -> None:
    file = small_disk / "jobq.sqlite3"
    file.write_bytes(sqlite_template.read_bytes())
    with Fleet(tmp_path, f"sqlite:///{file}", redis_url, **QUICK) as fleet:
        work = Work(fleet, seconds=14)
        work.begin()
        filler = small_disk / "filler"
        with filler.open("ab", buffering=0) as output:
            try:
                while True:
                    output.write(bytes(1 << 12))
            except OSError:
                pass
        wait_until(lambda: not work.offer(200, say="x" * 1000), timeout=60, what="the disk to be full")
        refused(fleet)
        outlast(12)
        filler.unlink()
        report("with room again, a new job ended after", work.goes_on())
        work.check(retold=True)
        nothing_was_refused_and_done(fleet)
        assert is_sound(file)
