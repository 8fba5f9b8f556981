"""Wake-ups: how a process learns within milliseconds that another one committed something of interest.

PostgreSQL: LISTEN on a connection of its own. SQLite: ``PRAGMA data_version``, which changes with each commit of
another connection, and a direct call within the process. Both only shorten a wait: polling finds everything too.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections import defaultdict
from collections.abc import Callable

from sqlalchemy.engine import URL, Connection
from sqlalchemy.exc import DBAPIError

from jobq.store.database import CHANNEL, Database, notify
from jobq.store.sql import POSTGRESQL

log = logging.getLogger(__name__)

NOTIFY_EVERY = 0.02
"""Seconds between two NOTIFY of one process: each takes a lock that all committing notifiers share."""
_POLL = 0.02
_RECONNECT = 2.0

_here: defaultdict[str, set[Callable[[], None]]] = defaultdict(set)
_last_notify: dict[URL, float] = {}


def announce(conn: Connection, *, always: bool = False) -> None:
    """Within a transaction: wake the schedulers when it commits. At most every 20 ms, unless ``always``.

    A caller whose transaction may commit much later uses ``always``: the wake-up of another transaction would come
    too early for it.
    """
    if is_to_announce(conn.engine.url, always=always):
        notify(conn)


def is_to_announce(url: URL, *, always: bool = False) -> bool:
    """For who announces by a statement of his own: whether it is time to. He does so if it is."""
    passed = time.monotonic()
    if not always and passed - _last_notify.get(url, 0.0) < NOTIFY_EVERY:
        return False
    _last_notify[url] = passed
    return True


def ring(database: Database) -> None:
    """After a commit: wake the listeners in this very process (SQLite; PostgreSQL's come by NOTIFY)."""
    if database.dialect != POSTGRESQL:
        for listener in tuple(_here[str(database.url)]):
            listener()


class Listener:
    """A thread that calls ``on_wake`` soon after a commit that was announced. Missed wake-ups cost latency only."""

    def __init__(self, database: Database, on_wake: Callable[[], None]) -> None:
        self._database = database
        self._on_wake = on_wake
        self._stopping = threading.Event()
        target = self._listen if database.dialect == POSTGRESQL else self._watch
        self._thread = threading.Thread(target=self._forever, args=(target,), name="jobq-listener", daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        _here[str(self._database.url)].add(self._on_wake)
        self._thread.start()

    def stop(self) -> None:
        """End; takes a fraction of a second."""
        _here[str(self._database.url)].discard(self._on_wake)
        self._stopping.set()
        self._thread.join(2.0)

    def _forever(self, listen: Callable[[], None]) -> None:
        while not self._stopping.is_set():
            try:
                listen()
            except (DBAPIError, OSError) as error:
                log.debug("listening again in %s s: %s", _RECONNECT, error)
                self._stopping.wait(_RECONNECT)

    def _listen(self) -> None:
        import psycopg

        engine = self._database.engine
        arguments, options = engine.dialect.create_connect_args(self._database.url)
        try:
            with psycopg.connect(*arguments, **{**options, "autocommit": True}, keepalives_idle=10) as connection:
                connection.execute(f"LISTEN {CHANNEL}")
                self._on_wake()
                while not self._stopping.is_set():
                    for _ in connection.notifies(timeout=0.5, stop_after=1):
                        self._on_wake()
        except psycopg.Error as error:
            raise OSError(str(error)) from error

    def _watch(self) -> None:
        with self._database.engine.connect() as conn:
            connection = conn.connection.driver_connection
            assert connection is not None
            seen = None
            try:
                while not self._stopping.wait(_POLL):
                    version = connection.execute("PRAGMA data_version").fetchone()[0]
                    if version != seen:
                        seen = version
                        self._on_wake()
            except sqlite3.Error as error:
                raise OSError(str(error)) from error


__all__ = ["Listener", "announce", "is_to_announce", "ring"]
