"""A worker process put together: slots, executors, journal, recorder, lease and runner, each on its own thread."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Mapping, Sequence
from uuid import UUID

from jobq.errors import Unavailable
from jobq.loop import Loop
from jobq.plugins import Stop
from jobq.settings import Settings
from jobq.store.database import Database
from jobq.store.installation import installation_id
from jobq.store.jobs import running_here
from jobq.store.record import Report
from workers.container import ContainerExecutor
from workers.container.engine import EngineError
from workers.container.orphans import OrphanReaper
from workers.executors import Executors
from workers.journal import Journal
from workers.keyring import Keyring
from workers.lease import Lease
from workers.recorder import Recorder
from workers.runner import Runner
from workers.slots import Slots

log = logging.getLogger(__name__)

_QUIET = 1.0
"""Seconds without a hint after which a worker with free slots looks into the database itself."""
_LONGEST_LOOK = 10.0
_SWEEP_EVERY = 10.0
_BATCH = 500


class Worker:
    """The composition root of the executing side. Celery delivers hints to ``hint``; it works without any."""

    def __init__(self, settings: Settings, queues: Mapping[str, int], database: Database | None = None) -> None:
        self._settings = settings
        self._database = database or Database(settings.database_url, pool_size=10, application="jobq-worker")
        self.slots = Slots(queues)
        self._executors = Executors(settings, self._database)
        self._env = ""
        self._journal = Journal(self._database, settings.max_log_bytes)
        self._recorder = Recorder(self._database, self._journal, self._recorded)
        self.lease = Lease(settings, self._database, self.slots, self._executors)
        self.runner = Runner(
            self._database,
            self.slots,
            self._executors,
            journal=self._journal,
            recorder=self._recorder,
            keyring=Keyring(settings, self._database),
            claimant=self.lease.claimant,
        )
        self.lease.runner = self.runner
        self._looks: dict[str, tuple[float, float]] = dict.fromkeys(queues, (0.0, _QUIET))
        self._renewal = Loop("lease", self.lease.tick)
        self._fencing = Loop("fence", self.lease.fence)
        self._recording = Loop("record", self._recorder.tick)
        self._journaling = Loop("journal", self._journal.tick)
        self._looking = Loop("look", self._look)
        self._sweeping = Loop("sweep", self._sweep)
        self._reaper: OrphanReaper | None = None
        self._draining = False

    def start(self) -> None:
        """Start everything; the first renewal registers the worker. Waits for a database that is away."""
        self._env = self._marker()
        self._executors.start(self._env)
        for loop in (self._renewal, self._fencing, self._recording, self._journaling, self._looking, self._sweeping):
            loop.start()
        log.info("worker serves %s", ", ".join(f"{queue}:{count}" for queue, count in self.slots.capacity.items()))

    def _marker(self) -> str:
        """What marks this installation's containers: engines may be shared by several."""
        waited = 0
        while True:
            try:
                with self._database.read() as conn:
                    return f"{self._settings.env_id}-{installation_id(conn).hex[:12]}"
            except Unavailable as error:
                if not waited:
                    log.warning("the worker waits: %s", error)
                waited += 1
                time.sleep(min(0.25 * waited, 2.0))

    def hint(self, queue: str, ids: Sequence[UUID]) -> Sequence[UUID]:
        """A message came: claim what fits; returns what does not, which others may have room for."""
        if queue not in self.slots.capacity:
            return ()
        return ids if self._draining else self.runner.hint(queue, ids)

    def _recorded(self, owner: UUID, reports: Sequence[Report]) -> None:
        self.runner.recorded(owner, reports)
        if self.runner.overflowed:
            self._looking.wake()

    # --- claims without hints --------------------------------------------------------------------------------

    def _look(self) -> float:
        """Claim from the database where a queue has free slots and no hint came for a while."""
        if self._draining:
            return _LONGEST_LOOK
        self.runner.resume_queues()
        waits = [self._look_into(queue) for queue in self.slots.capacity]
        return min(waits)

    def _look_into(self, queue: str) -> float:
        due, pause = self._looks[queue]
        moment = time.monotonic()
        overflowed = queue in self.runner.overflowed
        quiet_since = max(self.runner.last_hint.get(queue, 0.0) + _QUIET, due)
        free = self.slots.free(queue)
        if not free:
            return 0.05 if overflowed else _QUIET
        if not overflowed and quiet_since > moment:
            return quiet_since - moment
        self.runner.overflowed.discard(queue)
        try:
            found = self.runner.claim_without_hint(queue, min(free, _BATCH))
        except Unavailable:
            found = 0
        if found:
            self._looks[queue] = (0.0, _QUIET)
            self.runner.overflowed.add(queue)  # where some were, more may be
            return 0.0
        self._looks[queue] = (moment + pause * random.uniform(0.75, 1.25), min(pause * 1.5, _LONGEST_LOOK))
        return self._looks[queue][0] - moment

    # --- orphans -----------------------------------------------------------------------------------------------

    def _sweep(self) -> float:
        """Remove containers on this host that no live job owns."""
        executor = self._executors.find("CONTAINER")
        if not isinstance(executor, ContainerExecutor):
            return _SWEEP_EVERY  # a plugin in its place cleans up after itself
        if executor.host is None or self.lease.identity is None:
            return _SWEEP_EVERY
        if self._reaper is None:
            self._reaper = OrphanReaper(executor.engine, self._env, self._owned)
        try:
            self._executors.call(self._reaper.sweep(), timeout=120.0)
        except EngineError as error:  # said once, as of the database
            raise Unavailable(str(error)) from error
        return _SWEEP_EVERY

    def _owned(self, found: list[tuple[UUID, int]]) -> set[tuple[UUID, int]]:
        with self._database.read() as conn:
            return running_here(conn, found)

    # --- the end -------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Take no more jobs; those that run go on. From any thread; returns at once."""
        if self._draining:
            return
        self._draining = True
        self.slots.close()
        try:
            self.lease.drain()
        except Unavailable as error:
            log.warning("draining without telling the database: %s", error)

    def stop(self) -> None:
        """Drain, wait for running jobs (``drain_timeout``), stop or leave the rest uncharged, then end everything."""
        self.drain()
        self._wait_until_idle(self._settings.drain_timeout.total_seconds())
        for running in list(self.runner.running.values()):
            self.runner.stop(running, Stop.DRAIN)
        self._wait_until_idle(self._settings.stop_grace.total_seconds() + 5.0)
        self._end()

    def _wait_until_idle(self, seconds: float) -> None:
        ends = time.monotonic() + seconds
        while (self.runner.running or self.runner.clearing) and time.monotonic() < ends:
            time.sleep(0.02)

    def _end(self) -> None:
        for loop in (self._looking, self._sweeping, self._journaling, self._fencing, self._renewal, self._recording):
            loop.stop()
        self._recorder.stop()
        for loop in (self._recording, self._journaling, self._renewal, self._looking):
            loop.join(5.0)
        try:
            self._journal.tick()
            self.lease.sign_off()
        except Unavailable as error:
            log.warning("the worker ends without signing off, its lease runs out: %s", error)
        self._executors.stop()
        self._database.close()
