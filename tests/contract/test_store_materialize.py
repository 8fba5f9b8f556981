"""Schedule slots become jobs: one job a slot, whatever the policies, however many schedulers look."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import UUID

import pytest

from jobq.models import Outcome, Workflow
from jobq.states import Desired, Trigger
from jobq.store import workflows
from jobq.store.claim import Claimed
from jobq.store.materialize import materialize
from jobq.store.workers import database_now
from tests.stores import Store, failed, wanted

MINUTE = timedelta(minutes=1)


def states(store: Store, flow: Workflow) -> list[str]:
    return [f"{job.status}·{job.reason}" for job in store.jobs_of(flow)]


def fire(store: Store, flow: Workflow) -> UUID:
    """One slot comes due now; the job that it made."""
    before = {job.id for job in store.jobs_of(flow)}
    store.due(store.flow(flow), 0)
    store.materialize()
    (new,) = {job.id for job in store.jobs_of(flow)} - before
    return new


def start(store: Store, worker: UUID, job_id: UUID) -> Claimed:
    store.promote()
    (claimed,) = store.claim(worker, [job_id])
    return claimed


# --- slots -----------------------------------------------------------------------------------------------------------


def test_a_slot_that_comes_due_makes_one_automatic_job(store: Store) -> None:
    flow = store.workflow(
        interval=MINUTE, name="nightly", kind="HEARTBEAT", queue="probes", spec={"a": 1}, priority=7, max_attempts=2,
        timeout=timedelta(seconds=9), stale_after=timedelta(days=1), retry={"retry_lost": True},
    )  # fmt: skip
    slot = store.due(flow, 0.5)
    done = store.materialize()
    (job,) = store.jobs_of(flow)
    assert (done.workflows, done.jobs) == (1, 1)
    assert (job.status, job.reason, job.trigger) == ("PENDING", "ready", Trigger.AUTOMATIC)
    assert (job.slot_at, job.scheduled_at) == (slot, slot)
    assert (job.name, job.kind, job.queue, job.priority, job.timeout) == ("nightly", "HEARTBEAT", "probes", 7, 9.0)
    assert (job.tenant, job.workflow_id, job.generation, job.max_attempts) == ("acme", flow.id, 1, 2)
    assert (store.row(job.id).stale_after, store.row(job.id).lane) == (86400.0, "")


def test_the_next_slot_is_counted_from_the_last_one_and_not_from_when_somebody_looked(store: Store) -> None:
    flow = store.workflow(interval=MINUTE)
    slot = store.due(flow, 7)
    store.materialize()
    assert store.flow(flow).next_fire_at == slot + MINUTE


def test_nothing_happens_before_the_slot(store: Store) -> None:
    flow = store.workflow(interval=MINUTE)
    done = store.materialize()
    assert (done.workflows, done.jobs) == (0, 0)
    assert done.wait is not None
    assert 50 < done.wait <= 60
    assert store.jobs_of(flow) == []


def test_without_schedules_there_is_nothing_to_wait_for(store: Store) -> None:
    store.workflow()
    assert store.materialize().wait is None


def test_workflows_that_are_not_active_make_no_jobs(store: Store) -> None:
    for verb in (workflows.pause, workflows.terminate):
        flow = store.workflow(interval=MINUTE)
        store.due(flow, 5)
        store.do(verb, None, flow.id, "ann")
    store.materialize()
    assert store.count("jobq_jobs") == 0


def test_a_tick_takes_the_longest_overdue_workflows_and_says_that_there_are_more(store: Store) -> None:
    flows = [store.workflow(interval=MINUTE) for _ in range(3)]
    for flow, seconds in zip(flows, (1, 9, 5), strict=True):
        store.due(flow, seconds)
    done = store.do(materialize, 2)
    assert (done.workflows, done.wait) == (2, 0.0)
    assert [len(store.jobs_of(flow)) for flow in flows] == [0, 1, 1]
    assert store.do(materialize, 2).workflows == 1


def test_a_workflow_with_a_concurrency_makes_jobs_in_a_lane_of_their_own(store: Store) -> None:
    flow = store.workflow(interval=MINUTE, concurrency=1)
    assert store.row(fire(store, flow)).lane == flow.id.hex


def test_a_slot_that_already_has_its_job_gets_no_second(store: Store) -> None:
    flow = store.workflow(interval=MINUTE)
    slot = store.due(flow, 1)
    store.materialize()
    store.fire_at(flow, slot)
    store.materialize()
    assert [job.slot_at for job in store.jobs_of(flow)] == [slot]
    assert store.flow(flow).next_fire_at == slot + MINUTE


@pytest.mark.parametrize("flows", [1, 20])
def test_two_schedulers_at_once_never_make_two_jobs_of_a_slot(store: Store, flows: int) -> None:
    made = [store.workflow(interval=MINUTE, overlap="allow", misfire="catch_up") for _ in range(flows)]
    for round_ in range(3):
        for flow in made:
            store.due(flow, 185 + round_, anchor=600)
        with ThreadPoolExecutor(4) as threads:
            for future in [threads.submit(store.materialize) for _ in range(4)]:
                future.result()
    for flow in made:
        slots = [job.slot_at for job in store.jobs_of(flow)]
        assert len(slots) == len(set(slots)) == 12  # 4 slots are due in each round, and each round has its own rhythm


# --- misfire ---------------------------------------------------------------------------------------------------------


def test_coalesce_runs_the_newest_of_the_missed_slots(store: Store) -> None:
    flow = store.workflow(interval=MINUTE, misfire="coalesce", overlap="allow")
    slot = store.due(flow, 10 * 60 + 31)
    store.materialize()
    assert [job.slot_at for job in store.jobs_of(flow)] == [slot + 10 * MINUTE]
    assert store.flow(flow).next_fire_at == slot + 11 * MINUTE


def test_skip_runs_none_of_the_missed_slots(store: Store) -> None:
    flow = store.workflow(interval=MINUTE, misfire="skip")
    slot = store.due(flow, 10 * 60 + 31)
    store.materialize()
    assert store.jobs_of(flow) == []
    assert store.flow(flow).next_fire_at == slot + 11 * MINUTE


def test_catch_up_runs_the_newest_missed_slots_as_many_as_allowed(store: Store) -> None:
    flow = store.workflow(interval=MINUTE, misfire="catch_up", max_catch_up=3, overlap="allow")
    slot = store.due(flow, 10 * 60 + 31)
    store.materialize()
    assert [job.slot_at for job in store.jobs_of(flow)] == [slot + k * MINUTE for k in (8, 9, 10)]


@pytest.mark.parametrize("misfire", ["coalesce", "skip", "catch_up"])
def test_a_slot_within_its_grace_is_on_time_under_every_policy(store: Store, misfire: str) -> None:
    flow = store.workflow(interval=MINUTE, misfire=misfire)
    slot = store.due(flow, 10)
    store.materialize()
    assert [job.slot_at for job in store.jobs_of(flow)] == [slot]


def test_the_grace_of_a_workflow_decides_what_is_missed(store: Store) -> None:
    patient = store.workflow(interval=MINUTE, misfire="skip", misfire_grace=timedelta(minutes=5), overlap="allow")
    strict = store.workflow(interval=MINUTE, misfire="skip", misfire_grace=timedelta(seconds=1))
    for flow in (patient, strict):
        store.due(flow, 150)
    store.materialize()
    assert (len(store.jobs_of(patient)), len(store.jobs_of(strict))) == (3, 0)


def test_missed_slots_of_a_cron_workflow_follow_the_same_policies(store: Store) -> None:
    flow = store.workflow(cron="* * * * *", misfire="coalesce", overlap="allow")
    now = store.look(database_now)
    store.fire_at(flow, now.replace(second=0, microsecond=0) - timedelta(hours=1))
    store.materialize()
    slots = [job.slot_at for job in store.jobs_of(flow)]
    assert 1 <= len(slots) <= 2  # the newest missed one, and one that is on time
    assert all(slot is not None and now - slot < timedelta(minutes=3) for slot in slots)


# --- overlap ---------------------------------------------------------------------------------------------------------


def test_without_an_earlier_job_every_policy_runs_the_new_one(store: Store) -> None:
    for overlap in ("allow", "skip", "queue", "cancel_running"):
        flow = store.workflow(interval=MINUTE, overlap=overlap)
        fire(store, flow)
        assert states(store, flow) == ["PENDING·ready"]


def test_allow_runs_any_number_at_once(store: Store) -> None:
    worker = store.worker()
    flow = store.workflow(interval=MINUTE, overlap="allow")
    start(store, worker, fire(store, flow))
    fire(store, flow)
    fire(store, flow)
    assert states(store, flow) == ["RUNNING·executing", "PENDING·ready", "PENDING·ready"]


@pytest.mark.parametrize("earlier", ["ready", "queued", "running", "retrying"])
def test_skip_cancels_the_new_job_while_an_earlier_one_is_under_way(store: Store, earlier: str) -> None:
    worker = store.worker()
    flow = store.workflow(interval=MINUTE, overlap="skip", max_attempts=3)
    first = fire(store, flow)
    if earlier == "queued":
        store.promote()
    if earlier in {"running", "retrying"}:
        job = start(store, worker, first)
        if earlier == "retrying":
            store.end(worker, job, failed())
    before = store.state(first)
    second = store.job(fire(store, flow))
    assert (second.status, second.reason, second.finished_at) == ("CANCELED", "overlap", second.created_at)
    assert store.state(first) == before


def test_skip_runs_the_next_one_after_the_earlier_one_ended(store: Store) -> None:
    worker = store.worker()
    flow = store.workflow(interval=MINUTE, overlap="skip")
    store.end(worker, start(store, worker, fire(store, flow)))
    fire(store, flow)
    assert states(store, flow) == ["COMPLETED·succeeded", "PENDING·ready"]


def test_queue_lets_one_wait_and_cancels_newer_ones(store: Store) -> None:
    worker = store.worker()
    flow = store.workflow(interval=MINUTE, overlap="queue")
    running = start(store, worker, fire(store, flow))
    waiting, newer = fire(store, flow), fire(store, flow)
    assert states(store, flow) == ["RUNNING·executing", "PENDING·blocked", "CANCELED·overlap"]
    assert store.promote() == {}
    # when the earlier one ends, the blocked one is released in the same moment
    store.end(worker, running, failed())
    assert store.states([waiting, newer]) == ["PENDING·ready", "CANCELED·overlap"]
    assert store.job(waiting).ready_at is not None


def test_a_blocked_job_is_released_however_the_earlier_one_ended(store: Store) -> None:
    worker = store.worker()
    for end in ("cancel", "stop", "success"):
        flow = store.workflow(interval=MINUTE, overlap="queue")
        running = start(store, worker, fire(store, flow))
        blocked = fire(store, flow)
        store.cancel(running.id)
        if end == "success":
            store.end(worker, running)
        else:
            store.end(worker, running, failed())
        assert store.state(blocked) == "PENDING·ready"


def test_a_blocked_job_stays_blocked_while_the_earlier_one_is_tried_again(store: Store) -> None:
    worker = store.worker()
    flow = store.workflow(interval=MINUTE, overlap="queue", max_attempts=2)
    running = start(store, worker, fire(store, flow))
    blocked = fire(store, flow)
    store.end(worker, running, failed())
    assert store.state(blocked) == "PENDING·blocked"
    assert store.release_blocked() == 0
    store.end(worker, store.again(worker, running.id), failed())
    assert store.state(blocked) == "PENDING·ready"


def test_the_sweep_releases_a_job_whose_predecessor_ended_unseen(store: Store) -> None:
    flow = store.workflow(interval=MINUTE, overlap="queue")
    first = fire(store, flow)
    blocked = fire(store, flow)
    assert states(store, flow) == ["PENDING·ready", "CANCELED·overlap"]  # it waits already: one is enough
    store.pretend(blocked, slot_at=None)
    running = start(store, store.worker(), first)
    blocked = fire(store, flow)
    # given that the earlier one ended in a transaction that did not see the later one
    store.pretend(running.id, status="COMPLETED", reason="succeeded", finished_at=0, worker_id=None)
    assert store.state(blocked) == "PENDING·blocked"
    assert store.release_blocked() == 1
    assert store.state(blocked) == "PENDING·ready"
    assert store.release_blocked() == 0


def test_the_sweep_releases_only_the_oldest_of_several_blocked_jobs(store: Store) -> None:
    flow = store.workflow(interval=MINUTE, overlap="allow")
    slots = [fire(store, flow) for _ in range(3)]
    for place, job_id in enumerate(slots):
        store.pretend(job_id, reason="blocked", slot_at=-100 + place, ready_at=None)
    assert store.release_blocked() == 1
    assert store.states(slots) == ["PENDING·ready", "PENDING·blocked", "PENDING·blocked"]
    assert store.release_blocked() == 0


def test_manual_jobs_hold_no_slot_back(store: Store) -> None:
    worker = store.worker()
    flow = store.workflow(interval=MINUTE, overlap="skip")
    manual = store.add(store.job_of(flow))[0]
    start(store, worker, manual)
    fire(store, flow)
    assert states(store, flow) == ["RUNNING·executing", "PENDING·ready"]


def test_cancel_running_stops_the_earlier_one_and_waits_for_its_end(store: Store) -> None:
    worker = store.worker()
    flow = store.workflow(interval=MINUTE, overlap="cancel_running")
    running = start(store, worker, fire(store, flow))
    newer = fire(store, flow)
    assert (store.state(running.id), wanted(store, running.id)) == ("RUNNING·executing", Desired.CANCEL)
    assert store.state(newer) == "PENDING·blocked"
    store.end(worker, running, Outcome.stopped())
    assert store.states([running.id, newer]) == ["CANCELED·overlap", "PENDING·ready"]


def test_cancel_running_cancels_what_only_waits_at_once(store: Store) -> None:
    flow = store.workflow(interval=MINUTE, overlap="cancel_running")
    older, newer = fire(store, flow), fire(store, flow)
    assert store.states([older, newer]) == ["CANCELED·overlap", "PENDING·ready"]


def test_cancel_running_replaces_the_one_that_waits_for_the_end_of_the_first(store: Store) -> None:
    worker = store.worker()
    flow = store.workflow(interval=MINUTE, overlap="cancel_running")
    start(store, worker, fire(store, flow))
    second, third = fire(store, flow), fire(store, flow)
    assert store.states([second, third]) == ["CANCELED·overlap", "PENDING·blocked"]


def test_cancel_running_leaves_manual_jobs_alone(store: Store) -> None:
    worker = store.worker()
    flow = store.workflow(interval=MINUTE, overlap="cancel_running")
    manual = store.add(store.job_of(flow), store.job_of(flow))
    start(store, worker, manual[0])
    fire(store, flow)
    assert [wanted(store, job_id) for job_id in manual] == [Desired.RUN, Desired.RUN]


def test_of_several_missed_slots_cancel_running_runs_only_the_newest(store: Store) -> None:
    flow = store.workflow(interval=MINUTE, overlap="cancel_running", misfire="catch_up", max_catch_up=3)
    store.due(flow, 10 * 60 + 31)
    store.materialize()
    assert states(store, flow) == ["CANCELED·overlap", "CANCELED·overlap", "PENDING·ready"]


def test_of_several_missed_slots_skip_runs_the_oldest_that_is_made_up_for(store: Store) -> None:
    for overlap in ("skip", "queue"):
        flow = store.workflow(interval=MINUTE, overlap=overlap, misfire="catch_up", max_catch_up=3)
        store.due(flow, 10 * 60 + 31)
        store.materialize()
        assert states(store, flow) == ["PENDING·ready", "CANCELED·overlap", "CANCELED·overlap"]
