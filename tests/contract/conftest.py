"""The same promises on SQLite and on PostgreSQL."""

from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest

from jobq.store.database import Database
from tests import services
from tests.stores import Store

_EMPTY = b"""
DO $$ DECLARE name text; BEGIN
    PERFORM pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid();
    FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' LOOP
        IF name NOT LIKE 'jobq\\_%' THEN EXECUTE format('DROP TABLE %I CASCADE', name);
        ELSIF name NOT IN ('jobq_installation', 'jobq_rolled', 'jobq_schema_version') THEN
            EXECUTE format('DELETE FROM %I', name);
        END IF;
    END LOOP;
    UPDATE jobq_rolled SET until = to_timestamp(0);
END $$
"""
"""Without the tables of the test itself, and without rows; in one statement, for it is done a thousand times."""


class Emptied:
    """One database for a thousand tests: emptying it takes a hundredth of the time that making one does."""

    def __init__(self, server: services.Postgres, template: str) -> None:
        self.server = server
        self.name = server.create(template)
        self.url = server.url(self.name)
        self._connection: psycopg.Connection | None = None

    def empty(self) -> None:
        """End whoever is still connected, and remove what they left."""
        self.server.thaw()  # the test may have frozen it, or killed it
        try:
            self._execute(_EMPTY)
        except psycopg.OperationalError:
            self.close()
            self.server.start()
            self._execute(_EMPTY)

    def _execute(self, statement: bytes) -> None:
        # The same connection each time: a new one has to learn about every table first.
        self._connection = self._connection or psycopg.connect(self.url, autocommit=True)
        self._connection.execute(statement)

    def close(self) -> None:
        if self._connection:
            self._connection.close()
            self._connection = None


@pytest.fixture(scope="session")
def emptied(postgres_server: services.Postgres, postgres_template: str) -> Iterator[Emptied]:
    with closing(Emptied(postgres_server, postgres_template)) as emptied:
        yield emptied


@pytest.fixture
def postgres_url(emptied: Emptied) -> Iterator[str]:
    """A PostgreSQL database at the current schema, without any row of an earlier test."""
    yield emptied.url
    emptied.empty()


@pytest.fixture
def store(request: pytest.FixtureRequest, database_url: str) -> Iterator[Store]:
    """The store, on each database in turn: the class that the module calls STORE, if it has one of its own."""
    database = Database(database_url)
    yield getattr(request.module, "STORE", Store)(database)
    database.close()


@pytest.fixture
def postgres(request: pytest.FixtureRequest, postgres_url: str) -> Iterator[Store]:
    """The store on PostgreSQL, for what SQLite has no counterpart of: a server, and two writers at once."""
    database = Database(postgres_url, pool_size=16)
    yield getattr(request.module, "STORE", Store)(database)
    database.close()
