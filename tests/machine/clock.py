"""The clock of a database, in the hands of a test: it stands still until it is moved.

Nothing in the product knows of it. PostgreSQL finds its ``statement_timestamp()`` in a schema that comes before its
own in the search path; SQLite finds a ``strftime(format, 'now')`` of two arguments that was made for it. Ids, which
sort by time, come from the same clock.
"""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import event

from jobq.store.database import Database
from jobq.store.sql import POSTGRESQL, instant_text

START = datetime(2030, 1, 1, tzinfo=UTC)

_SCHEMA = """
DROP SCHEMA IF EXISTS clock CASCADE;
CREATE SCHEMA clock;
CREATE TABLE clock.hands (at timestamptz NOT NULL);
INSERT INTO clock.hands VALUES ('2030-01-01T00:00:00Z');
CREATE FUNCTION clock.statement_timestamp() RETURNS timestamptz STABLE LANGUAGE sql AS 'SELECT at FROM clock.hands';
"""


class Clock:
    """Takes over the clock of a database, whose first connection must not have been made yet."""

    def __init__(self, database: Database) -> None:
        self.at = START
        self._database = database
        self._numbers = itertools.count()
        if database.dialect == POSTGRESQL:
            event.listen(database.engine, "connect", _look_here_first)
            with database.begin() as conn:
                conn.execute(sa.text(_SCHEMA))
        else:
            event.listen(database.engine, "connect", self._be_strftime)

    def _be_strftime(self, connection: Any, _record: Any) -> None:
        def strftime(_format: str, instant: str | None) -> str | None:
            if instant is None:
                return None
            if _format == "%s":  # seconds since 1970, which no clock has a hand in
                return str(int(datetime.fromisoformat(instant).timestamp()))
            assert instant == "now"
            return instant_text(self.at)

        connection.create_function("strftime", 2, strftime)
        connection.execute("PRAGMA synchronous=OFF").close()  # no machine will lose its power here

    def give_back(self) -> None:
        """The database has its own clock again."""
        if self._database.dialect == POSTGRESQL:
            with self._database.begin() as conn:
                conn.execute(sa.text("DROP SCHEMA clock CASCADE"))

    def set(self, at: datetime) -> None:
        """To the millisecond, which is as fine as SQLite tells the time."""
        self.at = at
        if self._database.dialect == POSTGRESQL:
            with self._database.begin() as conn:
                conn.execute(sa.text("UPDATE clock.hands SET at = :at"), {"at": at})

    def advance(self, seconds: float) -> None:
        self.set(self.at + timedelta(seconds=seconds))

    def new_id(self) -> UUID:
        """A UUIDv7 of this time, greater than all before."""
        milliseconds = int(self.at.timestamp() * 1000)
        # With room behind each: who enqueues many counts up from one id.
        return UUID(int=milliseconds << 80 | 7 << 76 | 2 << 62 | next(self._numbers) << 16)


def _look_here_first(connection: Any, _record: Any) -> None:
    connection.execute("SET search_path TO clock, pg_catalog, public")
    connection.commit()
