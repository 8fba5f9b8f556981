"""The same promises on SQLite and on PostgreSQL."""

from collections.abc import Iterator

import pytest

from jobq.store.database import Database
from tests.stores import Store


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    database = Database(database_url)
    yield Store(database)
    database.close()
