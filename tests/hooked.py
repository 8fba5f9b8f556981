"""A tenant with webhooks, a sender in this process and a receiver in another: what tests of deliveries are made of."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, Self
from uuid import UUID

import sqlalchemy as sa

from jobq import JobQ, Settings
from jobq.loop import Loop
from jobq.store.tables import webhook_deliveries
from jobq.webhooks import Delivery, Endpoint
from scheduler.deliver import Deliverer
from tests.receiver import Receiver
from tests.services import wait_until

SECRET_KEY = "thirty-two bytes of which nobody knows"
NEARBY = {"probe_networks": ["127.0.0.0/8"]}
PROBE = {"kind": "HEARTBEAT", "spec": {"endpoint": "https://example.org/"}}


class Hooked:
    """``jobq`` with endpoints at ``receiver``; ``send`` runs the scheduler's loop until a condition holds."""

    def __init__(self, database_url: str, receiver: Receiver, **parts: Any) -> None:
        self.settings = Settings(database_url=database_url, secret_key=SECRET_KEY, policy=NEARBY, webhook_timeout=2.0)
        self.jobq = JobQ(settings=self.settings, actor="ann")
        self.receiver = receiver
        self.parts = parts
        self.senders = 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.jobq.close()

    def endpoint(self, path: str, **fields: Any) -> Endpoint:
        return self.jobq.webhooks.create(url=self.receiver.url(path), **fields).endpoint

    def tell(self, count: int = 1, **fields: Any) -> list[UUID]:
        """So many jobs that are enqueued, and canceled: two events of each."""
        ids = self.jobq.enqueue_many([{**PROBE, **fields} for _ in range(count)])
        for job_id in ids:
            self.jobq.cancel(job_id)
        return ids

    def log(self, endpoint: Endpoint) -> list[Delivery]:
        """All deliveries, oldest first."""
        found: list[Delivery] = []
        cursor: str | None = None
        while True:
            page = self.jobq.webhooks.deliveries(endpoint.id, limit=200, cursor=cursor)
            found += page.items
            cursor = page.next_cursor
            if cursor is None:
                return found[::-1]

    def states(self, endpoint: Endpoint) -> list[str]:
        return [each.state for each in self.log(endpoint)]

    def send(
        self, until: Callable[[], Any], *, timeout: float = 20.0, meanwhile: Callable[[], Any] = lambda: None
    ) -> None:
        """Run ``senders`` loops of the scheduler beside each other until that is so."""
        running: list[tuple[Loop, Deliverer]] = []
        for _ in range(self.senders):
            deliverer = Deliverer(self.jobq.database, self.settings, **self.parts)
            loop = Loop("deliver", deliverer.tick)
            deliverer.wake = loop.wake
            running.append((loop, deliverer))
        for loop, _ in running:
            loop.start()
        try:
            wait_until(lambda: (meanwhile(), until())[1], timeout=timeout, what="the deliveries")
        finally:
            for loop, _ in running:
                loop.stop()
            for loop, deliverer in running:
                loop.join(5.0)
                deliverer.stop()

    def pass_time(self, seconds: float) -> None:
        """What waits for its next try need not wait for so many seconds of it. What is being sent is left alone."""
        c = webhook_deliveries.c
        with self.jobq.database.begin() as conn:
            waiting = sa.select(c.id, c.next_at).where(c.next_at.is_not(None), c.sender.is_(None))
            for row in conn.execute(waiting).all():
                sooner = sa.update(webhook_deliveries).where(c.id == row.id, c.sender.is_(None))
                conn.execute(sooner.values(next_at=row.next_at - timedelta(seconds=seconds)))
