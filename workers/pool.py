"""Celery's thread pool, which here tells the consumer when a thread is free again."""

from __future__ import annotations

from typing import Any

from celery.concurrency.thread import ApplyResult, TaskPool  # type: ignore[attr-defined]  # the stubs lack one
from kombu.asynchronous import Hub, get_event_loop


class HintPool(TaskPool):
    """Threads that hints are claimed on.

    The consumer asks Redis for a message only while a thread is free, and looks at that only when its event loop
    turns. A thread that ends does not turn it, so that messages lay there until the next timer, up to 10 s.
    """

    def on_apply(self, *args: Any, **kwargs: Any) -> ApplyResult:
        """See ``BasePool``."""
        result = super().on_apply(*args, **kwargs)
        result.f.add_done_callback(lambda _: turn(get_event_loop()))
        return result


def turn(loop: Hub | None) -> None:
    """Make an event loop that waits look around now, from any thread; brokers that are polled have none."""
    if loop is not None:
        loop.call_soon(_nothing)


def _nothing() -> None:
    """To be called is all that it is for."""
