"""The same promises on SQLite and on PostgreSQL."""

from collections.abc import Iterator

import pytest

from jobq.store.database import Database
from tests.stores import Store


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    """The store, on each database in turn."""
    database = Database(database_url)
    yield Store(database)
    database.close()


@pytest.fixture
def postgres(postgres_url: str) -> Iterator[Store]:
    """The store on PostgreSQL, for what SQLite has no counterpart of: a server, and two writers at once."""
    database = Database(postgres_url)
    yield Store(database)
    database.close()
