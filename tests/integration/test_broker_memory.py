"""Hints within one process: the broker of `jobq dev`."""

from collections.abc import Iterator

import pytest
from kombu.transport.memory import Channel

from tests.integration.brokers import BrokerSuite, Stack


@pytest.fixture
def stack(sqlite_url: str) -> Iterator[Stack]:
    Channel.queues.clear()  # it belongs to the process, not to the test
    stack = Stack(sqlite_url, "memory://")
    yield stack
    stack.close()


class TestMemory(BrokerSuite):
    """On SQLite."""
