"""Claim → execute → record: the hot path of a worker, and nothing else.

Threads: hints arrive on Celery's pool threads and claim there; jobs run on one asyncio loop; the recorder commits on
a thread of its own. A job holds its worker slot from before its claim until its outcome is committed.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from uuid import UUID

from jobq import logs, metrics, telemetry
from jobq.errors import Forbidden, InvalidInput, Misconfigured, NotFound, Unavailable
from jobq.models import Outcome
from jobq.plugins import Context, JobRef, Stop
from jobq.retry import RetryPolicy, stored_policy
from jobq.states import Reason
from jobq.store.claim import Claimant, Claimed, claim, claim_waiting
from jobq.store.database import Database
from jobq.store.fanout import QUEUE as CHILDREN
from jobq.store.held import Held
from jobq.store.record import Report
from jobq.validation import parse
from workers.executors import Executors
from workers.journal import Journal
from workers.keyring import Keyring
from workers.recorder import Recorder
from workers.redaction import Redaction
from workers.slots import Slots

log = logging.getLogger(__name__)

_ROOM_WITHIN = 0.25
"""Seconds that a hint waits for free slots here; then others hear of the rest of its jobs."""
_BACKSTOP = 5.0
"""Seconds by which the worker's own timeout is later than that of an executor that watches the time itself."""


@dataclass(slots=True)
class Running:
    """A job that this worker executes at the moment."""

    job: Claimed
    owner: UUID
    ctx: Context
    retry: RetryPolicy
    cooperative: bool = False
    outlives: bool = False
    """Its work goes on where it lives, without this worker."""
    recovered: bool = False
    redaction: Redaction | None = None
    """Of the secrets that the job was handed."""
    about: logs.About | None = None
    """How lines of the worker's own log name it."""
    task: asyncio.Task[None] | None = None
    timed_out: bool = False
    began: float = field(default_factory=time.monotonic)

    @property
    def key(self) -> Held:
        """What tells it apart from every other attempt, also of the same job: the fence of its writes."""
        return Held(self.job.id, self.job.attempt, self.owner)


class Runner:
    """Runs jobs. ``claimant`` says under which identity: it changes when the worker was declared dead."""

    def __init__(
        self,
        database: Database,
        slots: Slots,
        executors: Executors,
        *,
        journal: Journal,
        recorder: Recorder,
        keyring: Keyring,
        claimant: Callable[[], Claimant],
    ) -> None:
        self._database, self._slots, self._executors = database, slots, executors
        self._journal, self._recorder, self._claimant = journal, recorder, claimant
        self._loop, self._keyring = executors.loop, keyring
        self.running: dict[Held, Running] = {}
        """A job may be here twice for a moment: its next attempt begins before this one is forgotten."""
        self.clearing: set[Future[None]] = set()
        """Recorded jobs that are still being cleared up."""
        self._beginning = threading.Lock()
        self.last_hint: dict[str, float] = {}
        self.overflowed: set[str] = set()
        """Queues with promoted jobs that had no room here: claimed without a hint as soon as there is."""
        self._resting: dict[str, str] = {}
        """Queues of which nothing is claimed for now, and the kind whose host is away."""

    # --- claim ---------------------------------------------------------------------------------------------

    def hint(self, queue: str, ids: Sequence[UUID]) -> Sequence[UUID]:
        """Claim what fits of these jobs, or will within a moment; returns the others, for whoever has room."""
        self.last_hint[queue] = time.monotonic()
        ends = time.monotonic() + _ROOM_WITHIN
        while ids:
            taken = self._slots.take(queue, len(ids), ends - time.monotonic())
            if not taken:
                self.overflowed.add(queue)
                break
            now, ids = ids[:taken], ids[taken:]
            self._claim(queue, taken, lambda conn, by, now=now: claim(conn, by, queue, now))  # type: ignore[misc]
        return ids

    def claim_without_hint(self, queue: str, at_most: int) -> int:
        """Claim QUEUED jobs straight from the database; returns how many there were."""
        taken = self._slots.take(queue, at_most)
        return self._claim(queue, taken, lambda conn, by: claim_waiting(conn, by, queue, taken)) if taken else 0

    def resume_queues(self) -> None:
        """Claim again where the host is back that a queue's jobs were in need of."""
        for queue, kind in list(self._resting.items()):
            if not self._executors.is_away(kind):
                del self._resting[queue]
                self._slots.resume(queue)
                log.info("jobs of %s are claimed again: the host of %s is back", queue, kind)

    def _claim(self, queue: str, taken: int, work: Callable[[Any, Claimant], list[Claimed]]) -> int:
        jobs: list[Claimed] = []
        begun = 0
        try:
            by = self._claimant()
            # With the payloads of children it is two.
            jobs = self._database.run(lambda conn: work(conn, by), one_statement=queue != CHILDREN)
            begun = self.begin(jobs, by.worker_id)
            metrics.claimed(queue, jobs)
        except Unavailable as error:
            log.debug("not claimed: %s", error)
        finally:
            self._slots.give(queue, taken - begun)
        return len(jobs)

    # --- execute -------------------------------------------------------------------------------------------

    def begin(self, jobs: Iterable[Claimed], owner: UUID, *, recovered: bool = False) -> int:
        """Start claimed (or adopted) jobs on the event loop, each once; returns how many. From any thread."""
        with self._beginning:
            # The lease resumes a claim whose reply is long overdue: it may come all the same.
            new = [job for job in jobs if Held(job.id, job.attempt, owner) not in self.running]
            started = [self._prepare(job, owner, recovered=recovered) for job in new]
            self.running.update((running.key, running) for running in started)
        if started:
            self._loop.call_soon_threadsafe(self._start, started)
        return len(started)

    def _prepare(self, job: Claimed, owner: UUID, *, recovered: bool) -> Running:
        ref = JobRef(
            job.id, job.attempt, job.tenant, job.kind, job.name, job.queue, job.trigger, job.timeout,
            job.scheduled_at, job.workflow_id, job.parent_id, job.state, job.retry_of, owner, job.payload,
            job.started_by,
        )  # fmt: skip
        journal, held = self._journal, Held(job.id, job.attempt, owner)
        ctx = Context(
            ref,
            write_log=journal.open(held, job, resumed=recovered),
            on_executing=lambda: journal.executing(held, self._host_of(job.kind)),
            checkpoint=job.checkpoint or {},
            save=lambda document: journal.checkpoint(held, document),
            at_once=journal.at_once,
            save_artifact=lambda name, content: journal.artifact(held, name, content),
            afterwards=[],
        )
        return Running(job, owner, ctx, stored_policy(job.kind, job.retry), recovered=recovered)

    def _host_of(self, kind: str) -> str | None:
        """Where work of this kind lives, if it outlives the worker."""
        hosted, host = self._executors.hosted()
        return host if kind in hosted else None

    def _start(self, started: list[Running]) -> None:
        for running in started:
            running.task = self._loop.create_task(self._run(running))

    async def _run(self, running: Running) -> None:
        running.about = logs.begin(running.job, running.owner)
        with telemetry.attempt(running.job, running.owner) as span:
            outcome = await self._execute(running)
            if running.redaction is not None:
                outcome = running.redaction.outcome(outcome)
            trace = telemetry.ended(span, outcome)
        job, stop = running.job, running.ctx.stop
        drained = stop is Stop.DRAIN and outcome.error_class == "stopped"
        if stop is Stop.FENCED or (drained and running.outlives):
            self._journal.discard(running.key)  # another worker owns it, or will take it over where it lives
            self.forget([running])
            if stop is Stop.FENCED:
                await self._clear_up(running)
            return
        if outcome.reason is Reason.REQUEUED and self._executors.is_away(job.kind):
            self._rest(job.queue, job.kind)
        self._recorder.put(
            running.owner,
            Report(
                job.id,
                job.attempt,
                outcome,
                job.started_at,
                running.retry,
                running.ctx.steps,
                drained,
                job.kind,
                job.queue,
                time.monotonic() - running.began,
                trace,
            ),
        )

    def _rest(self, queue: str, kind: str) -> None:
        """Claim no more of a queue whose jobs would only come back: other workers may have a host for them.

        A job is requeued twenty times at most, so that an absence of minutes would end all that wait.
        """
        if queue not in self._resting:
            self._resting[queue] = kind
            self._slots.rest(queue)
            log.warning("no jobs of %s are claimed for now: the host of %s is away", queue, kind)

    async def _execute(self, running: Running) -> Outcome:
        """The outcome of the executor, or of what kept it from having one. Never raises."""
        job, ctx = running.job, running.ctx
        try:
            executor = await self._executors.get(job.kind)
            running.cooperative = getattr(executor, "cooperative", False)
            running.outlives = hasattr(executor, "recover")
            spec = parse(executor.kind.spec, job.spec, "/spec")
            if names := spec.secret_names():
                await self._hand_over(running, names)
            work = executor.recover if running.recovered else executor.execute
            if not inspect.iscoroutinefunction(work):
                work = partial(asyncio.to_thread, work)  # at its timeout its outcome is decided without it
            if running.cooperative or job.timeout is None:
                outcome: Outcome = await work(spec, ctx)
                return outcome
            grace = _BACKSTOP if getattr(executor, "own_deadline", False) else 0.0
            return await self._with_deadline(running, work(spec, ctx), grace)
        except asyncio.CancelledError:
            return self._interrupted(running)
        except (InvalidInput, Forbidden, NotFound, Misconfigured) as error:
            return Outcome.invalid(str(error))
        except Exception as error:  # noqa: BLE001 - it is told, and recorded
            self._tell_debugger(running)
            return Outcome.failed(f"{type(error).__name__}: {error}"[:2000], error_class=type(error).__name__)

    @staticmethod
    def _tell_debugger(running: Running) -> None:
        """Where an exception came from, at DEBUG; it may quote a secret too."""
        if log.isEnabledFor(logging.DEBUG):
            trace = traceback.format_exc()
            log.debug(
                "job %s raised: %s", running.job.id, running.redaction.hide(trace) if running.redaction else trace
            )

    async def _hand_over(self, running: Running, names: Iterable[str]) -> None:
        """The secrets that the spec names, for its executor only: log and outcome show asterisks in their place."""
        ctx = running.ctx
        ctx.secrets = await asyncio.to_thread(self._keyring.read, running.job.tenant, names)
        running.redaction = Redaction(ctx.secrets.values())
        if running.about is not None:
            running.about.hide = running.redaction.hide
        self._journal.redact(running.key, running.job, running.redaction)

    async def _with_deadline(self, running: Running, work: Awaitable[Outcome], grace: float) -> Outcome:
        timer = self._loop.call_later((running.job.timeout or 0.0) + grace, self._expire, running)
        try:
            return await work
        finally:
            timer.cancel()

    def _expire(self, running: Running) -> None:
        running.timed_out = True
        if running.task is not None:
            running.task.cancel()

    @staticmethod
    def _interrupted(running: Running) -> Outcome:
        if running.timed_out:
            return Outcome.timed_out(f"timed out after {running.job.timeout:g} s")
        return Outcome.stopped()

    def stop(self, running: Running, why: Stop) -> None:
        """Tell a running job to stop. From any thread; telling it twice changes nothing."""
        if running.ctx.stop is not why:
            self._loop.call_soon_threadsafe(self._stop, running, why)

    @staticmethod
    def _stop(running: Running, why: Stop) -> None:
        running.ctx.request_stop(why)
        if running.task is not None and not running.cooperative:
            running.task.cancel()

    # --- record --------------------------------------------------------------------------------------------

    def recorded(self, owner: UUID, reports: Sequence[Report]) -> None:
        """The outcomes are committed (or were refused): their slots are free."""
        found = (self.running.get(Held(report.id, report.attempt, owner)) for report in reports)
        ended = [running for running in found if running is not None]
        for running in ended:
            if running.ctx.afterwards:
                clearing = asyncio.run_coroutine_threadsafe(self._clear_up(running), self._loop)
                self.clearing.add(clearing)
                clearing.add_done_callback(self.clearing.discard)
        self.forget(ended)

    @staticmethod
    async def _clear_up(running: Running) -> None:
        """What had to wait until nobody needs it any more to tell how the job ended."""
        for work in running.ctx.afterwards or ():
            await work()

    def forget(self, ended: Iterable[Running]) -> None:
        """These jobs hold no slot here any more."""
        counts: defaultdict[str, int] = defaultdict(int)
        for running in ended:
            if self.running.pop(running.key, None) is not None:
                counts[running.job.queue] += not running.recovered
        for queue, count in counts.items():
            self._slots.give(queue, count)
