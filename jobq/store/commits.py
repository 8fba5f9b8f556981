"""What is to be done once a transaction is committed, and not at all if it is rolled back or tried again."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy.engine import Connection

_KEY = "jobq_after_commit"

Works = list[Callable[[], None]]


def collect(conn: Connection) -> Works:
    """Begin to collect, for a transaction that begins; the caller does what was collected after its commit."""
    works: Works = []
    conn.info[_KEY] = works
    return works


def after_commit(conn: Connection, work: Callable[[], None]) -> None:
    """``work`` is called after the commit. In an application's own transaction nobody knows when that is: never."""
    works: Works | None = conn.info.get(_KEY)
    if works is not None:
        works.append(work)
