"""The journal of a worker: what is stored of a job is what its position says, and only while the job is the worker's own."""

from collections.abc import Callable
from typing import Any, cast
from uuid import UUID

import pytest

from jobq.errors import Unavailable
from jobq.store import logs, workers
from jobq.store.claim import Claimed
from jobq.store.database import Connection, Database
from jobq.store.held import Held
from tests.stores import Store
from workers.journal import Journal

HOST = "engine-1"


class Breaking:
    """The database, whose connection breaks before the commit as long as it is told to."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.broken = False

    def read(self) -> Any:
        return self._database.read()

    def run(self, work: Callable[[Connection], Any]) -> Any:
        def then_break(conn: Connection) -> Any:
            done = work(conn)
            if self.broken:
                raise Unavailable("the connection broke", code="database_unavailable")
            return done

        return self._database.run(then_break)


class Writer:
    """One worker's journal of one job."""

    def __init__(self, store: Store, worker: UUID, job: Claimed, *, resumed: bool = False) -> None:
        self.database = Breaking(store.database)
        self.journal = Journal(cast(Database, self.database), 1 << 20)
        self.held = Held(job.id, job.attempt, worker)
        self._write = self.journal.open(self.held, job, resumed=resumed)

    def tell(self, *lines: str, position: int) -> None:
        with self.journal.at_once():
            self._write("".join(f"{line}\n" for line in lines), "stdout")
            self.journal.checkpoint(self.held, {"position": position})


@pytest.fixture
def worker(store: Store) -> UUID:
    return store.worker(host=HOST)


@pytest.fixture
def job(store: Store, worker: UUID) -> Claimed:
    return store.running(worker, host=HOST)[0]


def stored(store: Store, job: Claimed) -> tuple[list[str], Any]:
    """The lines of a job's log, and what a successor would be told of it."""
    row = store.row(job.id)
    (found,) = store.do(workers.resume, row.worker_id, HOST, [job.id])
    return [line.text for line in store.look(logs.read, job.id)], found.checkpoint


def taken_over(store: Store, worker: UUID) -> tuple[UUID, Claimed]:
    heir = store.worker(host=HOST)
    store.do(workers.declare_dead, [worker])
    (taken,) = store.do(workers.adopt, heir, HOST, 50)
    return heir, taken


def test_lines_and_their_position_are_stored_together(store: Store, worker: UUID, job: Claimed) -> None:
    writer = Writer(store, worker, job)
    writer.tell("1", "2", position=2)
    writer.journal.tick()
    assert stored(store, job) == (["1", "2"], {"position": 2})


def test_what_could_not_be_stored_is_stored_later_with_its_own_position_and_not_a_newer_one(
    store: Store, worker: UUID, job: Claimed
) -> None:
    writer = Writer(store, worker, job)
    writer.tell("1", position=1)
    writer.database.broken = True
    with pytest.raises(Unavailable):
        writer.journal.tick()
    assert stored(store, job) == ([], None)
    writer.tell("2", position=2)
    writer.database.broken = False
    writer.journal.tick()
    assert stored(store, job) == (["1"], {"position": 1})
    writer.journal.tick()
    assert stored(store, job) == (["1", "2"], {"position": 2})


def test_a_worker_that_lost_the_job_writes_neither_lines_nor_position_into_its_successors_log(
    store: Store, worker: UUID, job: Claimed
) -> None:
    frozen = Writer(store, worker, job)
    frozen.tell("1", position=1)
    frozen.journal.tick()
    frozen.tell("2, never stored", position=2)
    heir, taken = taken_over(store, worker)
    successor = Writer(store, heir, taken, resumed=True)
    successor.tell("2", "3", position=3)
    successor.journal.tick()
    frozen.tell("3", "4", position=4)
    frozen.journal.tick()
    assert stored(store, job) == (["1", "2", "3"], {"position": 3})
    assert [line.number for line in store.look(logs.read, job.id)] == [1, 2, 3]


def test_a_successor_goes_on_behind_lines_that_were_stored_before_any_position(
    store: Store, worker: UUID, job: Claimed
) -> None:
    first = Writer(store, worker, job)
    first._write("pulling\n", "system")
    first.journal.tick()
    heir, taken = taken_over(store, worker)
    successor = Writer(store, heir, taken, resumed=True)
    successor.tell("1", position=1)
    successor.journal.tick()
    assert stored(store, job) == (["pulling", "1"], {"position": 1})


def test_a_job_that_somebody_has_locked_is_not_waited_for_and_written_the_next_time(
    store: Store, worker: UUID, job: Claimed
) -> None:
    if store.dialect != "postgresql":
        return  # one writer at a time: nobody meets a lock on a row
    writer = Writer(store, worker, job)
    writer.tell("1", position=1)
    with store.database.begin() as conn:
        conn.exec_driver_sql("SELECT id FROM jobq_jobs FOR UPDATE")
        writer.journal.tick()
        assert store.look(logs.read, job.id) == []
    writer.journal.tick()
    assert stored(store, job) == (["1"], {"position": 1})


def test_what_was_discarded_is_not_written_by_a_tick_that_failed_before(
    store: Store, worker: UUID, job: Claimed
) -> None:
    writer = Writer(store, worker, job)
    writer.tell("1", position=1)
    writer.database.broken = True
    with pytest.raises(Unavailable):
        writer.journal.tick()
    writer.journal.discard(writer.held)
    writer.database.broken = False
    writer.journal.tick()
    assert stored(store, job) == ([], None)


def test_what_a_worker_owns_without_holding_it_is_resumed_where_it_lives(
    store: Store, worker: UUID, job: Claimed
) -> None:
    plain = store.running_one(worker)
    assert [found.id for found in store.do(workers.resume, worker, HOST, [job.id, plain.id])] == [job.id]
    assert store.do(workers.resume, worker, "engine-2", [job.id]) == []
    assert store.do(workers.resume, store.worker(host=HOST), HOST, [job.id]) == []


def test_work_whose_place_was_unknown_at_the_claim_can_be_taken_over_there_once_it_executes(
    store: Store, worker: UUID
) -> None:
    job = store.running_one(worker)  # the engine did not say who it is
    writer = Writer(store, worker, job)
    writer.journal.executing(writer.held, HOST)
    writer.journal.tick()
    assert (store.state(job.id), store.row(job.id).host) == ("RUNNING·executing", HOST)
    assert taken_over(store, worker)[1].id == job.id
