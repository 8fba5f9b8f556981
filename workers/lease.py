"""The lease of this worker, and what follows from it.

One row says that the worker lives; it is renewed every few seconds. Each renewal brings back what the database
believes to run here, and what is wanted of it:

- a job that runs here but is not listed has another owner or an end: its work is stopped (fenced);
- a job that is listed twice in a row but does not run here comes from a claim whose reply was lost: it is given back;
- a job that somebody canceled or paused is told to stop;
- if the worker was declared dead, all its work is fenced and it registers under a new identity.

A worker that cannot renew stops, shortly before its lease ends, whatever will be tried again elsewhere. Other work
goes on: its outcome counts as long as nobody else ended the job.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from uuid import UUID

from jobq import logs, metrics
from jobq.errors import Unavailable
from jobq.plugins import Stop
from jobq.settings import Settings
from jobq.states import Desired
from jobq.store.claim import Claimant
from jobq.store.database import Database
from jobq.store.held import Held
from jobq.store.workers import (
    Identity,
    Renewal,
    adopt,
    declare_dead,
    neighbours,
    register,
    release_unheld,
    renew,
    resume,
    set_draining,
    sign_off,
)
from workers.executors import Executors
from workers.identity import new_identity, process_start
from workers.runner import Runner, Running
from workers.slots import Slots

log = logging.getLogger(__name__)

_SAFETY = 5.0
"""Seconds before the end of a lease that could not be renewed at which the worker fences itself."""
_ADOPT = 50
_STOPS = {Desired.CANCEL: Stop.CANCEL, Desired.PAUSE: Stop.PAUSE}


def _nothing() -> None:
    """Nobody wants to know."""


class Lease:
    """Keeps the worker alive in the database. Its ``tick`` runs on a thread of its own, never behind other work."""

    def __init__(self, settings: Settings, database: Database, slots: Slots, executors: Executors) -> None:
        self._seconds = settings.lease.total_seconds()
        self._every = settings.renew_every.total_seconds()
        self._grace = settings.reattach_grace.total_seconds()
        self._database, self._slots, self._executors = database, slots, executors
        self._identity: Identity | None = None
        self._renewed = time.monotonic()
        self._unheld: dict[UUID, int] = {}
        self._lock = threading.Lock()
        self._drain_begun = False
        self.runner: Runner | None = None
        self.on_drain: Callable[[], None] = _nothing
        """Called once when an operator asked this worker to drain."""

    # --- identity ------------------------------------------------------------------------------------------

    def claimant(self) -> Claimant:
        """Under which identity jobs are claimed now. Raises Unavailable before the first registration."""
        if self._identity is None:
            raise Unavailable("The worker is not registered yet.", code="database_unavailable")
        hosted, host = self._executors.hosted()
        return Claimant(self._identity.id, host, hosted if host else ())

    @property
    def identity(self) -> Identity | None:
        """The present identity; None: not registered yet."""
        return self._identity

    def is_renewed(self) -> bool:
        """Was the lease renewed when it was last due, or soon after?"""
        return self._identity is not None and time.monotonic() - self._renewed < 3 * self._every

    def _register(self) -> None:
        identity = new_identity(self._slots.capacity, self._executors.hosted()[1])
        self._database.run(lambda conn: register(conn, identity, self._seconds))
        self._renewed, self._identity, self._unheld = time.monotonic(), identity, {}
        log.info("registered as %s (%s)", identity.name, identity.id)

    # --- renewal -------------------------------------------------------------------------------------------

    def tick(self) -> float:
        """One renewal; returns the seconds until the next."""
        if self._identity is None:
            self._register()
            return 0.0
        before = self._snapshot()
        began = time.monotonic()
        identity, host = self._identity, self._executors.hosted()[1]
        renewal = self._database.run(lambda conn: renew(conn, identity.id, self._seconds, host))
        if not renewal.alive:
            self._fence_all()
            return 0.0
        self._renewed = began
        self._obey(renewal, before, identity)
        self._look_around(identity, host)
        return max(self._every - (time.monotonic() - began), 0.1)

    def _snapshot(self) -> dict[Held, Running]:
        return dict(self.runner.running) if self.runner else {}

    def _obey(self, renewal: Renewal, before: dict[Held, Running], identity: Identity) -> None:
        """Bring what runs here in line with what the database says.

        Only attempts that were here before it was asked can be missing from its answer. What began under a former
        identity, because the reply to its claim came after that one's death, is no longer ours.
        """
        assert self.runner is not None
        for key, running in before.items():
            attempt, desired = renewal.running.get(running.job.id, (0, Desired.RUN))
            if key != (running.job.id, attempt, identity.id):
                if key in self.runner.running:
                    self._let_go(running)
            elif desired in _STOPS:
                self.runner.stop(running, _STOPS[desired])
        self._give_back(renewal, identity)
        if renewal.draining and not self._drain_begun:
            self._drain_begun = True
            self.on_drain()

    def _give_back(self, renewal: Renewal, identity: Identity) -> None:
        """What is listed twice in a row and does not run here. A drain leaves work behind that others take over.

        What lives on this host is begun, or gone on with, here: the reply to its claim or adoption was lost.
        """
        assert self.runner is not None
        held = {job: attempt for job, attempt, owner in sorted(self._snapshot()) if owner == identity.id}
        unheld = {job: attempt for job, (attempt, _) in renewal.running.items() if held.get(job) != attempt}
        again = [job for job, attempt in unheld.items() if self._unheld.get(job) == attempt]
        self._unheld = unheld
        if not again or self._drain_begun:
            return
        if (host := self._executors.hosted()[1]) is not None:
            found = self._database.run(lambda conn: resume(conn, identity.id, host, again))
            self.runner.begin(found, identity.id, recovered=True)
            again = [job for job in again if job not in {one.id for one in found}]
        self._database.run(lambda conn: release_unheld(conn, identity.id, held, again))

    # --- fencing -------------------------------------------------------------------------------------------

    def fence(self) -> float:
        """Shortly before the lease ends without a renewal, stop what will be tried again elsewhere.

        Runs on a thread of its own: a renewal that hangs must not keep it waiting. Work that can be recovered on its
        host is tried elsewhere only after ``reattach_grace``, so it may go on for so much longer.
        """
        without = time.monotonic() - self._renewed + _SAFETY
        for running in self._snapshot().values() if self._identity is not None else ():
            limit = self._seconds + (self._grace if running.outlives else 0.0)
            if without >= limit and running.retry.retry_lost is not False and running.ctx.stop is None:
                with logs.belonging(running.about):
                    log.warning("job %s is stopped: the lease could not be renewed", running.job.id)
                assert self.runner is not None
                self.runner.stop(running, Stop.FENCED)
        return 1.0

    def _fence_all(self) -> None:
        log.warning("this worker was declared dead: it lets its jobs go, and registers anew")
        for running in self._snapshot().values():
            self._let_go(running)
        self._identity = None

    def _let_go(self, running: Running) -> None:
        """It has another owner, or an end.

        What outlives its worker is not stopped: an owner needs it, and where there is none the orphans' sweep acts.
        """
        assert self.runner is not None
        self.runner.stop(running, Stop.DRAIN if running.outlives else Stop.FENCED)

    # --- neighbours ----------------------------------------------------------------------------------------

    def _look_around(self, identity: Identity, host: str | None) -> None:
        """Declare dead those neighbours whose process is gone, and take over what the dead left on this host."""
        with self._database.read() as conn:
            others = neighbours(conn, identity.boot_id, identity.pid_namespace)
        gone = [row.id for row in others if row.id != identity.id and process_start(row.pid) != row.process_start]
        if gone and identity.boot_id:
            log.warning("%d workers of this machine are gone", len(gone))
            metrics.GONE.add(len(self._database.run(lambda conn: declare_dead(conn, gone))))
        # What this worker itself let go under an earlier identity must have left: it may know how a job ended.
        leaving = any(one.outlives and one.owner != identity.id for one in self._snapshot().values())
        if host is not None and not self._drain_begun and not leaving and self.runner is not None:
            adopted = self._database.run(lambda conn: adopt(conn, identity.id, host, _ADOPT))
            if adopted:
                log.info("%d jobs of dead workers are taken over on this host", len(adopted))
                self.runner.begin(adopted, identity.id, recovered=True)

    # --- the end -------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Promotion no longer counts on this worker."""
        self._drain_begun = True
        if (identity := self._identity) is not None:
            self._database.run(lambda conn: set_draining(conn, identity.id))

    def sign_off(self) -> None:
        """The worker ends: what it left is the others' at once."""
        if (identity := self._identity) is not None:
            self._database.run(lambda conn: sign_off(conn, identity.id))
            self._identity = None
