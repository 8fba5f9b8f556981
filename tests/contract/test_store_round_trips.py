"""A job that is alone pays for each statement on its way: how many there are is a promise."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from jobq.client import JobQ
from jobq.settings import Settings
from jobq.states import Reason, Status
from jobq.store.database import Database
from jobq.store.jobs import enqueue_one
from jobq.store.promote import promote
from tests.stores import QUEUE, Store, new_job

PROBE = {"endpoint": "https://example.com/"}


@contextmanager
def statements(database: Database) -> Iterator[list[str]]:
    """What is sent to the database meanwhile; transactions begin and end without being seen here."""
    sent: list[str] = []

    def note(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if not statement.startswith("BEGIN"):
            sent.append(statement)

    event.listen(database.engine, "before_cursor_execute", note)
    yield sent
    event.remove(database.engine, "before_cursor_execute", note)


def door(store: Store) -> JobQ:
    return JobQ(settings=Settings(database_url=store.database.engine.url.render_as_string(hide_password=False)))


def test_a_single_job_is_enqueued_announced_and_shown_by_one_statement_on_postgresql(store: Store) -> None:
    with door(store) as jobq:
        jobq.enqueue(PROBE, kind="HEARTBEAT")  # looks up the tenant's quota, once in five seconds
        with statements(jobq.database) as sent:
            job = jobq.enqueue(PROBE, kind="HEARTBEAT")
    assert len(sent) == (1 if store.dialect == "postgresql" else 2)
    assert job == store.job(job.id)
    assert (job.status, job.reason) == (Status.PENDING, Reason.READY)


def test_a_single_job_is_promoted_by_four_statements_at_most(store: Store) -> None:
    store.worker()
    job_id = store.enqueue_one()
    with statements(store.database) as sent:
        done = store.database.run(lambda conn: promote(conn, {}, store.cursor))
    assert done.batches == {QUEUE: [job_id]}
    assert len(sent) <= 4


def test_a_claim_is_one_statement_because_it_is_a_transaction_by_itself(store: Store) -> None:
    worker = store.worker()
    job_id = store.enqueue_one(spec={"a": [1, None]}, state="s")
    store.promote()
    with statements(store.database) as sent:
        (claimed,) = store.claim(worker, [job_id])
    assert len(sent) == 1
    assert (claimed.spec, claimed.state, claimed.checkpoint) == ({"a": [1, None]}, "s", None)


def test_a_search_for_waiting_jobs_is_one_statement_too(store: Store) -> None:
    worker = store.worker()
    store.enqueue(3)
    store.promote()
    with statements(store.database) as sent:
        assert len(store.claim_waiting(worker, 5)) == 3
    assert len(sent) == 1


def test_a_job_whose_key_is_held_is_left_to_the_longer_way_and_becomes_a_duplicate(store: Store) -> None:
    with door(store) as jobq:
        first = jobq.enqueue(PROBE, kind="HEARTBEAT", dedupe_key="nightly")
        second = jobq.enqueue(PROBE, kind="HEARTBEAT", dedupe_key="nightly")
        assert (second.status, second.reason) == (Status.CANCELED, Reason.DUPLICATE)
        assert second.duplicate_of == first.id
        assert jobq.spec(second.id) == jobq.spec(first.id)


def test_a_statement_whose_reply_was_lost_is_repeated_without_a_second_job(store: Store) -> None:
    job = new_job()
    write = lambda conn: enqueue_one(conn, job, wakes=False)  # noqa: E731
    assert store.database.run(write, one_statement=True) is not None
    assert store.database.run(write, one_statement=True) is None
    with store.database.read() as conn:
        assert conn.scalar(sa.text("SELECT count(*) FROM jobq_job_data")) == 1


def test_only_promotion_commits_without_waiting_for_the_disk(postgres: Store) -> None:
    worker = postgres.worker()
    job_id = postgres.enqueue_one()
    how = sa.text("SHOW synchronous_commit")
    with postgres.database.begin() as conn:
        promote(conn, {}, postgres.cursor)
        assert conn.scalar(how) == "off"
    with postgres.database.begin() as conn:
        assert conn.scalar(how) == "on"
    assert postgres.claim(worker, [job_id])
    with postgres.database.begin_statement() as conn:
        assert conn.scalar(how) == "on"
