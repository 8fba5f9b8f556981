"""The transactions of the model are those of the store: each is tried on a real row, for every row that can come up.

The guards of the model are written by hand beside the SQL of ``jobq/store``. This keeps the two from drifting apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from jobq.errors import Conflict
from jobq.retry import RetryPolicy
from jobq.states import TERMINAL, WAKING, Desired, Reason, Status
from jobq.store import control, jobs, promote, tables, workers
from jobq.store.claim import Claimant, claim
from jobq.store.database import Connection, Database
from jobq.store.record import Report, record
from jobq.store.sql import later, now
from tests.model import database as model
from tests.model.bugs import AGAIN, LEFT, PROBE, WANTED
from tests.model.protocol import steps
from tests.model.world import NOWHERE, REPORTED, Job, Phase, Row, Scenario, Work, World
from tests.stores import QUEUE, Store, new_job

HOSTS = {NOWHERE: None, 0: "engine-0", 1: "engine-1"}
MOST = 1_500
"""States of each scenario from which rows are taken."""


class Bench:
    """A real database with two live workers, #1 and #2. What is tried in it is rolled back."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.workers = {number: store.worker(lease=3600) for number in (1, 2)}

    @contextmanager
    def row(self, job: Job, scenario: Scenario) -> Iterator[tuple[Connection, UUID]]:
        """A real row that looks like the model's, in a transaction that leaves no trace."""
        with suppress(_Undo), self.store.database.begin() as conn:
            yield conn, self._insert(conn, job, scenario)
            raise _Undo

    def _insert(self, conn: Connection, job: Job, scenario: Scenario) -> UUID:
        new = new_job(max_attempts=scenario.max_attempts, retry=policy(scenario).stored())
        jobs.enqueue(conn, [new])
        waits = job.status is Status.PENDING and job.reason in WAKING
        row: dict[str, Any] = {
            **{name: getattr(job, name) for name in ("status", "reason", "desired", "attempt", "failures", "requeues")},
            "worker_id": self.workers.get(job.owner), "host": HOSTS[job.host],
            "next_send_at": now() if job.status is Status.QUEUED else None, "due_at": now() if waits else None,
            "started_at": now() if job.status is Status.RUNNING else None,
            "finished_at": now() if job.status in TERMINAL else None,
        }  # fmt: skip
        conn.execute(sa.update(tables.jobs).where(tables.jobs.c.id == new.id).values(**row))
        for number, kind, charged in job.ledger:
            ended = {"job_id": new.id, "attempt": number, "outcome": kind, "charged": charged, "reason": "error"}
            conn.execute(sa.insert(tables.attempts).values(**ended, started_at=now(), finished_at=now()))
        return new.id

    def seen(self, conn: Connection, job_id: UUID) -> Job:
        """The real row, and its attempts, in the words of the model."""
        row = conn.execute(sa.select(tables.jobs).where(tables.jobs.c.id == job_id)).one()
        numbers = {worker: number for number, worker in self.workers.items()}
        hosts = {name: number for number, name in HOSTS.items()}
        attempts = sorted(jobs.list_attempts(conn, job_id), key=lambda attempt: attempt.attempt)
        return Job(
            Status(row.status), Reason(row.reason), Desired(row.desired), row.attempt, row.failures, row.requeues,
            numbers.get(row.worker_id, 0), hosts[row.host],
            tuple((attempt.attempt, attempt.outcome, attempt.charged) for attempt in attempts),
        )  # fmt: skip


class _Undo(Exception):
    """The transaction is not to be committed."""


@pytest.fixture
def bench(sqlite_url: str) -> Iterator[Bench]:
    store = Store(Database(sqlite_url))
    yield Bench(store)
    store.database.close()


def policy(scenario: Scenario) -> RetryPolicy:
    return RetryPolicy(max_attempts=scenario.max_attempts, retry_lost=scenario.retry_lost, jitter=0)


def rows_of(scenario: Scenario) -> list[Job]:
    """The different rows that the job has in the first states of the scenario; owners are #1 or #2."""
    worlds: dict[World, None] = {scenario.start(): None}
    for world in (queue := list(worlds)):
        if len(queue) > MOST:
            break
        for step in steps(world, scenario):
            if step.after not in worlds:
                worlds[step.after] = None
                queue.append(step.after)
    rows = {world.job._replace(ledger=()): world.job for world in worlds if world.job.owner <= 2}
    return sorted(rows.values(), key=str)


Act = Callable[[Connection, UUID, Bench], object]


def transactions(job: Job, scenario: Scenario) -> Iterator[tuple[str, Job, Act]]:
    """What can be done to the row: a name, what the model says, and how it is really done."""
    host = 0 if scenario.hosted else NOWHERE
    reports = [*((phase, False) for phase in sorted(REPORTED)), (Phase.STOPPED, True)]
    for number in (1, 2):
        yield "claim", model.claim(job, number, host, scenario.rules) or job, claiming(number, host)
        for attempt in {job.attempt, job.attempt - 1} - {0, -1}:
            for phase, drained in reports if job.status is Status.RUNNING else reports[:1]:
                work = Work(attempt, number, phase)
                expected = model.record(job, work, drained, scenario)
                yield f"record {phase}", expected, recording(work, drained, scenario)
    yield "cancel", job if job.status in TERMINAL else model.cancel(job, scenario.rules), asking(control.cancel)
    yield "pause", model.pause(job, scenario.rules), asking(control.pause)
    yield "resume", model.resume(job), asking(control.resume)
    yield "promote", model.promote(job), lambda conn, job_id, bench: promote.promote(conn, {}, promote.Cursor())
    if job.status is Status.RUNNING:
        yield (
            "lose",
            model.lose(job, scenario),
            lambda conn, job_id, bench: workers.release_unheld(conn, bench.workers[job.owner], {}, [job_id]),
        )


def claiming(number: int, host: int) -> Act:
    kinds = ("NOOP",) if host != NOWHERE else ()
    return lambda conn, job_id, bench: claim(conn, Claimant(bench.workers[number], HOSTS[host], kinds), QUEUE, [job_id])


def recording(work: Work, drained: bool, scenario: Scenario) -> Act:
    outcome = model.OUTCOMES[work.phase]

    def write(conn: Connection, job_id: UUID, bench: Bench) -> object:
        began = workers.database_now(conn)
        report = Report(job_id, work.attempt, outcome, began, policy(scenario), [], drained)
        return record(conn, bench.workers[work.owner], [report])

    return write


def asking(verb: Callable[..., None]) -> Act:
    def ask(conn: Connection, job_id: UUID, bench: Bench) -> None:
        with suppress(Conflict):  # refused: the row stays as it is
            verb(conn, None, job_id, "ann")

    return ask


@pytest.mark.parametrize("scenario", [PROBE, WANTED, LEFT], ids=lambda scenario: scenario.name)
def test_the_store_does_to_each_row_what_the_model_says(bench: Bench, scenario: Scenario) -> None:
    tried = set()
    for job in rows_of(scenario):
        for name, expected, really in transactions(job, scenario):
            with bench.row(job, scenario) as (conn, job_id):
                really(conn, job_id, bench)
                assert bench.seen(conn, job_id) == expected, f"{name}: {job}"
            tried.add((name, expected != job))
    assert {
        (name, changes) for name in ("claim", "record failed", "cancel", "promote") for changes in (True, False)
    } <= tried


@pytest.mark.parametrize("state", list(Row), ids=lambda state: state.name)
@pytest.mark.parametrize("scenario", [PROBE, AGAIN], ids=lambda scenario: scenario.name)
def test_the_reaper_and_the_heirs_of_a_host_find_what_the_model_says(
    bench: Bench, scenario: Scenario, state: Row
) -> None:
    job = Job(Status.RUNNING, Reason.EXECUTING, attempt=1, owner=1, host=0 if scenario.hosted else NOWHERE)
    start = scenario.start()
    rows = tuple(row._replace(state=state) if row.id == 1 else row for row in start.rows)
    expected = model.may_be_released(start._replace(job=job, rows=rows), scenario)
    died = {Row.DEAD: later(-1.0), Row.LATE: later(-400.0)}.get(state)

    for verb, found in [
        (
            lambda conn: len(workers.adopt(conn, bench.workers[2], "engine-0", 10)),
            scenario.hosted and state >= Row.DEAD,
        ),
        (lambda conn: workers.release_lost(conn, reattach_grace=300.0), expected),
    ]:
        with bench.row(job, scenario) as (conn, _):
            mine = tables.workers.c.id == bench.workers[1]
            conn.execute(sa.update(tables.workers).where(mine).values(dead_at=died))
            assert verb(conn) == found
