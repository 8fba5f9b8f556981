"""Celery's consumer hears of a free thread at once: messages never wait in Redis beside idle threads."""

import itertools
import threading
import time

import pytest
from celery import Celery
from celery.signals import worker_ready
from celery.worker import WorkController

from tests.services import wait_until


@pytest.mark.filterwarnings("ignore::celery.exceptions.SecurityWarning")  # of running as root: only JSON is accepted
def test_a_message_behind_a_full_pool_starts_as_soon_as_a_thread_is_free(redis_url: str) -> None:
    """With Celery's own pool it waited for the event loop's next timer, up to 10 s."""
    app = Celery("test", broker=redis_url, set_as_current=False)
    app.conf.update(
        worker_pool="workers.pool:HintPool", worker_concurrency=1, worker_prefetch_multiplier=1,
        worker_disable_prefetch=True, task_ignore_result=True, worker_hijack_root_logger=False,
        worker_enable_remote_control=False,
    )  # fmt: skip
    starts: list[float] = []
    ready = threading.Event()

    @app.task(name="nap")
    def nap() -> None:
        starts.append(time.monotonic())
        time.sleep(0.3)

    def on_ready(**_: object) -> None:
        ready.set()

    worker_ready.connect(on_ready)
    worker = app.Worker(without_gossip=True, without_mingle=True, without_heartbeat=True, quiet=True)
    thread = threading.Thread(target=WorkController.start, args=(worker,), daemon=True)
    thread.start()
    try:
        assert ready.wait(30)
        for _ in range(8):
            nap.delay()
        wait_until(lambda: len(starts) == 8, 30, what="eight naps, one at a time")
    finally:
        worker_ready.disconnect(on_ready)
        worker.stop()
        thread.join(10)
    gaps = sorted(later - earlier for earlier, later in itertools.pairwise(starts))
    assert gaps[2] < 0.7, gaps  # a busy machine delays some of them, the timer all
