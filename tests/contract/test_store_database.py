"""The door to the database: one clock, batches as one parameter, errors in jobq's own words."""

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobq.errors import Misconfigured, Unavailable
from jobq.store import wakeup
from jobq.store.database import Database, notify, take_promote_lock
from jobq.store.jobs import NewJob, enqueue
from jobq.store.sql import Instant, Json, id_list, incoming, is_one_of, later, now, plus, rows_json
from tests.proxy import Proxy
from tests.services import Postgres, wait_until
from tests.stores import Store, new_job

# --- the clock -------------------------------------------------------------------------------------------------------


def test_the_clock_of_the_database_tells_utc(store: Store) -> None:
    with store.database.read() as conn:
        moment = conn.scalar(sa.select(now()))
    assert moment.utcoffset() == timedelta(0)
    assert abs(moment - datetime.now(UTC)) < timedelta(seconds=5)


def test_the_clock_goes_on_within_a_transaction(store: Store) -> None:
    with store.database.read() as conn:
        first = conn.scalar(sa.select(now()))
        seen: list[datetime] = []
        while not seen or seen[-1] == first:
            seen.append(conn.scalar(sa.select(now())))
    assert seen[-1] > first


@pytest.mark.parametrize("seconds", [0, 1, -1, 0.25, 90_061.5, -31_536_000])
def test_seconds_are_added_to_instants_in_either_direction(store: Store, seconds: float) -> None:
    at = datetime(2026, 3, 1, 12, 30, 0, 500_000, tzinfo=UTC)
    with store.database.read() as conn:
        later_at = conn.scalar(sa.select(plus(sa.literal(at, Instant()), sa.literal(seconds, sa.Float()))))
    assert later_at == at + timedelta(seconds=seconds)


def test_nothing_added_to_nothing_is_nothing(store: Store) -> None:
    with store.database.read() as conn:
        none = sa.cast(sa.null(), sa.Float)
        assert conn.scalar(sa.select(plus(now(), none))) is None
        assert conn.scalar(sa.select(later(5) > now()))


# --- batches as one parameter ----------------------------------------------------------------------------------------

HARD = ["", " ", "a,b", '"', "'", "\\", "{", "}", "{a,b}", "NULL", "null", "é", "🚆", "%s", ":x", "a\nb", "0"]


def test_texts_of_any_sort_are_found_as_one_parameter(store: Store) -> None:
    ids = [store.enqueue_one(tenant=text) for text in HARD]
    with store.database.read() as conn:
        table = sa.table("jobq_jobs", sa.column("id", sa.Uuid), sa.column("tenant", sa.Text))
        query = sa.select(table.c.id).where(is_one_of(store.dialect, table.c.tenant, "texts")).order_by(table.c.id)
        assert list(conn.scalars(query, {"texts": id_list(store.dialect, HARD)})) == ids
        assert list(conn.scalars(query, {"texts": id_list(store.dialect, HARD[:2])})) == ids[:2]
        assert list(conn.scalars(query, {"texts": id_list(store.dialect, [])})) == []


def test_rows_of_any_sort_come_in_as_one_parameter(store: Store) -> None:
    at = datetime(2026, 3, 1, 12, 30, 0, 123_456, tzinfo=UTC)
    columns: dict[str, Any] = {
        "id": sa.Uuid(), "text": sa.Text(), "number": sa.Integer(), "part": sa.Float(), "at": Instant(), "doc": Json,
        "flag": sa.Boolean(),
    }  # fmt: skip
    ids = [new_job().id for _ in HARD]
    rows = [
        {"id": id_, "text": text, "number": place, "part": place / 4, "at": at, "doc": {text: [text]}, "flag": True}
        for place, (id_, text) in enumerate(zip(ids, HARD, strict=True))
    ]
    table = incoming(store.dialect, "batch", columns)
    query = sa.select(*(table.c[name] for name in columns))
    with store.database.read() as conn:
        found = conn.execute(query, {"batch": rows_json(rows)}).all()
        empty = conn.execute(query, {"batch": rows_json([])}).all()
        (missing,) = conn.execute(query, {"batch": rows_json([{}])}).all()
    assert [row._asdict() for row in found] == rows
    assert empty == []
    assert set(missing) == {None}


# --- transactions ----------------------------------------------------------------------------------------------------


def test_a_block_that_raises_leaves_nothing(store: Store) -> None:
    def work(conn: Connection) -> None:
        enqueue(conn, [new_job()])
        raise KeyError

    with pytest.raises(KeyError):
        store.database.run(work)
    assert store.count("jobq_jobs") == 0


def test_a_deadlock_is_repeated_until_both_are_through(store: Store) -> None:
    """On SQLite the second writer waits for the first; on PostgreSQL one of the two is thrown out and tries again."""
    first, second = store.enqueue(2)
    meet, tries = threading.Barrier(2), []

    def lock(order: list[Any]) -> None:
        waiting = [meet] if store.dialect == "postgresql" else []

        def work(conn: Connection) -> None:
            tries.append(order)
            for job_id in order:
                conn.execute(
                    sa.text("UPDATE jobq_jobs SET message = 'locked' WHERE id = :id"), {"id": _form(store, job_id)}
                )
                if waiting:
                    waiting.pop().wait(10)

        store.database.run(work)

    threads = [threading.Thread(target=lock, args=(order,)) for order in ([first, second], [second, first])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert len(tries) == (3 if store.dialect == "postgresql" else 2)
    assert store.count("jobq_jobs", "message = 'locked'") == 2


def _form(store: Store, job_id: Any) -> Any:
    return job_id if store.dialect == "postgresql" else job_id.hex


def test_readers_do_not_wait_for_a_writer(store: Store) -> None:
    job_id = store.enqueue_one()
    with store.database.begin() as conn:
        conn.execute(sa.text("UPDATE jobq_jobs SET priority = 9"))
        assert store.job(job_id).priority == 4
    assert store.job(job_id).priority == 9


def test_promotion_is_locked_until_its_transaction_ends(postgres: Store) -> None:
    with postgres.database.begin() as one:
        assert take_promote_lock(one, wait=False)
        with postgres.database.begin() as other:
            assert not take_promote_lock(other, wait=False)
    with postgres.database.begin() as other:
        assert take_promote_lock(other, wait=True)


def _kill(conn: Connection) -> None:
    """The server ends this very connection."""
    conn.exec_driver_sql("SELECT pg_terminate_backend(pg_backend_pid())")


def test_a_connection_that_the_server_closed_is_replaced_and_the_work_repeated(postgres: Store) -> None:
    tries: list[int] = []

    def work(conn: Connection) -> None:
        tries.append(1)
        enqueue(conn, [job])
        if len(tries) == 1:
            _kill(conn)

    job = new_job()
    postgres.database.run(work)
    assert len(tries) == 2
    assert postgres.state(job.id) == "PENDING·ready"


def test_a_commit_whose_reply_was_lost_is_repeated_and_finds_what_it_did(postgres: Store) -> None:
    tries: list[int] = []

    def work(conn: Connection, new: list[NewJob]) -> None:
        tries.append(1)
        enqueue(conn, new)
        if len(tries) == 1:
            conn.exec_driver_sql("COMMIT")
            _kill(conn)

    job = new_job()
    postgres.database.run(lambda conn: work(conn, [job]))
    assert len(tries) == 2
    assert postgres.count("jobq_jobs") == postgres.count("jobq_job_data") == 1


def test_a_commit_whose_reply_was_lost_and_that_cannot_be_repeated_is_told_as_one(postgres: Store) -> None:
    job = new_job()

    def work(conn: Connection) -> None:
        enqueue(conn, [job])
        conn.exec_driver_sql("COMMIT")
        _kill(conn)

    def too_early(conn: Connection) -> None:
        _kill(conn)
        conn.exec_driver_sql("SELECT 1")

    with pytest.raises(Unavailable) as unsure:
        postgres.database.run(work, one_statement=True)
    assert "may have been made" in (unsure.value.hint or "")
    assert postgres.state(job.id) == "PENDING·ready"
    with pytest.raises(Unavailable) as sure:
        postgres.database.run(too_early)
    assert "may have been made" not in (sure.value.hint or "")


def test_a_pooled_connection_that_died_unseen_costs_its_next_user_nothing(postgres: Store) -> None:
    postgres.enqueue()
    other = Database(str(postgres.database.url))
    try:
        with other.begin() as conn:
            conn.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
    finally:
        other.close()
    postgres.enqueue()
    assert postgres.count("jobq_jobs") == 2


def test_a_server_that_says_nothing_is_given_up(
    postgres: Store, postgres_server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Proxy(("127.0.0.1", postgres_server.port)) as proxy:
        frozen = Database(proxy.url(postgres.database.url.render_as_string(hide_password=False)))
        frozen.run(lambda conn: enqueue(conn, [new_job()]))
        proxy.freeze()
        monkeypatch.setattr("jobq.store.patience.PATIENCE", 0.5)
        with pytest.raises(Unavailable) as told:
            frozen.run(lambda conn: enqueue(conn, [new_job()]))
        assert told.value.code == "database_unavailable"
        proxy.heal()
        frozen.run(lambda conn: enqueue(conn, [new_job()]))
        frozen.close()
    assert postgres.count("jobq_jobs") == 2


def test_a_listener_that_lost_its_connection_listens_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wakeup, "_RECONNECT", 0.02)
    held: list[Any] = []
    sa.event.listen(store.database.engine, "checkout", lambda connection, *_: held.append(connection), once=True)
    woken = threading.Event()
    listener = wakeup.Listener(store.database, woken.set)

    def tell() -> bool:
        woken.clear()
        with store.database.begin() as conn:
            enqueue(conn, [new_job()])
            notify(conn)
        return woken.wait(0.2)

    listener.start()
    try:
        wait_until(lambda: held or store.dialect == "postgresql", what="the listener to watch")
        wait_until(tell, what="the first wake-up")
        if store.dialect == "sqlite":
            held[0].close()
        else:
            store.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE query LIKE 'LISTEN%' AND datname = current_database()"
            )
        wait_until(tell, what="a wake-up after that")
    finally:
        listener.stop()


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["", "nonsense", "mysql://host/db", "oracle+nothing://x", "postgresql+none://x/y"])
def test_an_address_of_no_database_is_refused_with_what_to_write(url: str) -> None:
    with pytest.raises(Misconfigured) as refused:
        Database(url)
    assert refused.value.hint


def test_a_server_that_is_away_is_unavailable_within_seconds() -> None:
    from tests.services import free_port

    database = Database(f"postgresql://postgres@127.0.0.1:{free_port()}/none")
    try:
        with pytest.raises(Unavailable) as away, database.begin():
            pass
        with pytest.raises(Unavailable):
            database.run(lambda conn: None)
    finally:
        database.close()
    assert away.value.code == "database_unavailable"
    assert away.value.hint


def test_a_mistake_in_the_data_is_no_outage(store: Store) -> None:
    with pytest.raises(sa.exc.IntegrityError), store.database.begin() as conn:
        conn.execute(sa.text("INSERT INTO jobq_queues (name) VALUES (NULL)"))
