"""Workers and their leases: whoever was declared dead owns nothing any more, and what it left is recovered once."""

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from jobq.models import Outcome
from jobq.retry import RetryPolicy
from jobq.states import Desired
from jobq.store import held, workers
from jobq.store.jobs import new_id
from jobq.store.workers import Renewal
from tests.stores import QUEUE, Store, ended, failed, identity, wanted

GRACE = 300.0
RETRIED = {"retry": {"retry_lost": True}}
FINAL = {"retry": {"retry_lost": False}}


@pytest.fixture
def worker(store: Store) -> UUID:
    return store.worker()


def renew(store: Store, worker: UUID, *, lease: float = 30.0, host: str | None = None) -> Renewal:
    return store.do(workers.renew, worker, lease, host)


def seen(store: Store, worker: UUID) -> Any:
    """The worker's row."""
    (row,) = (row for row in store.look(workers.list_workers, everything=True) if row.id == worker)
    return row


def die(store: Store, *ids: UUID) -> None:
    assert set(store.do(workers.declare_dead, ids)) == set(ids)


def release_lost(store: Store, grace: float = GRACE) -> int:
    return store.do(workers.release_lost, reattach_grace=grace)


# --- leases ----------------------------------------------------------------------------------------------------------


def test_a_registered_worker_is_listed_with_what_it_offers(store: Store) -> None:
    me = identity(queues={"a": 1, "b": 2000}, host="engine-1")
    store.do(workers.register, me, 30.0)
    row = seen(store, me.id)
    assert (row.name, row.pid, row.queues, row.host, row.running) == (me.name, 4711, {"a": 1, "b": 2000}, "engine-1", 0)
    assert (row.draining_at, row.dead_at, row.stopped_at) == (None, None, None)
    assert timedelta(seconds=29) < row.lease_until - row.now <= timedelta(seconds=30)


def test_a_worker_whose_registration_is_repeated_is_there_once(store: Store) -> None:
    """As after a COMMIT whose reply was lost."""
    me = identity()
    for _ in range(2):
        store.do(workers.register, me, 30.0)
    assert [row.id for row in store.look(workers.list_workers)] == [me.id]


def test_a_renewal_extends_the_lease_and_notes_the_host(store: Store, worker: UUID) -> None:
    assert renew(store, worker, lease=120.0, host="engine-1").alive
    row = seen(store, worker)
    assert timedelta(seconds=110) < row.lease_until - row.now <= timedelta(seconds=120)
    assert row.host == "engine-1"


def test_a_renewal_says_what_the_worker_runs_and_what_is_wanted_of_it(store: Store, worker: UUID) -> None:
    plain, canceled = store.running(worker, 2)
    store.running_one(store.worker())
    store.cancel(canceled.id)
    assert renew(store, worker) == Renewal(
        alive=True, running={plain.id: (1, Desired.RUN), canceled.id: (1, Desired.CANCEL)}
    )
    store.end(worker, plain)
    assert set(renew(store, worker).running) == {canceled.id}


def test_a_worker_that_was_declared_dead_cannot_renew_and_owns_nothing(store: Store, worker: UUID) -> None:
    store.running_one(worker)
    die(store, worker)
    before = seen(store, worker)
    assert renew(store, worker) == Renewal(alive=False, running={})
    assert seen(store, worker).lease_until == before.lease_until


def test_a_worker_that_nobody_knows_is_as_good_as_dead(store: Store) -> None:
    assert not renew(store, new_id()).alive


def test_a_lease_that_ran_out_may_still_be_renewed_until_somebody_declared_the_worker_dead(store: Store) -> None:
    late = store.worker(lease=-60)
    assert renew(store, late).alive
    assert store.do(workers.declare_dead) == []


def test_only_workers_whose_lease_ran_out_are_declared_dead_and_only_once(store: Store, worker: UUID) -> None:
    late = store.worker(lease=-1)
    assert store.do(workers.declare_dead) == [late]
    died_at = seen(store, late).dead_at
    assert store.do(workers.declare_dead) == []
    assert seen(store, late).dead_at == died_at
    assert seen(store, worker).dead_at is None


def test_a_worker_whose_process_is_gone_is_declared_dead_by_its_id_at_once(store: Store, worker: UUID) -> None:
    other = store.worker()
    assert store.do(workers.declare_dead, [worker, new_id()]) == [worker]
    assert store.do(workers.declare_dead, [worker]) == []
    assert seen(store, other).dead_at is None


def test_leases_are_judged_by_the_instant_that_was_looked_at(store: Store, worker: UUID) -> None:
    before = store.look(workers.database_now)
    store.execute("UPDATE jobq_workers SET lease_until = renewed_at")
    assert store.do(workers.declare_dead, at=before - timedelta(seconds=1)) == []
    assert store.do(workers.declare_dead, at=before + timedelta(seconds=1)) == [worker]


def test_a_worker_that_died_before_the_clock_was_set_back_is_dead_although_its_lease_ends_late(
    store: Store, worker: UUID
) -> None:
    hour = timedelta(hours=1)
    assert store.do(workers.declare_dead, at=store.look(workers.database_now) - hour) == [worker]


def test_declaring_nobody_dead_kills_nobody(store: Store) -> None:
    late = store.worker(lease=-1)
    assert store.do(workers.declare_dead, []) == []
    assert seen(store, late).dead_at is None


def test_a_draining_worker_is_told_so_and_keeps_its_jobs(store: Store, worker: UUID) -> None:
    job = store.running_one(worker)
    assert store.do(workers.set_draining, worker)
    since = seen(store, worker).draining_at
    assert store.do(workers.set_draining, worker)
    assert seen(store, worker).draining_at == since
    renewal = renew(store, worker)
    assert (renewal.alive, renewal.draining, set(renewal.running)) == (True, True, {job.id})


def test_a_dead_worker_cannot_drain(store: Store, worker: UUID) -> None:
    die(store, worker)
    assert not store.do(workers.set_draining, worker)
    assert not store.do(workers.set_draining, new_id())


def test_a_worker_that_signs_off_is_dead_at_once_and_what_it_left_is_recovered(store: Store, worker: UUID) -> None:
    job = store.running_one(worker, **RETRIED)
    store.do(workers.sign_off, worker)
    row = seen(store, worker)
    assert row.dead_at == row.stopped_at
    assert row.dead_at is not None
    assert release_lost(store) == 1
    assert store.state(job.id) == "PENDING·retrying"


def test_neighbours_are_live_workers_of_the_same_process_table(store: Store) -> None:
    here = store.worker(pid=1, process_start="5")
    store.worker(boot_id="another boot")
    store.worker(pid_namespace="a container")
    die(store, store.worker())
    (row,) = store.look(workers.neighbours, "boot", "pid:[1]")
    assert (row.id, row.pid, row.process_start) == (here, 1, "5")


def test_workers_are_listed_newest_first_with_their_running_jobs_and_the_dead_only_on_request(store: Store) -> None:
    first, second = store.worker(), store.worker()
    store.running(first, 3)
    die(store, store.worker())
    rows = store.look(workers.list_workers)
    assert [(row.id, row.running) for row in rows] == [(second, 0), (first, 3)]
    assert len(store.look(workers.list_workers, everything=True)) == 3


# --- the jobs of the dead --------------------------------------------------------------------------------------------


def test_jobs_of_a_live_worker_are_never_touched(store: Store) -> None:
    late = store.worker(lease=-3600)
    job = store.running_one(late, **RETRIED) if store.worker() else None
    assert job is not None
    assert release_lost(store) == 0
    assert store.state(job.id) == "RUNNING·executing"


def test_a_lost_attempt_is_tried_again_where_the_job_may_be_done_twice(store: Store, worker: UUID) -> None:
    job = store.running_one(worker, **RETRIED)
    die(store, worker)
    assert release_lost(store) == 1
    shown = store.job(job.id)
    assert (store.state(job.id), shown.failures, shown.worker_id, shown.error_class) == (
        "PENDING·retrying", 1, None, "lost",
    )  # fmt: skip
    (kept,) = store.attempts(job.id)
    assert (kept.outcome, kept.reason, kept.charged, kept.worker_id) == ("LOST", "unresolved", True, worker)
    assert kept.started_at == job.started_at
    assert release_lost(store) == 0


def test_a_lost_attempt_is_unresolved_where_doing_it_twice_would_be_worse(store: Store, worker: UUID) -> None:
    explicit, silent = store.running_one(worker, **FINAL), store.running_one(worker)
    die(store, worker)
    assert release_lost(store) == 2
    assert store.states([explicit.id, silent.id]) == ["FAILED·unresolved", "FAILED·unresolved"]
    assert store.job(explicit.id).message == "the worker died, and nobody can say how the attempt ended"


def test_a_job_that_was_lost_too_often_is_unresolved(store: Store, worker: UUID) -> None:
    job = store.running_one(worker, max_attempts=1, **RETRIED)
    die(store, worker)
    release_lost(store)
    assert (store.state(job.id), store.job(job.id).failures) == ("FAILED·unresolved", 1)


def test_a_lost_job_that_somebody_canceled_is_canceled(store: Store, worker: UUID) -> None:
    by_ann, by_newer = store.running(worker, 2, **RETRIED)
    store.cancel(by_ann.id)
    store.pretend(by_newer.id, desired="CANCEL", cancel_reason="overlap")
    die(store, worker)
    assert release_lost(store) == 2
    assert store.states([by_ann.id, by_newer.id]) == ["CANCELED·by_user", "CANCELED·overlap"]


def test_an_unresolved_job_counts_against_its_workflow(store: Store, worker: UUID) -> None:
    flow = store.workflow()
    (job_id,) = store.add(store.job_of(flow))
    store.promote()
    store.claim(worker, [job_id])
    die(store, worker)
    release_lost(store)
    assert store.flow(flow).consecutive_failures == 1


def test_lost_jobs_are_released_in_batches(store: Store, worker: UUID) -> None:
    store.running(worker, 5)
    die(store, worker)
    assert [store.do(workers.release_lost, reattach_grace=GRACE, limit=2) for _ in range(4)] == [2, 2, 1, 0]


def test_a_lost_job_runs_again_on_another_worker(store: Store, worker: UUID) -> None:
    other = store.worker()
    job = store.running_one(worker, **RETRIED)
    die(store, worker)
    release_lost(store)
    again = store.again(other, job.id)
    assert again.attempt == 2
    assert store.end(other, again) == {job.id}
    assert [kept.outcome for kept in store.attempts(job.id)] == ["LOST", "COMPLETED"]


# --- work that outlives its worker -----------------------------------------------------------------------------------


def test_work_that_lives_on_a_host_waits_for_a_worker_there_before_it_is_given_up(store: Store, worker: UUID) -> None:
    job = store.running(worker, host="engine-1")[0]
    die(store, worker)
    assert release_lost(store) == 0
    assert store.state(job.id) == "RUNNING·preparing"
    store.execute("UPDATE jobq_workers SET dead_at = :at", at=_earlier(store, 301))
    assert release_lost(store) == 1
    assert store.state(job.id) == "FAILED·unresolved"


def _earlier(store: Store, seconds: float) -> Any:
    at = store.look(workers.database_now) - timedelta(seconds=seconds)
    return at if store.dialect == "postgresql" else at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def test_a_live_worker_on_the_host_takes_over_what_the_dead_left_at_the_same_attempt(
    store: Store, worker: UUID
) -> None:
    heir = store.worker(host="engine-1")
    job = store.running(worker, host="engine-1", spec={"image": "x"}, state=[1])[0]
    store.do(held.save_checkpoints, {job.id: {"position": 7}})
    die(store, worker)
    (taken,) = store.do(workers.adopt, heir, "engine-1", 50)
    assert (taken.id, taken.attempt, taken.started_at) == (job.id, 1, job.started_at)
    assert (taken.spec, taken.state, taken.checkpoint) == ({"image": "x"}, [1], {"position": 7})
    assert store.job(job.id).worker_id == heir
    assert store.do(workers.adopt, heir, "engine-1", 50) == []
    # then only the new owner's outcome counts
    assert store.end(worker, job) == set()
    assert store.end(heir, taken) == {job.id}


def test_work_is_taken_over_only_on_its_own_host_only_from_the_dead_and_only_by_the_living(
    store: Store, worker: UUID
) -> None:
    heir = store.worker(host="engine-1")
    job = store.running(worker, host="engine-1")[0]
    plain = store.running_one(worker)
    assert store.do(workers.adopt, heir, "engine-1", 50) == []  # its owner lives
    die(store, worker)
    assert store.do(workers.adopt, heir, "engine-2", 50) == []
    late = store.worker(host="engine-1")
    die(store, late)
    assert store.do(workers.adopt, late, "engine-1", 50) == []
    assert [taken.id for taken in store.do(workers.adopt, heir, "engine-1", 50)] == [job.id]
    assert store.job(plain.id).worker_id == worker  # no host: the reaper's


def test_a_worker_takes_over_no_more_than_it_asked_for(store: Store, worker: UUID) -> None:
    heir = store.worker(host="engine-1")
    store.running(worker, 3, host="engine-1")
    die(store, worker)
    assert [len(store.do(workers.adopt, heir, "engine-1", 2)) for _ in range(3)] == [2, 1, 0]


# --- claims whose reply was lost -------------------------------------------------------------------------------------


def test_jobs_that_a_live_worker_does_not_hold_are_given_back(store: Store, worker: UUID) -> None:
    unheld, held, other_attempt = store.running(worker, 3, **RETRIED)
    ids = [unheld.id, held.id, other_attempt.id]
    held_now = {held.id: 1, other_attempt.id: 7}
    assert store.do(workers.release_unheld, worker, held_now, ids) == 2
    assert store.states(ids) == ["PENDING·retrying", "RUNNING·executing", "PENDING·retrying"]
    assert store.job(unheld.id).message == "the claim was never confirmed to the worker"


def test_jobs_of_another_worker_are_not_given_back(store: Store, worker: UUID) -> None:
    job = store.running_one(store.worker())
    assert store.do(workers.release_unheld, worker, {}, [job.id]) == 0
    assert store.state(job.id) == "RUNNING·executing"


def test_a_job_that_ended_meanwhile_is_not_given_back(store: Store, worker: UUID) -> None:
    job = store.running_one(worker)
    store.end(worker, job)
    assert store.do(workers.release_unheld, worker, {}, [job.id]) == 0
    assert store.state(job.id) == "COMPLETED·succeeded"


# --- races told in order ---------------------------------------------------------------------------------------------


def test_a_worker_that_died_and_came_back_starts_from_nothing(store: Store, worker: UUID) -> None:
    job = store.running_one(worker, **RETRIED)
    die(store, worker)
    release_lost(store)
    reborn = store.worker()
    assert renew(store, reborn).running == {}
    assert store.end(worker, job) == set()
    again = store.again(reborn, job.id)
    assert store.record(worker, ended(job)) == set()
    assert store.end(reborn, again) == {job.id}


def test_a_canceled_job_stays_wanted_canceled_when_it_is_taken_over(store: Store, worker: UUID) -> None:
    heir = store.worker(host="engine-1")
    job = store.running(worker, host="engine-1", **RETRIED)[0]
    store.cancel(job.id)
    die(store, worker)
    (taken,) = store.do(workers.adopt, heir, "engine-1", 50)
    assert wanted(store, job.id) is Desired.CANCEL
    assert renew(store, heir).running == {job.id: (1, Desired.CANCEL)}
    store.end(heir, taken, Outcome.stopped())
    assert store.state(job.id) == "CANCELED·by_user"


def test_what_a_dead_worker_had_queued_for_it_is_claimed_by_others(store: Store, worker: UUID) -> None:
    other = store.worker()
    ids = store.queued(3)
    die(store, worker)
    assert {job.id for job in store.claim_waiting(other, 9, QUEUE)} == set(ids)


def test_an_attempt_that_failed_for_good_is_not_lost_again(store: Store, worker: UUID) -> None:
    job = store.running_one(worker, max_attempts=1, **RETRIED)
    store.end(worker, job, failed(), retry=RetryPolicy())
    die(store, worker)
    assert release_lost(store) == 0
    assert store.state(job.id) == "FAILED·error"


# --- schedulers ------------------------------------------------------------------------------------------------------


def test_a_scheduler_is_seen_while_it_says_that_it_lives(store: Store) -> None:
    scheduler = new_id()
    store.do(workers.scheduler_seen, scheduler, "here:1", "0.1")
    store.do(workers.scheduler_seen, scheduler, "here:1", "0.1")
    (row,) = store.look(workers.live_schedulers)
    assert (row.id, row.name) == (scheduler, "here:1")
    assert store.look(workers.live_schedulers, within=-1) == []
