"""How long to wait for a PostgreSQL server that says nothing.

A server ends what takes too long by itself (``statement_timeout``), and a network that is gone is noticed by the
kernel. A server that is frozen does neither, and its connections stay open: who asks it would wait for ever.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

PATIENCE = 35.0
"""Seconds after which a server that says nothing is given up: later than its own timeout of a statement."""
_LONG = 86_400.0


def connect(_dialect: Any, _record: Any, arguments: Any, options: Any) -> Any:
    """How SQLAlchemy's pool connects."""
    return _impatient().connect(*arguments, **options)


@cache
def _impatient() -> Any:
    import psycopg

    class Impatient(psycopg.Connection[Any]):
        """A connection that closes itself when the server says nothing for ``patience`` seconds."""

        patience: float | None = None

        def wait(self, *arguments: Any, **options: Any) -> Any:
            began, patience = time.monotonic(), options.setdefault("timeout", self.patience or PATIENCE)
            try:
                return super().wait(*arguments, **options)
            except psycopg.OperationalError:
                if time.monotonic() - began >= patience:
                    self.pgconn.finish()
                raise

    return Impatient


@contextmanager
def without_timeouts(conn: Connection) -> Iterator[None]:
    """For what may take long within a transaction on PostgreSQL, as migrations do."""
    connection: Any = conn.connection.driver_connection
    connection.patience = _LONG
    try:
        conn.execute(sa.text("SET LOCAL statement_timeout = 0"))
        yield
    finally:
        connection.patience = None
