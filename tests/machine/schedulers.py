"""Rules: what schedulers do, each step of theirs by itself, and what may be lost between two of them."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import Any
from uuid import UUID

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from jobq.store import promote, prune, rollup, stale, workers
from jobq.store.stale import Walk
from scheduler.resend import Resender
from tests.machine.fates import died, over
from tests.machine.flows import Flows
from tests.machine.ground import is_ready
from tests.machine.picture import places

GRACE = 300.0
"""Seconds for which work that lives on a host waits for a worker there."""
_A_WHILE = timedelta(minutes=20)
"""Nobody asks before, for there is no limit as short as that."""


class Bag:
    """A broker whose messages are the machine's: it only tells how many there are."""

    def __init__(self, hints: list[tuple[str, tuple[UUID, ...]]]) -> None:
        self._hints = hints

    def depth(self, queue: str) -> int:
        return sum(name == queue for name, _ in self._hints)


class Schedulers(Flows):
    """Wake, promote, publish (or not), send again, declare dead, release, prune."""

    def publish(self, queue: str, ids: list[UUID]) -> None:
        self.hints.append((queue, tuple(ids)))

    @precondition(lambda self: any(job.due_at is not None for job in self.last.live()))
    @rule()
    def wake(self) -> None:
        due = [job for job in self.last.live() if job.due_at is not None and job.due_at <= self.clock.at]
        assert self.store.do(promote.wake) == len(due)
        for job in due:
            self.expected.fates[job.id] = {
                "status": "PENDING", "reason": "ready", "ready_at": job.due_at, "due_at": None,
            }  # fmt: skip

    # --- promote -----------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.jobs(reason="ready"))
    @rule(published=st.sampled_from([True, True, False]))
    def promote(self, published: bool) -> None:
        """Not published: the scheduler died behind its commit."""
        batches = self.store.promote()
        self.judge(batches)
        for queue, ids in sorted(batches.items()):
            if published:
                self.publish(queue, ids)
            for job_id in ids:
                self.expected.fates[job_id] = {
                    "status": "QUEUED", "reason": "dispatched", "queued_at": self.clock.at, "sends": 0,
                    "attempt": self.last.jobs[job_id].attempt,
                }  # fmt: skip

    def judge(self, batches: dict[str, list[UUID]]) -> None:
        """As many as there is room for, the best first, and none was left out without a reason."""
        chosen = [self.last.jobs[job_id] for ids in batches.values() for job_id in ids]
        assert all(job.reason == "ready" for job in chosen)
        left = [job for job in self.jobs(reason="ready") if job not in chosen]
        flying = self.last.in_flight()
        for job in chosen:
            flying.update(places(job))
        full = {place for place, limit in self.last.limits().items() if flying[place] >= limit}
        room = self.room()
        room.subtract(job.queue for job in chosen)
        assert all(room[queue] >= 0 for queue in batches), "more than there is room for"
        for job in left:
            lawful = room[job.queue] <= 0 or self.last.paused(job.queue) or full & {*places(job)}
            assert lawful, f"left out for no reason: {job}"
            for other in chosen:
                same = (job.queue, job.tenant, job.lane) == (other.queue, other.tenant, other.lane)
                assert not same or rank(other) < rank(job), f"{other} was no better than {job}"

    def room(self) -> Counter[str]:
        """Slots of the workers that take jobs, less what holds one or is on its way to one."""
        room = self.last.slots()
        for job in self.last.live():
            owner = self.last.workers.get(job.worker_id)
            if job.status == "QUEUED" or (owner is not None and self.last.takes_jobs(owner)):
                room[job.queue] -= 1
        return room

    @precondition(lambda self: self.jobs(status="QUEUED"))
    @rule(published=st.sampled_from([True, True, False]))
    def send_again(self, published: bool) -> None:
        """What nobody claimed is looked into; a hint for it goes out unless the broker still has some."""
        late = [job for job in self.jobs(status="QUEUED") if job.next_send_at <= self.clock.at]
        sent: list[UUID] = []

        def publish(queue: str, ids: list[UUID]) -> None:
            sent.extend(ids)
            if published:
                self.publish(queue, ids)

        Resender(self.stage.database, Bag(self.hints), publish).tick()  # type: ignore[arg-type]
        assert set(sent) <= {job.id for job in late}
        depth, slots = Counter(queue for queue, _ in self.hints), self.last.slots()
        for job in late:
            assert job.id in sent or depth[job.queue] or not slots[job.queue], (
                "the broker is empty, and nobody was told"
            )
            pause = min(promote.FIRST_RESEND * 2.0 ** (job.sends + (job.id in sent)), 60.0)
            self.expected.fates[job.id] = {
                **job._asdict(), "sends": job.sends + (job.id in sent),
                "next_send_at": self.clock.at + timedelta(seconds=pause),
            }  # fmt: skip

    # --- the dead ----------------------------------------------------------------------------------------------------

    def late(self) -> set[UUID]:
        """Workers whose lease ran out, and nobody has said so yet."""
        every = self.last.workers.values()
        return {worker.id for worker in every if worker.dead_at is None and worker.lease_until < self.clock.at}

    @precondition(lambda self: self.late())
    @rule()
    def declare_dead(self) -> None:
        """Those whose lease ran out, and no other."""
        assert set(self.store.do(workers.declare_dead)) == self.late()

    @precondition(lambda self: self.left_by_the_dead())
    @rule()
    def release_lost(self) -> None:
        for job in self.left_by_the_dead():
            patient = self.last.workers[job.worker_id].dead_at >= self.clock.at - timedelta(seconds=GRACE)
            if job.host is None or not patient:
                self.expect_death(job)
        assert self.store.do(workers.release_lost, reattach_grace=GRACE) == len(self.expected.fates)

    def left_by_the_dead(self) -> list[Any]:
        return [
            job for job in self.jobs(status="RUNNING") if self.last.workers[job.worker_id].dead_at is not None
        ]  # fmt: skip

    def expect_death(self, job: Any) -> None:
        fate, ending = died(job, self.policy(job), self.clock.at)
        self.expected.fates[job.id] = {**fate, "worker_id": None, "host": None}
        self.expected.endings[job.id, job.attempt] = ending

    # --- the stale ---------------------------------------------------------------------------------------------------

    def overdue(self) -> set[UUID]:
        """What was ready, and held by nobody, for longer than it may wait."""
        return {
            job.id
            for job in self.last.live()
            if job.stale_after is not None
            and is_ready(job)
            and self.waited[job.id] > timedelta(seconds=job.stale_after)
            and not self.last.is_held(job)
        }

    @precondition(lambda self: any(job.stale_after and self.waited[job.id] > _A_WHILE for job in self.last.live()))
    @rule()
    def collect_stale(self) -> None:
        """All that waited too long, and nothing else; where the record of a hold is gone, nobody can say."""
        walk = Walk()
        found = self.store.look(stale.look, walk, 2)
        while walk.place is not None:
            found += self.store.look(stale.look, walk, 2)
        ended = self.store.do(stale.collect, found)
        assert ended ^ self.overdue() <= self.forgotten
        for job_id in ended:
            self.expected.fates[job_id] = over("FAILED", "unresolved", self.clock.at)

    # --- prune -------------------------------------------------------------------------------------------------------

    @precondition(lambda self: any(job.finished_at is not None for job in self.last.jobs.values()))
    @rule(hours=st.sampled_from([25, 48]))
    def prune(self, hours: int) -> None:
        """Finished jobs whose time is over, and their keys, are forgotten; nothing else is."""
        kept, day_ago = timedelta(hours=hours), self.clock.at - timedelta(seconds=prune.REQUESTS_KEPT)
        self.requests = {key: request for key, request in self.requests.items() if request[2] >= day_ago}
        promised = {job_id for _, job_id, _ in self.requests.values()}
        for job in self.jobs():
            flow = self.last.flows.get(job.workflow_id)
            own = kept if flow is None or flow.retention is None else timedelta(seconds=flow.retention)
            if job.finished_at is not None and job.finished_at < self.clock.at - own and job.id not in promised:
                self.expected.pruned.add(job.id)
        assert self.store.do(rollup.roll_up, lag=0.0) is not None
        assert self.store.do(prune.prune, prune.Kept.alike(kept.total_seconds())).jobs == len(self.expected.pruned)
        self.forgotten |= {
            job.id for job in self.last.live() if (job.ready_at or job.due_at or self.clock.at) < self.clock.at - kept
        }


def rank(job: Any) -> Any:
    return -job.priority, job.ready_at, job.id
