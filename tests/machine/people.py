"""Rules: what applications and people do to jobs, queues and tenants."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from jobq.errors import NotFound
from jobq.models import Job
from jobq.states import Trigger
from tests.machine.fates import INITIAL, Ending, Fate, arrival, canceled, holder_of, over
from tests.machine.ground import QUEUES, TENANTS, Ground

numbers = st.integers(0, 7)
tenants = st.sampled_from(TENANTS)
queues = st.sampled_from(QUEUES)
keys = st.sampled_from([None, None, "k"])
delays = st.sampled_from([None, None, 0, 20, 4000])
patiences = st.sampled_from([None, None, timedelta(hours=2)])
afters: st.SearchStrategy[list[int]] = st.one_of(st.just([]), st.just([]), st.lists(numbers, min_size=1, max_size=3))

PLAIN: dict[str, Any] = {"kind": "NOOP", "queue": "noop"}


def retry(attempts: int = 3, **more: Any) -> dict[str, Any]:
    return {"max_attempts": attempts, "initial": INITIAL, "factor": 2.0, "jitter": 0.0, **more}


def seconds(duration: timedelta | None) -> float | None:
    return None if duration is None else duration.total_seconds()


class People(Ground):
    """Enqueue, cancel, pause, resume, retry; queues and tenants."""

    # --- enqueue -----------------------------------------------------------------------------------------------------

    def picked(self, tenant: str, picks: list[int]) -> list[UUID]:
        """Jobs of this tenant to come after: as old as the numbers say."""
        found = self.jobs(tenant=tenant)
        return list(dict.fromkeys(self.pick(found, number).id for number in picks)) if found else []

    def upstreams(self, ids: list[UUID]) -> dict[UUID, str] | None:
        """What waiting for these jobs means: duplicates stand for another job. None: there is none any more."""
        found = {}
        for job_id in ids:
            job = self.last.jobs[job_id]
            while job is not None and job.duplicate_of is not None:
                job = self.last.jobs.get(job.duplicate_of)
            if job is None:
                return None
            found[job.id] = job.status
        return found

    def at(self, delay: float | None) -> Any:
        return None if delay is None else self.clock.at + timedelta(seconds=delay)

    def accepted(self, job: Any, tenant: str, key: str | None, after: list[UUID], more: Fate) -> None:
        """A job that was enqueued by itself is as it must be."""
        waits = self.upstreams(after)
        assert waits is not None
        holder = holder_of(self.last, tenant, key)
        fate = arrival(self.last, waits, scheduled_at=job.scheduled_at, holder=holder)
        self.expected.born[job.id] = {"tenant": tenant, "dedupe_key": key, **fate, **more}
        if fate["reason"] != "duplicate":
            self.after[job.id] = frozenset(waits)

    @rule(
        tenant=tenants, queue=queues, key=keys, delay=delays, after=afters, attempts=st.sampled_from([1, 3, 3]),
        priority=st.sampled_from([4, 4, 9]), hosted=st.sampled_from([False, False, True]), lost=st.booleans(),
        patience=patiences,
    )  # fmt: skip
    def enqueue(  # noqa: PLR0917
        self, tenant: str, queue: str, key: str | None, delay: float | None, after: list[int], attempts: int,
        priority: int, hosted: bool, lost: bool, patience: timedelta | None,
    ) -> None:  # fmt: skip
        ids = self.picked(tenant, after)
        request = {
            "kind": "HOSTED" if hosted else "NOOP", "queue": queue, "priority": priority, "dedupe_key": key,
            "scheduled_at": self.at(delay), "after": ids, "retry": retry(attempts, retry_lost=lost),
            "stale_after": patience,
        }  # fmt: skip
        if self.upstreams(ids) is None:  # a duplicate whose original was deleted
            try:
                self.doors[tenant].enqueue({}, **request)
            except NotFound:
                return
            raise AssertionError("it waits for a job that is gone")
        job = self.doors[tenant].enqueue({}, **request)
        self.accepted(
            job, tenant, key, ids, {"queue": queue, "scheduled_at": self.at(delay), "stale_after": seconds(patience)}
        )

    @rule(tenant=tenants, queue=queues, count=st.integers(2, 5), key=keys)
    def enqueue_many(self, tenant: str, queue: str, count: int, key: str | None) -> None:
        request = {"kind": "NOOP", "queue": queue, "dedupe_key": key, "retry": retry(), "spec": {}}
        ids = self.doors[tenant].enqueue_many([request] * count)
        holder = holder_of(self.last, tenant, key)
        for job_id in ids:
            self.expected.born[job_id] = arrival(self.last, {}, scheduled_at=None, holder=holder)
            holder = holder or (job_id if key is not None else None)

    @rule(tenant=tenants, key=st.sampled_from(["order-1", "order-2"]), say=st.sampled_from(["a", "b"]))
    def enqueue_idempotently(self, tenant: str, key: str, say: str) -> None:
        before = self.requests.get((tenant, key))

        def ask() -> Job:
            return self.doors[tenant].enqueue({"say": say}, **PLAIN, retry=retry(), idempotency_key=key)

        if before is None:
            job = ask()
            self.requests[tenant, key] = (say, job.id, self.clock.at)
            self.accepted(job, tenant, None, [], {})
        elif before[0] != say:
            self.conflict("idempotency_conflict", ask)
        else:
            assert ask().id == before[1]

    # --- jobs --------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.last.jobs)
    @rule(
        number=numbers,
        what=st.sampled_from(["cancel", "end", "pause", "resume", "retry", "ask_why"]),
        among=st.sampled_from(["all", "live", "in flight", "in flight"]),
    )
    def act(self, number: int, what: str, among: str) -> None:
        """On any job, on one that has not ended, or on one that is promoted or runs."""
        jobs = self.jobs() if among == "all" else self.jobs(finished_at=None)
        if among == "in flight":
            jobs = [job for job in jobs if job.status in {"QUEUED", "RUNNING"}]
        if jobs:
            getattr(self, what)(self.pick(jobs, number))

    def cancel(self, job: Any) -> None:

        def verb() -> Any:
            return self.doors[job.tenant].cancel(job.id)

        if job.finished_at is not None:
            self.conflict("already_finished", verb)
        elif job.status == "RUNNING":
            verb()
            self.expected.fates[job.id] = {"status": "RUNNING", "desired": "CANCEL"}
        else:
            verb()
            self.expected.fates[job.id] = canceled(job, self.clock.at)

    def end(self, job: Any) -> None:
        """Cancel, whatever its worker does: from now on it owns nothing."""
        if job.status != "RUNNING":
            self.cancel(job)
            return
        self.doors[job.tenant].cancel(job.id, force=True)
        self.expected.fates[job.id] = over("CANCELED", "by_user", self.clock.at) | {"worker_id": None, "host": None}
        self.expected.endings[job.id, job.attempt] = Ending("CANCELED", False, job.worker_id)

    def pause(self, job: Any) -> None:

        def verb() -> Any:
            return self.doors[job.tenant].pause(job.id)

        if job.finished_at is not None:
            self.conflict("already_finished", verb)
        elif job.trigger == Trigger.AUTOMATIC or job.status == "RUNNING":
            self.conflict("not_pausable", verb)
        else:
            verb()
            self.expected.fates[job.id] = {"status": "PENDING", "reason": "paused", "desired": "PAUSE"}

    def resume(self, job: Any) -> None:
        if job.finished_at is not None:
            self.conflict("already_finished", lambda: self.doors[job.tenant].resume(job.id))
            return
        self.doors[job.tenant].resume(job.id)
        if job.reason != "paused":
            return
        if any(its == job.id for its, _ in self.last.waits):
            fate = {"reason": "blocked"}
        elif job.attempt == 0 and job.scheduled_at is not None and job.scheduled_at > self.clock.at:
            fate = {"reason": "scheduled", "due_at": job.scheduled_at}
        else:
            fate = {"reason": "ready"}
        self.expected.fates[job.id] = {"status": "PENDING", "desired": "RUN", "due_at": None, **fate}

    def retry(self, job: Any) -> None:
        if job.finished_at is None:
            self.conflict("not_finished", lambda: self.doors[job.tenant].retry(job.id))
            return
        new = self.doors[job.tenant].retry(job.id)
        self.accepted(new, job.tenant, job.dedupe_key, [], {"retry_of": job.id, "trigger": "MANUAL"})

    def ask_why(self, job: Any) -> None:
        """There is an answer for every state."""
        assert self.doors[job.tenant].why(job.id)

    # --- queues and tenants ------------------------------------------------------------------------------------------

    @precondition(lambda self: self.last.jobs)
    @rule(
        what=st.sampled_from(["pause", "resume", "resume", "limit queue", "limit tenant", "unlimit", "weigh"]),
        queue=queues, tenant=tenants, limit=st.integers(1, 3),
    )  # fmt: skip
    def administer(self, what: str, queue: str, tenant: str, limit: int) -> None:
        match what:
            case "pause":
                self.pause_queue(queue)
            case "resume":
                self.resume_queues()
            case "limit queue":
                self.doors["acme"].queues.limit(queue, limit)
            case "limit tenant":
                self.doors["acme"].tenants.limit(tenant, limit)
            case "unlimit":
                self.doors["acme"].queues.limit(queue, None)
                self.doors["acme"].tenants.limit(tenant, None)
            case "weigh":
                self.doors["acme"].tenants.weight(tenant, 2 / limit)

    @precondition(lambda self: self.jobs(status="QUEUED"))
    @rule(number=numbers)
    def close(self, number: int) -> None:
        """A queue is paused while jobs of it are promoted."""
        self.pause_queue(self.pick(self.jobs(status="QUEUED"), number).queue)

    @precondition(lambda self: any(self.last.paused(queue) for queue in QUEUES))
    @rule()
    def open(self) -> None:
        self.resume_queues()

    def pause_queue(self, queue: str) -> None:
        self.doors["acme"].queues.pause(queue)
        for job in self.jobs(status="QUEUED", queue=queue):
            self.expected.fates[job.id] = {
                "status": "PENDING", "reason": "ready", "ready_at": job.ready_at, "attempt": job.attempt,
            }  # fmt: skip

    def resume_queues(self) -> None:
        """Also those that are not paused, which changes nothing."""
        for queue in QUEUES:
            self.doors["acme"].queues.resume(queue)
