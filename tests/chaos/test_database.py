"""PostgreSQL crashes, hangs, cuts connections, refuses and is full, under schedulers and workers that go on working."""

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobq import Every
from tests.commits import Commits
from tests.fleet import Fleet
from tests.outages import EACH_SLOT, QUICK, Work, nothing_was_refused_and_done, outlast, refused, report
from tests.services import Postgres, require, require_root, wait_until


@pytest.fixture
def fleet(tmp_path: Path, postgres_url: str, redis_url: str) -> Iterator[Fleet]:
    with Fleet(tmp_path, postgres_url, redis_url, **QUICK) as fleet:
        yield fleet


# --- away ------------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(180)
def test_a_database_that_was_frozen_for_longer_than_a_lease_costs_no_worker_and_no_job(
    fleet: Fleet, postgres_server: Postgres
) -> None:
    work = Work(fleet, seconds=14)
    work.begin()
    postgres_server.freeze()
    outlast(12)
    postgres_server.thaw()
    report("thawed: a new job ended after", work.goes_on())
    work.check()


@pytest.mark.chaos
@pytest.mark.timeout(180)
def test_a_database_that_crashed_for_longer_than_a_lease_costs_no_worker_and_no_job(
    fleet: Fleet, postgres_server: Postgres
) -> None:
    work = Work(fleet, seconds=14)
    work.begin()
    postgres_server.crash()
    refused(fleet)
    outlast(12)
    postgres_server.start()
    report("restarted: a new job ended after", work.goes_on())
    work.check()
    nothing_was_refused_and_done(fleet)


@pytest.mark.chaos
@pytest.mark.timeout(300)
def test_with_the_usual_lease_ninety_frozen_seconds_cost_no_worker_and_no_job(
    tmp_path: Path, postgres_url: str, redis_url: str, postgres_server: Postgres
) -> None:
    with Fleet(tmp_path, postgres_url, redis_url) as fleet:
        work = Work(fleet, seconds=58)
        work.begin()
        postgres_server.freeze()
        outlast(90)
        postgres_server.thaw()
        report("thawed after 90 s: a new job ended after", work.goes_on())
        work.check()


# --- broken off ------------------------------------------------------------------------------------------------------


@pytest.mark.chaos
@pytest.mark.timeout(180)
def test_connections_that_are_terminated_again_and_again_cost_no_worker_and_no_job(fleet: Fleet) -> None:
    work = Work(fleet, seconds=8)
    work.begin()
    flow = fleet.jobq.create_workflow({}, kind="NAP", name="ticking", schedule=Every(1), **EACH_SLOT)
    ended, began = 0, time.monotonic()
    while time.monotonic() - began < 15:
        ended += terminate_connections(fleet)
        work.offer(20)
        time.sleep(0.1)
    report(f"{ended} connections were terminated; then a new job ended after", work.goes_on())
    fleet.jobq.terminate_workflow(flow.id)
    fleet.wait_until_done(60)

    assert ended > 100
    work.check(slots=True)


@pytest.mark.chaos
@pytest.mark.timeout(180)
@pytest.mark.parametrize("code", ["40001", "40P01"])
def test_deadlocks_and_serialization_failures_cost_no_worker_and_no_job(fleet: Fleet, code: str) -> None:
    """Every twentieth statement that writes jobs, attempts, workers or workflows fails."""
    work = Work(fleet, seconds=2)
    work.begin()
    with fleet.jobq.database.begin() as conn:
        conn.exec_driver_sql(
            "CREATE FUNCTION unlucky() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            f"IF random() < 0.05 THEN RAISE EXCEPTION 'unlucky' USING ERRCODE = '{code}'; END IF; RETURN NULL; END $$"
        )
        for table in ("jobs", "attempts", "workers", "workflows"):
            conn.exec_driver_sql(
                f"CREATE TRIGGER unlucky AFTER INSERT OR UPDATE OR DELETE ON jobq_{table} "
                "FOR EACH STATEMENT EXECUTE FUNCTION unlucky()"
            )
    flow = fleet.jobq.create_workflow({}, kind="NAP", name="ticking", schedule=Every(1), **EACH_SLOT)
    began = time.monotonic()
    while time.monotonic() - began < 8:
        work.offer(20)
    fleet.jobq.terminate_workflow(flow.id)
    work.check(slots=True)


# --- full ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(migrate: Callable[[str], None]) -> Iterator[tuple["OnSmallDisk", str]]:
    """A PostgreSQL on a disk of its own that is soon full, and a database at the current schema."""
    require(*Postgres.programs)
    require_root("a file system of its own")
    with OnSmallDisk() as server:
        name = server.create()
        migrate(server.url(name))
        yield server, name


class OnSmallDisk(Postgres):
    """Its folder is a file system in memory, of 200 MiB."""

    def prepare(self) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m,mode=755", "jobq-test", self.folder], check=True)
        super().prepare()

    def fill(self) -> None:
        """Leave not one block."""
        with (self.folder / "filler").open("ab", buffering=0) as filler:
            try:
                while True:
                    filler.write(bytes(1 << 12))
            except OSError:
                return

    def free(self) -> None:
        """The operator has made room; the server is started again if it has ended."""
        (self.folder / "filler").unlink()
        self.start()

    def close(self) -> None:
        try:
            self.crash()
        finally:
            subprocess.run(["umount", "--lazy", self.folder], check=False, capture_output=True)
            super().close()


@pytest.mark.chaos
@pytest.mark.timeout(240)
def test_a_full_disk_of_the_database_costs_no_worker_and_no_job(
    tmp_path: Path, redis_url: str, small_disk: tuple[OnSmallDisk, str]
) -> None:
    server, name = small_disk
    with Fleet(tmp_path, server.url(name), redis_url, **QUICK) as fleet:
        work = Work(fleet, seconds=14)
        work.begin()
        server.fill()
        full = time.monotonic()
        wait_until(lambda: not work.offer(500, say="x" * 1000), timeout=60, what="the disk to be full")
        report("a full disk was noticed after", time.monotonic() - full)
        refused(fleet)
        outlast(12)
        server.free()
        report("with room again, a new job ended after", work.goes_on())
        work.check(retold=True)
        nothing_was_refused_and_done(fleet)


# --- a scheduler that is frozen inside a transaction -----------------------------------------------------------------


@pytest.mark.chaos
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "inside",
    [r"pg_try_advisory_xact_lock.*FROM jobq_workers", r"FROM jobq_workflows\s.*INSERT INTO jobq_jobs"],
    ids=["promoting", "materializing"],
)
def test_another_scheduler_goes_on_when_one_is_frozen_inside_a_transaction(
    fleet: Fleet, postgres_server: Postgres, inside: str
) -> None:
    straight = fleet.environment["JOBQ_DATABASE_URL"]
    with Commits(postgres_server) as wire:
        fleet.worker("nap:50")
        flow = fleet.jobq.create_workflow({}, kind="NAP", name="ticking", schedule=Every(1))
        fleet.environment["JOBQ_DATABASE_URL"] = wire.url(straight)
        frozen = fleet.scheduler()
        fleet.environment["JOBQ_DATABASE_URL"] = straight
        fleet.scheduler()
        wait_until(lambda: fleet.ask("SELECT count(*) FROM jobq_schedulers")[0][0] == 2, 60, what="two schedulers")
        wire.hold(inside)
        wait_until(lambda: wire.holding, timeout=60, what="a transaction of the scheduler to be open")
        frozen.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        wire.release()
        job = fleet.jobq.enqueue({}, kind="NAP")
        fleet.jobq.wait(job.id, timeout=30)
        executed = time.monotonic() - began
        slots = len(fleet.jobq.list(workflow_id=flow.id).items)
        wait_until(lambda: len(fleet.jobq.list(workflow_id=flow.id).items) > slots, timeout=30, what="the next slot")
        scheduled = time.monotonic() - began
        report(f"frozen {inside}: a job ended after {executed:.1f} s, a slot was made after", scheduled)
        assert executed < 12, "the lock of promotion is free after 4 s"
        assert scheduled < 25, "locked workflows are after 15 s"
        frozen.send_signal(signal.SIGCONT)
        fleet.jobq.terminate_workflow(flow.id)
        fleet.wait_until_done()
        fleet.check_ledger({job.id})
        assert frozen.poll() is None, "it goes on, too"


def terminate_connections(fleet: Fleet) -> int:
    """All but the one that this goes over; returns how many."""
    return int(
        fleet.ask(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )[0][0]
    )
