"""The scheduler: its policies, each in a loop of its own. Any number of schedulers run side by side."""

from __future__ import annotations

import logging
import os
import socket
import time
from importlib.metadata import version

from jobq.broker import Broker, CeleryBroker
from jobq.loop import Loop
from jobq.settings import Settings
from jobq.store.database import Database
from jobq.store.jobs import new_id
from jobq.store.prune import Kept
from jobq.store.wakeup import Listener
from jobq.store.workers import scheduler_seen
from scheduler.deliver import Deliverer
from scheduler.fanin import FanIn
from scheduler.materialize import Materializer
from scheduler.promote import Promoter
from scheduler.prune import Pruner
from scheduler.publish import Publisher
from scheduler.reap import Reaper
from scheduler.resend import Resender
from scheduler.rollup import Roller
from scheduler.stale import StaleCollector
from scheduler.wake import Waker

log = logging.getLogger(__name__)

_SEEN_EVERY = 5.0
_STUCK = 30.0
"""Seconds without a round of promotion, its own or standing by, after which a scheduler does not say that it works."""
_STOP_WITHIN = 5.0
_MOMENT = 0.02


class Scheduler:
    """The composition root of the scheduling side. ``start`` returns at once; ``stop`` ends all loops."""

    def __init__(self, settings: Settings, database: Database | None = None, broker: Broker | None = None) -> None:
        self._id = new_id()
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self._database = database or Database(settings.database_url, application="jobq-scheduler")
        self._broker = broker or CeleryBroker(settings)
        self._publisher = Publisher(self._broker, settings.hints_per_message)
        self._promoter = Promoter(self._database, self._publisher.offer)
        self._promotion = Loop("promote", self._promote)
        self._announced = self._to_look = False
        ready = self._promotion.wake
        reaper = Reaper(
            self._database,
            lease=settings.lease.total_seconds(),
            reattach_grace=settings.reattach_grace.total_seconds(),
        )
        resender = Resender(self._database, self._broker, self._publisher.offer)
        self._materialization = Loop("materialize", Materializer(self._database, ready).tick)
        self._waking = Loop("wake", Waker(self._database, ready).tick)
        self._deliverer = Deliverer(self._database, settings)
        self._delivery = Loop("deliver", self._deliverer.tick)
        self._deliverer.wake = self._delivery.wake
        self._loops = [
            self._promotion,
            self._materialization,
            self._waking,
            Loop("publish", self._publisher.tick),
            Loop("resend", resender.tick),
            Loop("reap", reaper.tick),
            Loop("fan-in", FanIn(self._database, ready).tick),
            Loop("stale", StaleCollector(self._database).tick),
            Loop("roll up", Roller(self._database).tick),
            Loop("prune", Pruner(self._database, Kept.by(settings), settings.webhook_retention).tick),
            self._delivery,
            Loop("seen", self._say_alive),
        ]
        self._listener = Listener(self._database, self._on_commit)

    def start(self) -> None:
        """Start all loops."""
        for loop in self._loops:
            loop.start()
        self._listener.start()
        log.info("scheduler %s is running", self._name)

    def stop(self) -> None:
        """End all loops, each after its present round."""
        self._listener.stop()
        for loop in self._loops:
            loop.stop()
        self._publisher.stop()
        ends = time.monotonic() + _STOP_WITHIN
        for loop in self._loops:
            loop.join(max(ends - time.monotonic(), 0.1))
        self._deliverer.stop()
        self._broker.close()
        self._database.close()

    def _on_commit(self) -> None:
        self._announced = True
        self._promotion.wake()
        self._delivery.wake()

    def _promote(self) -> float:
        """Promotion, and a moment later a look at what waits for its time: side by side they hold each other up.

        That moment belongs to the hint of a job that is alone.
        """
        look, self._to_look = self._to_look, self._announced
        self._announced = False
        seconds = self._promoter.tick()
        if look:
            self._waking.wake()
        return min(seconds, _MOMENT) if self._to_look else seconds

    def _say_alive(self) -> float:
        if time.monotonic() - self._promotion.turned > _STUCK:
            return _SEEN_EVERY  # it lives, but whoever counts on it would wait in vain
        self._database.run(lambda conn: scheduler_seen(conn, self._id, self._name, version("jobq")))
        return _SEEN_EVERY
