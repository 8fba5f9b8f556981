"""The peer: plain Celery on the same Redis, as its documentation has it. ``celery -A bench.peer worker``."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from functools import cache
from typing import Any

import redis
from celery import Celery


def make_app(broker_url: str, queue: str) -> Celery:
    """An app as a user would make it; everything that is not named keeps Celery's default."""
    made = Celery("peer", broker=broker_url, set_as_current=False)
    made.conf.update(task_ignore_result=True, task_default_queue=queue, broker_connection_retry_on_startup=True)
    return made


app = make_app(os.environ.get("PEER_BROKER_URL", "redis://127.0.0.1:6379/1"), os.environ.get("PEER_QUEUE", "celery"))
if entries := int(os.environ.get("PEER_BEAT_ENTRIES", "0")):
    app.conf.beat_schedule = {
        f"entry-{number}": {
            "task": "bench.peer.ticked",
            "schedule": timedelta(seconds=float(os.environ["PEER_BEAT_SECONDS"])),
            "args": (number,),
        }
        for number in range(entries)
    }

WAITED = "bench.waited"
TICKED = "bench.ticked"


@cache
def client() -> Any:
    return redis.Redis.from_url(app.conf.broker_url)


@app.task
def noop() -> None:
    """Nothing."""


@app.task
def waited(sent_at: float) -> None:
    """Note how long the way took."""
    took = time.time() - sent_at
    client().rpush(WAITED, took)


@app.task
def ticked(number: int) -> None:
    """Note when an entry of the schedule ran."""
    moment = time.time()
    client().rpush(TICKED, f"{number}:{moment}")
