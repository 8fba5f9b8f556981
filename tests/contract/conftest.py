"""The same promises on SQLite and on PostgreSQL."""

from collections.abc import Iterator

import psycopg
import pytest

from jobq.store.database import Database
from tests import services
from tests.stores import Store

_KEPT = {"jobq_installation", "jobq_schema_version"}


@pytest.fixture(scope="session")
def emptied(postgres_server: services.Postgres, postgres_template: str) -> str:
    """One database for a thousand tests: emptying it takes a hundredth of the time that making one does."""
    return postgres_server.create(postgres_template)


@pytest.fixture
def postgres_url(postgres_server: services.Postgres, emptied: str) -> Iterator[str]:
    """A PostgreSQL database at the current schema, without any row of an earlier test."""
    postgres_server.start()  # an earlier test may have killed or frozen it
    yield postgres_server.url(emptied)
    postgres_server.start()
    postgres_server.disconnect(emptied)
    with psycopg.connect(postgres_server.url(emptied), autocommit=True) as connection:
        for (name,) in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall():
            if not name.startswith("jobq_"):
                connection.execute(f'DROP TABLE "{name}" CASCADE'.encode())
            elif name not in _KEPT:
                connection.execute(f'DELETE FROM "{name}"'.encode())


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
