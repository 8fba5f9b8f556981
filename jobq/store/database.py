"""The door to the database: connections, transactions, the lock of the promoter, and how a commit is announced.

With ``jobq.store.sql`` it holds every difference between PostgreSQL and SQLite.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, NoSuchModuleError, OperationalError

from jobq import metrics
from jobq.errors import Misconfigured, Unavailable
from jobq.histogram import bucket_of
from jobq.settings import is_http
from jobq.store import commits, patience
from jobq.store.sql import (
    POSTGRESQL,
    Instant,
    Json,
    bucket,
    committed_until,
    epoch,
    estimated_rows,
    id_list,
    incoming,
    insert,
    instant_text,
    is_one_of,
    json_parts,
    later,
    now,
    period,
    picked_once,
    plus,
    rows_json,
)

Result = TypeVar("Result")
Refusal = DBAPIError
"""What the database says of data or statements that it does not take: repeating them cannot help."""
log = logging.getLogger(__name__)

_SERIALIZATION_FAILURES = frozenset({"40001", "40P01"})  # serialization_failure, deadlock_detected
_NO_SCHEMA = frozenset({"42P01", "42703"})  # undefined_table, undefined_column
_DAMAGED = frozenset({"file is not a database", "database disk image is malformed"})  # SQLite
_READS, _ONE_STATEMENT = "reads", "one statement"  # what a transaction is made for, if not for anything
_STATEMENT_TIMEOUT_MS = 30_000
_IDLE_IN_TRANSACTION_MS = 15_000
_IDLE_PROMOTING_MS = 4_000  # while a scheduler that was frozen holds the lock, none promotes
# Statistics of a queue are stale by nature: a second ago a thousand rows were QUEUED, now none is, and the table has
# grown by as many finished ones. Whatever the planner believes, a statement here touches a few rows, each found by an
# index made for it; guesses led to walks over all finished rows (50 ms instead of 1, growing with the table). Plain
# index scans also mark dead entries, so that the next one skips them; bitmap scans do not. Plans that were cached
# while the tables were empty cost several times the right ones later. tests/integration/test_plans.py holds this.
_PLANNER = (
    "-c plan_cache_mode=force_generic_plan -c enable_seqscan=off -c enable_bitmapscan=off -c enable_hashjoin=off "
    "-c enable_mergejoin=off -c max_parallel_workers_per_gather=0 -c jit=off"
)


# --- locks and wake-ups ---------------------------------------------------------------------------------------

_PROMOTE_LOCK = 0x6A6F6271  # "jobq": one key for everything that changes who may be promoted
CHANNEL = "jobq_wake"


def take_promote_lock(conn: Connection, *, wait: bool) -> bool:
    """The lock of promotion, until the transaction ends. SQLite's write transaction is that lock already.

    Who does not wait for it promotes, and that transaction alone commits without waiting for the disk: should the
    server crash within its next moment, the jobs are ready again, are promoted again, and their hints fall away.
    Nothing can build on what is lost so: a claim of these jobs waits for the disk, and all that was written before it
    reaches the disk with it.
    """
    if conn.dialect.name != POSTGRESQL:
        return True
    if wait:
        conn.execute(sa.select(sa.func.pg_advisory_xact_lock(_PROMOTE_LOCK)))
        return True
    return bool(conn.execute(_TRY_PROMOTE_LOCK).one().taken)


_TRY_PROMOTE_LOCK = sa.select(
    sa.func.pg_try_advisory_xact_lock(_PROMOTE_LOCK).label("taken"),
    sa.func.set_config("synchronous_commit", "off", sa.true()),
    sa.func.set_config("idle_in_transaction_session_timeout", str(_IDLE_PROMOTING_MS), sa.true()),
)


def notify(conn: Connection) -> None:
    """Wake the schedulers when this transaction commits. SQLite's readers see the commit by themselves."""
    if conn.dialect.name == POSTGRESQL:
        conn.exec_driver_sql(f"NOTIFY {CHANNEL}")


def insert_both(conn: Connection, first: Any, second: Any, parameters: Mapping[str, Any], *, wakes: bool) -> Any:
    """Two INSERTs of which the second depends on the first: the row that the first returns, None if it wrote none.

    ``second`` makes its statement from a condition: that the first wrote. On PostgreSQL this is one statement,
    which also notifies (``wakes``) when it is committed.
    """
    if conn.dialect.name == POSTGRESQL:
        return conn.execute(_insert_both(first, second, wakes), parameters).first()
    row = conn.execute(first, parameters).first()
    if row is not None:
        conn.execute(second(sa.true()), parameters)
    return row


@cache
def _insert_both(first: Any, second: Any, wakes: bool) -> Any:
    written = first.cte("written")
    query = sa.select(written).add_cte(second(sa.exists(sa.select(sa.literal_column("1")).select_from(written))).cte())
    return query.where(sa.func.pg_notify(CHANNEL, "").is_not(None)) if wakes else query


# --- connections and transactions --------------------------------------------------------------------------


class Database:
    """One engine for a process. ``begin`` is a writing transaction, ``read`` a reading one.

    Losing the connection, a deadlock or a lock timeout raises ``Unavailable``; ``run`` repeats those that a
    repetition cures. Nothing here keeps a transaction open while it waits for anything but the database.
    """

    _RETRIES: ClassVar[int] = 5

    def __init__(self, url: str, *, pool_size: int = 8, application: str = "jobq") -> None:
        self.url = _parse(url)
        self.engine = _engine(self.url, pool_size, application)
        self.dialect = self.engine.dialect.name
        self._reading = self.engine.execution_options(jobq_transaction=_READS)
        self._by_statement = self.engine.execution_options(jobq_transaction=_ONE_STATEMENT)

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """A transaction that writes; it commits at the end of the block, or rolls back when the block raises."""
        with _translated(), self.engine.begin() as conn:
            works = commits.collect(conn)
            yield conn
        for work in works:
            work()

    @contextmanager
    def begin_statement(self) -> Iterator[Connection]:
        """A transaction of a single statement, which PostgreSQL begins and commits by itself: one round trip.

        On SQLite the same as ``begin``.
        """
        with _translated(), self._by_statement.begin() as conn:
            works = commits.collect(conn)
            yield conn
        for work in works:
            work()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """For statements that only read: no write lock on SQLite, no transaction on PostgreSQL.

        There, each statement sees what is committed when it begins, as it would in a transaction.
        """
        with _translated(), self._reading.connect() as conn:
            yield conn

    def run(self, work: Callable[[Connection], Result], *, one_statement: bool = False) -> Result:
        """``work`` in a writing transaction, again after a deadlock, a serialization failure or a lost connection.

        ``one_statement``: the work is no more than that on PostgreSQL, see ``begin_statement``.
        A COMMIT whose reply was lost is repeated too: ``work`` must carry its identities with it (ids made by the
        caller, guards on attempt and status), so that a second run finds what the first one did. Where the server
        stays away after such a loss, the error says that nobody knows.
        """
        begin = self.begin_statement if one_statement else self.begin
        unsure = False
        for tries in range(1, self._RETRIES + 1):
            committing = one_statement
            try:
                with begin() as conn:
                    done = work(conn)
                    committing = True
                return done
            except Unavailable as error:
                unsure = unsure or (committing and isinstance(error, _Lost))
                if unsure:
                    error.hint = _UNSURE
                if tries == self._RETRIES or not isinstance(error, _Transient):
                    raise
                time.sleep(random.uniform(0.005, 0.02) * tries)
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Close the pooled connections."""
        self.engine.dispose()


class _Transient(Unavailable):
    """A repetition of the whole transaction is likely to succeed at once."""


class _Lost(_Transient):
    """The connection went away: what was under way may have been done."""


_UNSURE = "The change may have been made: look before you repeat it (an idempotency_key makes that safe)."


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (OperationalError, InterfaceError) as error:
        raise _translate(error) from error
    except DBAPIError as error:
        known = _sqlstate(error) in _SERIALIZATION_FAILURES | _NO_SCHEMA or str(error.orig) in _DAMAGED
        if known or error.connection_invalidated:
            raise _translate(error) from error
        raise


def _translate(error: DBAPIError) -> Exception:
    cause = str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else type(error.orig).__name__
    if _sqlstate(error) in _NO_SCHEMA or "no such table" in cause or "no such column" in cause:
        metrics.DATABASE_ERRORS.add(1, "schema")
        return Misconfigured(
            "The database has no jobq tables, or tables of another version.", code="schema", hint="Run: jobq db upgrade"
        )
    if error.connection_invalidated:  # a server that is really away is met at the next try, when nobody listens
        metrics.DATABASE_ERRORS.add(1, "lost")
        return _Lost(f"The connection to the database was lost: {cause}.", code="database_unavailable")
    if _sqlstate(error) in _SERIALIZATION_FAILURES or "database is locked" in cause:
        metrics.DATABASE_ERRORS.add(1, "busy")
        return _Transient(f"The database is busy: {cause}.", code="database_unavailable")
    metrics.DATABASE_ERRORS.add(1, "unavailable")
    return Unavailable(
        f"The database cannot be used: {cause}.",
        code="database_unavailable",
        hint="Nothing was changed. Check JOBQ_DATABASE_URL and the server; jobq doctor tells more.",
    )


def _sqlstate(error: DBAPIError) -> str | None:
    return getattr(error.orig, "sqlstate", None)


def _parse(url: str) -> URL:
    if is_http(url):
        raise Misconfigured(
            "This needs the database itself; JOBQ_DATABASE_URL is the address of an HTTP API.", code="needs_database",
            hint="Write postgresql://user@host/name or sqlite:////absolute/path.db",
        )  # fmt: skip
    try:
        parsed = make_url(url)
        if parsed.drivername in {"postgres", "postgresql"}:
            parsed = parsed.set(drivername="postgresql+psycopg")
        if parsed.get_backend_name() not in {POSTGRESQL, "sqlite"}:
            raise _unknown()
        if parsed.get_backend_name() == "sqlite" and parsed.database in {None, "", ":memory:"}:
            raise _unknown()  # each connection would have a database of its own
        parsed.get_dialect()
    except (ArgumentError, NoSuchModuleError) as error:
        raise _unknown() from error
    except ImportError as error:
        raise _driver_missing() from error
    return parsed


def _unknown() -> Misconfigured:
    return Misconfigured(
        "JOBQ_DATABASE_URL is no address of a database that jobq knows.",
        hint="Write postgresql://user@host/name or sqlite:////absolute/path.db",
    )


def _driver_missing() -> Misconfigured:
    return Misconfigured("The driver for PostgreSQL is missing.", hint="Run: pip install 'jobq[postgres]'")


def _engine(url: URL, pool_size: int, application: str) -> Engine:
    if url.get_backend_name() == POSTGRESQL:
        options = (
            f"-c statement_timeout={_STATEMENT_TIMEOUT_MS} -c lock_timeout=10000 "
            f"-c idle_in_transaction_session_timeout={_IDLE_IN_TRANSACTION_MS} "
            f"{_PLANNER} -c timezone=UTC -c synchronous_commit=on -c default_transaction_isolation=read\\ committed"
        )
        arguments = {
            "options": options, "application_name": application, "connect_timeout": 5,
            "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 20_000,
        }  # fmt: skip
        try:
            engine = sa.create_engine(
                url, pool_size=pool_size, max_overflow=4, pool_timeout=10, pool_pre_ping=False, connect_args=arguments,
                isolation_level="READ COMMITTED", pool_use_lifo=True,  # the warmest: it has the statements prepared
            )  # fmt: skip
        except ImportError as error:
            raise _driver_missing() from error
        event.listen(engine, "do_connect", patience.connect)
        event.listen(engine, "begin", _begin_postgresql)
        return engine
    if url.database:
        _make_folder(Path(url.database).expanduser().parent)
    engine = sa.create_engine(url, pool_size=pool_size, max_overflow=4, connect_args={"timeout": 10})
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise Misconfigured(
            f"The folder of the database, {str(folder)!r}, cannot be made: {error.strerror}.",
            hint="Set JOBQ_DATABASE_URL to a place that this user may write to.",
        ) from error


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions begin where we say, see _begin_sqlite
    connection.create_function("jobq_bucket", 1, bucket_of, deterministic=True)
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_sqlite(conn: Connection) -> None:
    # A transaction that reads first and writes later would fail when another one wrote in between.
    conn.exec_driver_sql("BEGIN" if _transaction(conn) == _READS else "BEGIN IMMEDIATE")


def _begin_postgresql(conn: Connection) -> None:
    # Where statements stand alone, BEGIN and COMMIT would be two more round trips.
    connection: Any = conn.connection.driver_connection
    alone = _transaction(conn) is not None
    if connection.autocommit != alone:
        connection.autocommit = alone


def _transaction(conn: Connection) -> str | None:
    return conn.get_execution_options().get("jobq_transaction")


__all__ = [
    "CHANNEL",
    "POSTGRESQL",
    "Connection",
    "Database",
    "Instant",
    "Json",
    "Refusal",
    "bucket",
    "committed_until",
    "epoch",
    "estimated_rows",
    "id_list",
    "incoming",
    "insert",
    "insert_both",
    "instant_text",
    "is_one_of",
    "json_parts",
    "later",
    "notify",
    "now",
    "period",
    "picked_once",
    "plus",
    "rows_json",
    "take_promote_lock",
]  # fmt: skip
