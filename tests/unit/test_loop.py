"""The one loop: it ticks, waits, is woken, survives what goes wrong, and says so once."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from jobq.errors import Unavailable
from jobq.loop import Loop
from tests.services import wait_until


@contextmanager
def running(tick: Callable[[], float], name: str = "test") -> Iterator[Loop]:
    loop = Loop(name, tick)
    loop.start()
    try:
        yield loop
    finally:
        loop.stop()
        loop.join(5)


class Service:
    """A policy whose service may be away: each tick is counted."""

    def __init__(self) -> None:
        self.ticks = 0
        self.trouble: Exception | None = None

    def tick(self) -> float:
        self.ticks += 1
        if self.trouble is not None:
            raise self.trouble
        return 0.01


def waits_for(record: logging.LogRecord) -> str:
    return record.getMessage()


def test_it_ticks_at_once_and_again_after_as_many_seconds_as_the_tick_said() -> None:
    at: list[float] = []

    def tick() -> float:
        at.append(time.monotonic())
        return 0.05

    began = time.monotonic()
    with running(tick):
        wait_until(lambda: len(at) >= 3)
    assert at[0] - began < 5
    assert all(later - earlier >= 0.045 for earlier, later in itertools.pairwise(at))


def test_a_wake_up_ends_the_waiting() -> None:
    ticks = threading.Semaphore(0)

    def tick() -> float:
        ticks.release()
        return 600.0

    with running(tick) as loop:
        assert ticks.acquire(timeout=5)
        loop.wake()
        assert ticks.acquire(timeout=5)
        assert not ticks.acquire(timeout=0.05)


def test_a_wake_up_during_a_tick_is_not_lost() -> None:
    ticks, go = threading.Semaphore(0), threading.Event()

    def tick() -> float:
        ticks.release()
        go.wait(5)
        return 600.0

    with running(tick) as loop:
        assert ticks.acquire(timeout=5)
        loop.wake()
        go.set()
        assert ticks.acquire(timeout=5)


def test_a_negative_wait_is_none() -> None:
    service = Service()

    def tick() -> float:
        service.tick()
        return -5.0

    with running(tick):
        wait_until(lambda: service.ticks > 3)


def test_stopping_ends_it_after_its_present_tick() -> None:
    service = Service()
    with running(service.tick) as loop:
        wait_until(lambda: service.ticks)
    assert loop._thread.is_alive() is False
    ticks = service.ticks
    loop.wake()
    assert service.ticks == ticks


def test_a_loop_that_never_began_can_be_stopped() -> None:
    loop = Loop("test", lambda: 1.0)
    loop.stop()
    loop.join(1)


def test_an_outage_is_logged_once_and_so_is_its_end(caplog: pytest.LogCaptureFixture) -> None:
    service = Service()
    service.trouble = Unavailable("The database cannot be used.", hint="Check the server.")
    with caplog.at_level(logging.INFO, "jobq.loop"), running(service.tick) as loop:
        for ticks in range(2, 6):
            wait_until(lambda ticks=ticks: service.ticks >= ticks or loop.wake())
        service.trouble = None
        wait_until(lambda: any("goes on" in waits_for(record) for record in caplog.records) or loop.wake())
    assert [waits_for(record) for record in caplog.records] == [
        "the loop test waits: The database cannot be used. Check the server.",
        "the loop test goes on",
    ]
    assert all(record.exc_info is None for record in caplog.records)


def test_during_an_outage_it_waits_longer_and_longer_but_never_more_than_five_seconds() -> None:
    loop = Loop("test", Service().tick)
    waits = [loop._outage("away") for _ in range(200)]
    assert 0 < waits[0] <= 0.5
    assert all(wait <= 5.0 for wait in waits)
    assert min(waits[10:]) >= 2.5


def test_an_unforeseen_error_is_logged_with_its_trace_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    service = Service()
    service.trouble = ZeroDivisionError("no")
    with caplog.at_level(logging.INFO, "jobq.loop"), running(service.tick) as loop:
        wait_until(lambda: service.ticks >= 2 or loop.wake())
        service.trouble = None
        before = service.ticks
        wait_until(lambda: service.ticks > before + 1 or loop.wake())
    assert waits_for(caplog.records[0]) == "the loop test failed and goes on"
    assert caplog.records[0].exc_info is not None
    assert waits_for(caplog.records[-1]) == "the loop test goes on"


def test_an_outage_that_follows_an_unforeseen_error_is_logged_too(caplog: pytest.LogCaptureFixture) -> None:
    service = Service()
    service.trouble = ZeroDivisionError("no")
    with caplog.at_level(logging.INFO, "jobq.loop"), running(service.tick) as loop:
        wait_until(lambda: service.ticks >= 2 or loop.wake())
        service.trouble = Unavailable("The database cannot be used.")
        before = service.ticks
        wait_until(lambda: service.ticks > before + 1 or loop.wake())
    assert "the loop test waits: The database cannot be used." in map(waits_for, caplog.records)
