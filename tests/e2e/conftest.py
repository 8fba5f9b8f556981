"""What a user does is tried on one of the two databases; that they are alike is shown by the contract tests."""

from zlib import crc32

import pytest


@pytest.fixture
def database_url(request: pytest.FixtureRequest) -> str:
    """SQLite for one half of the tests, PostgreSQL for the other: each command takes a second, twice would be two."""
    fixtures = ("sqlite_url", "postgres_url")
    name = request.node.originalname or request.node.name
    return str(request.getfixturevalue(fixtures[crc32(name.encode()) % 2]))
