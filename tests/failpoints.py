"""Failpoints: every call of a process to another party, named, counted, and made to fail where a test says so.

    FAILPOINT='{"name": …, "nth": 1, "when": "after", "how": "kill"}' FAILPOINTS=report.json
    python -m tests.failpoints worker -Q nap:2

runs the command `jobq` with its doors watched from outside: the product knows nothing of this module. The doors are
those of the drivers, so that what a point raises goes through the product's own translation:

    SQL        execute and commit below SQLAlchemy; on PostgreSQL the connection is really cut, the driver says the rest
    publish    the broker's door, `CeleryBroker.publish` and `depth`
    Docker     requests of aiohttp to the engine
    HTTP       requests of aiohttp to other services, and of `jobq.outbound`

A point is told by its name: what is asked for, and who asks, as the outermost and the innermost function of the product
on the stack. Threads interleave differently in each run, so the n-th call of a process is another one each time, but the
k-th call of a name always is that of the same code. Each name has a moment before the call, and one after it where
something is done by then whose reply can get lost.
"""

import inspect
import json
import os
import re
import signal
import socket
import sqlite3
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import psycopg

BEFORE, AFTER = "before", "after"
KILL, RAISE = "kill", "raise"

_PRODUCT = ("jobq.", "workers.", "scheduler.")
_FRAMEWORK = {
    "jobq.store.database",
    "jobq.loop",
    "jobq.broker",
    "workers.container.engine",
    "workers.connectors.session",
}
"""Modules that everybody's calls go through: they do not tell one from another."""
_TABLE = re.compile(r"\bjobq_\w+")
_ID = re.compile(r"(?<=/)(jobq-)?[0-9a-f-]{12,}[^/?]*|(?<=/)\d+|(?<=/)run-[\w-]+")
_READS = ("SELECT", "PRAGMA", "BEGIN", "SHOW")


@dataclass(frozen=True)
class Fault:
    """What happens to the ``nth`` call of a name."""

    name: str
    nth: int
    when: str
    how: str
    late: bool = False
    """The call comes when the process is told to end, and not before."""
    steady: bool = True
    """It comes in each run."""

    def __str__(self) -> str:
        return f"{self.how} {self.when} {self.name} #{self.nth}"


@dataclass
class Watch:
    """Counts the calls of this process, and lets the one fail that is meant to."""

    report: Path
    fault: Fault | None = None
    seen: Counter[str] = field(default_factory=Counter)
    late: set[str] = field(default_factory=set)
    """Names that were met only once the process was told to end."""
    twofold: set[str] = field(default_factory=set)
    """Names with a moment after the call as well."""
    lock: Any = field(default_factory=threading.Lock)

    def meet(self, name: str, *, twofold: bool) -> Callable[[str], bool]:
        """A call begins. Returns who says, before and after it, whether it is to raise; or does not return at all."""
        with self.lock:
            if not self.seen:
                self.report.with_suffix(".up").touch()
            self.seen[name] += 1
            nth = self.seen[name]
            if nth == 1 and self.report.with_suffix(".ending").exists():
                self.late.add(name)
            if twofold:
                self.twofold.add(name)

        def is_to_raise(when: str) -> bool:
            fault = self.fault
            if fault is None or (fault.name, fault.nth, fault.when) != (name, nth, when):
                return False
            self.report.with_suffix(".fired").write_text(str(fault))
            if fault.how == KILL:
                os.kill(os.getpid(), signal.SIGKILL)
            return True

        return is_to_raise

    def write(self, **more: Any) -> None:
        """What has been met, for the test."""
        told = {"seen": self.seen, "late": sorted(self.late), "twofold": sorted(self.twofold), **more}
        self.report.write_text(json.dumps(told))


# --- names -----------------------------------------------------------------------------------------------------------


def callers() -> str:
    """Who asks: the outermost and the innermost function of the product on the stack."""
    found: list[str] = []
    frame: FrameType | None = inspect.currentframe()
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith(_PRODUCT) and module not in _FRAMEWORK and not module.startswith("jobq.cli"):
            found.append(f"{module.removeprefix('jobq.store.')}.{frame.f_code.co_qualname.partition('.<locals>')[0]}")
        frame = frame.f_back
    return " > ".join(dict.fromkeys((found[-1], found[0]))) if found else "jobq"


def told(statement: str) -> str:
    """A statement in two words."""
    verb = statement.lstrip("( \n").split(None, 1)[0].upper()
    if verb == "WITH":
        verb = next((word for word in ("INSERT", "UPDATE", "DELETE") if word in statement), "SELECT")
    table = _TABLE.search(statement)
    return f"{verb} {table[0].removeprefix('jobq_')}" if table else " ".join(statement.split()[:2])


# --- SQL -------------------------------------------------------------------------------------------------------------


def _cut(connection: Any) -> None:
    """Cut a connection to PostgreSQL, as a router that dies does; the driver notices at its next call."""
    with socket.socket(fileno=os.dup(connection.fileno())) as wire:
        wire.shutdown(socket.SHUT_RDWR)


class Sql:
    """Watches the calls that SQLAlchemy makes to a driver."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._written: dict[int, str] = {}
        """Connection → what its transaction wrote first."""

    def install(self) -> None:
        from sqlalchemy.engine.default import DefaultDialect

        for name in ("do_execute", "do_executemany", "do_execute_no_params"):
            setattr(DefaultDialect, name, self._executing(getattr(DefaultDialect, name)))
        DefaultDialect.do_commit = self._committing(DefaultDialect.do_commit)  # type: ignore[method-assign]
        DefaultDialect.do_rollback = self._rolling_back(DefaultDialect.do_rollback)  # type: ignore[method-assign]
        connect = sqlite3.dbapi2.connect
        sqlite3.dbapi2.connect = partial(connect, factory=self._straight_sqlite())  # type: ignore[assignment]
        psycopg.Connection.execute = self._straight(psycopg.Connection.execute)  # type: ignore[method-assign,assignment]

    def _executing(self, original: Any) -> Any:
        def execute(dialect: Any, cursor: Any, statement: str, *rest: Any, **more: Any) -> None:
            connection = cursor.connection
            what = told(statement)
            reads = statement.lstrip("( ").upper().startswith(_READS)
            # SQLAlchemy introduces itself to a database at the first connection, whoever needs that.
            name = f"{what} by {callers()}" if _TABLE.search(statement) or what.isupper() else what
            if not reads:
                self._written.setdefault(id(connection), name)
            alone = getattr(connection, "autocommit", False) is True
            meet = self._watch.meet(name, twofold=alone and not reads)
            with self._failing(connection, meet, "is locked" if what.startswith("BEGIN") else None):
                original(dialect, cursor, statement, *rest, **more)

        return execute

    def _committing(self, original: Any) -> Any:
        def commit(dialect: Any, pooled: Any) -> None:
            connection = pooled.driver_connection
            written = self._written.pop(id(connection), None)
            if getattr(connection, "autocommit", False) is True:  # its statement was committed by itself
                return original(dialect, connection)
            name = f"COMMIT of {written or f'nothing by {callers()}'}"
            meet = self._watch.meet(name, twofold=written is not None)
            with self._failing(connection, meet):
                return original(dialect, connection)

        return commit

    def _rolling_back(self, original: Any) -> Any:
        def rollback(dialect: Any, pooled: Any) -> None:
            self._written.pop(id(getattr(pooled, "driver_connection", pooled)), None)
            return original(dialect, pooled)

        return rollback

    def _straight(self, original: Any) -> Any:
        """What goes to the driver past SQLAlchemy: LISTEN, and SQLite's PRAGMA."""

        def execute(connection: Any, query: str, *rest: Any, **more: Any) -> Any:
            listens = query.startswith(("LISTEN", "PRAGMA data_version"))
            meet = self._watch.meet(f"{query} by {callers()}" if listens else query, twofold=False)
            with self._failing(connection, meet):
                return original(connection, query, *rest, **more)

        return execute

    def _straight_sqlite(self) -> type[sqlite3.Connection]:
        class Connection(sqlite3.Connection):
            execute = self._straight(sqlite3.Connection.execute)

        return Connection

    @contextmanager
    def _failing(self, connection: Any, meet: Callable[[str], bool], busy: str | None = None) -> Iterator[None]:
        """The call in this block, with the failures that its database really has."""
        remote = hasattr(connection, "fileno")
        if meet(BEFORE):
            if not remote:
                raise sqlite3.OperationalError(f"database {busy}" if busy else "disk I/O error")
            _cut(connection)
        yield
        if meet(AFTER):
            assert remote, "SQLite has no reply that could get lost"
            _cut(connection)
            connection.pgconn.exec_(b"SELECT 1")  # it notices
            raise psycopg.OperationalError("consuming input failed: server closed the connection unexpectedly")


# --- the other doors -------------------------------------------------------------------------------------------------


def watch_broker(watch: Watch) -> None:
    """`CeleryBroker.publish` and `depth`: Unavailable, as the door says it itself."""
    from jobq.broker import CeleryBroker

    def wrap(original: Any, *, twofold: bool) -> Any:
        def call(broker: Any, argument: Any) -> Any:
            meet = watch.meet(f"{original.__name__} by {callers()}", twofold=twofold)
            if meet(BEFORE):
                raise broker._away(ConnectionError("Connection closed by server"))
            done = original(broker, argument)
            if meet(AFTER):
                raise broker._away(TimeoutError("Timeout reading from socket"))
            return done

        return call

    CeleryBroker.publish = wrap(CeleryBroker.publish, twofold=True)  # type: ignore[method-assign]
    CeleryBroker.depth = wrap(CeleryBroker.depth, twofold=False)  # type: ignore[method-assign]


def watch_http(watch: Watch) -> None:
    """aiohttp's requests, to Docker's engine and to services: the connection ends before the answer has come."""
    import aiohttp
    from yarl import URL

    original = aiohttp.ClientSession._request

    async def request(session: Any, method: str, url: Any, **more: Any) -> Any:
        place = URL(url)
        party = "docker" if place.host == "docker" else "http"
        path = _ID.sub("*", re.sub(r"^/v[\d.]+", "", place.path))
        meet = watch.meet(f"{method} {party} {path} by {callers()}", twofold=method != "GET")
        if meet(BEFORE):
            raise aiohttp.ServerDisconnectedError
        response = await original(session, method, url, **more)
        if meet(AFTER):
            response.close()
            raise aiohttp.ServerDisconnectedError
        return response

    aiohttp.ClientSession._request = request  # type: ignore[method-assign]


def watch_outbound(watch: Watch) -> None:
    """Requests of probes."""
    from jobq.outbound.causes import RequestFailed
    from jobq.outbound.connection import Connection

    original = Connection.answered

    async def answered(connection: Any) -> Any:
        meet = watch.meet(f"probe by {callers()}", twofold=True)
        if meet(BEFORE):
            raise RequestFailed("connection_lost", "the server closed the connection at once")
        answer = await original(connection)
        if meet(AFTER):
            raise RequestFailed("connection_lost", "the connection was lost before the end of the answer")
        return answer

    Connection.answered = answered  # type: ignore[method-assign]


# --- what a worker holds at its end ----------------------------------------------------------------------------------


def watch_worker(held: dict[str, Any]) -> None:
    """Note what a worker that ended in good order still held."""
    from workers.service import Worker

    original = Worker._end

    def end(worker: Any) -> None:
        original(worker)
        journal, slots = worker._journal, worker.slots
        taken = {queue: count - slots.free(queue) for queue, count in slots.capacity.items()}
        notes = (journal._logs, journal._unwritten, journal._artifacts, journal._checkpoints, journal._executing)
        held["slots"] = {queue: count for queue, count in taken.items() if count}
        held["jobs"] = sorted(map(str, worker.runner.running))
        held["notes"] = [note for note in notes if note]

    Worker._end = end  # type: ignore[method-assign]


def run(command: list[str], report: Path, fault: Fault | None) -> int:
    """The command `jobq` with its doors watched; returns its exit code."""
    from jobq.cli import main

    watch, held = Watch(report, fault), dict[str, Any]()
    Sql(watch).install()
    watch_broker(watch)
    watch_http(watch)
    watch_outbound(watch)
    watch_worker(held)
    code = main(command)
    watch.write(code=code, held={what: repr(found) for what, found in held.items() if found})
    return code


if __name__ == "__main__":
    plan = json.loads(os.environ.get("FAILPOINT", "null"))
    sys.exit(run(sys.argv[1:], Path(os.environ["FAILPOINTS"]), plan and Fault(**plan)))
