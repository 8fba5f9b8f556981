"""Workflows: what is defined, changed, held, ended and removed, and what that means to their jobs."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
import sqlalchemy as sa

from jobq.errors import Conflict, NotFound
from jobq.models import WorkflowStatus
from jobq.states import Status, Trigger
from jobq.store import control, workflows
from jobq.store.jobs import new_id
from tests.stores import Store, ago, ahead, failed

HOUR = timedelta(hours=1)


def events(store: Store, workflow_id: UUID) -> list[tuple[str, str]]:
    rows = store.look(control.list_events, f"workflow:{workflow_id}")
    return [(row.action, row.actor) for row in rows]


# --- create ----------------------------------------------------------------------------------------------------------


def test_a_new_workflow_is_active_and_fires_one_interval_after_its_creation(store: Store) -> None:
    flow = store.workflow(interval=HOUR)
    assert (flow.status, flow.generation, flow.consecutive_failures) == (WorkflowStatus.ACTIVE, 1, 0)
    assert flow.anchor_at == flow.created_at == flow.updated_at
    assert flow.next_fire_at == flow.created_at + HOUR
    assert abs(flow.created_at - datetime.now(UTC)) < timedelta(seconds=10)
    assert events(store, flow.id) == [("create", "ann")]


def test_a_start_sets_the_rhythm_also_when_it_has_passed(store: Store) -> None:
    start = ago(minutes=90).replace(microsecond=250_000)
    flow = store.workflow(interval=HOUR, start_at=start)
    assert (flow.start_at, flow.anchor_at, flow.next_fire_at) == (start, start, start + 2 * HOUR)


def test_a_cron_workflow_fires_at_the_next_instant_of_its_expression(store: Store) -> None:
    flow = store.workflow(cron="30 2 * * *", timezone="Europe/Berlin")
    assert flow.next_fire_at is not None
    assert flow.next_fire_at > flow.created_at
    assert flow.next_fire_at.minute == 30
    assert flow.next_fire_at - flow.created_at <= timedelta(hours=25)


def test_a_workflow_without_a_schedule_never_fires(store: Store) -> None:
    assert store.workflow().next_fire_at is None


def test_every_field_comes_back_as_it_was(store: Store) -> None:
    fields = {
        "name": "nächtlich 🚆", "kind": "HEARTBEAT", "spec": {"endpoint": "https://é/"}, "queue": "probes", "priority": 0,
        "concurrency": 7, "interval": timedelta(microseconds=1_500_001), "misfire": "catch_up",
        "misfire_grace": timedelta(seconds=2.5), "max_catch_up": 3, "overlap": "allow", "timeout": timedelta(seconds=0.25),
        "retry": {"max_attempts": 2}, "max_attempts": 2, "stale_after": timedelta(days=1),
        "retention": timedelta(hours=1), "max_consecutive_job_failures_allowed": 100, "start_at": ahead(days=1),
    }  # fmt: skip
    flow = store.workflow(**fields)
    assert {name: getattr(flow, name) for name in fields} == fields
    assert store.flow(flow) == flow


def test_a_name_is_taken_once_in_a_tenant(store: Store) -> None:
    store.workflow(name="nightly")
    with pytest.raises(Conflict) as refused:
        store.workflow(name="nightly")
    assert refused.value.code == "name_taken"
    assert store.workflow(name="nightly", tenant="other").tenant == "other"
    assert store.count("jobq_workflows") == 2


def test_a_name_that_is_taken_spoils_nothing_else_in_the_transaction(store: Store) -> None:
    store.workflow(name="nightly")
    flow = store.workflow(name="other")
    with store.database.begin() as conn:
        control.limit_queue(conn, "noop", 5, "ann")
        with pytest.raises(Conflict):
            workflows.create(conn, new_id(), "acme", {**_fields(store, flow), "name": "nightly"}, "ann")
    assert store.count("jobq_queues") == 1


def _fields(store: Store, flow: object) -> dict[str, object]:
    names = ("kind", "spec", "queue", "priority", "misfire", "max_catch_up", "overlap", "max_attempts",
             "max_consecutive_job_failures_allowed")  # fmt: skip
    return {name: getattr(flow, name) for name in names}


# --- look ------------------------------------------------------------------------------------------------------------


def test_a_workflow_is_found_by_id_and_by_name_in_its_tenant_only(store: Store) -> None:
    flow = store.workflow(name="nightly")
    assert store.look(workflows.get, "acme", flow.id) == store.look(workflows.get, "acme", "nightly") == flow
    for tenant, key in (("other", flow.id), ("other", "nightly"), ("acme", "Nightly"), ("acme", new_id())):
        with pytest.raises(NotFound):
            store.look(workflows.get, tenant, key)


def test_workflows_are_listed_oldest_first_and_page_by_page(store: Store) -> None:
    flows = [store.workflow() for _ in range(5)]
    store.workflow(tenant="other")
    seen, after = [], None
    while page := store.look(workflows.list_page, "acme", after=after, limit=2):
        seen += page
        after = page[-1].id
    assert seen == flows
    assert len(store.look(workflows.list_page, None, after=None, limit=99)) == 6


def test_workflows_are_listed_by_status(store: Store) -> None:
    active, paused = store.workflow(), store.workflow()
    paused = store.do(workflows.pause, None, paused.id, "ann")
    for status, found in ((WorkflowStatus.ACTIVE, [active]), (WorkflowStatus.PAUSED, [paused])):
        assert store.look(workflows.list_page, "acme", after=None, limit=9, status=status) == found


def test_the_jobs_of_a_workflow_are_counted_by_status(store: Store) -> None:
    flow = store.workflow()
    ids = store.add(*(store.job_of(flow) for _ in range(3)))
    store.enqueue()
    store.cancel(ids[0])
    assert store.look(workflows.count_by_status, flow.id) == {Status.PENDING: 2, Status.CANCELED: 1}
    assert store.look(workflows.count_by_status, flow.id, newest=2) == {Status.PENDING: 2}


# --- update ----------------------------------------------------------------------------------------------------------


def test_an_update_begins_a_new_generation_with_the_counter_at_zero(store: Store) -> None:
    flow = store.workflow()
    store.execute("UPDATE jobq_workflows SET consecutive_failures = 2")
    after = store.do(workflows.update, "acme", flow.id, {"spec": {"new": True}, "timeout": timedelta(seconds=9)}, "bob")
    assert (after.spec, after.timeout, after.generation, after.consecutive_failures) == (
        {"new": True}, timedelta(seconds=9), 2, 0,
    )  # fmt: skip
    assert events(store, flow.id)[-1] == ("update", "bob")


def test_an_update_that_changes_nothing_is_none(store: Store) -> None:
    flow = store.workflow(interval=HOUR, timeout=timedelta(seconds=5))
    assert store.do(workflows.update, None, flow.id, {"interval": HOUR, "timeout": timedelta(seconds=5)}, "bob") == flow
    assert events(store, flow.id) == [("create", "ann")]


def test_jobs_that_exist_keep_what_they_were_made_from(store: Store) -> None:
    flow = store.workflow(spec={"old": True})
    job_id = store.add(store.job_of(flow, spec=flow.spec))[0]
    store.do(workflows.update, None, flow.id, {"spec": {"new": True}}, "bob")
    assert store.job(job_id).generation == 1
    assert store.row(job_id).priority == 4


def test_an_update_of_another_field_does_not_move_the_schedule(store: Store) -> None:
    flow = store.workflow(interval=HOUR)
    after = store.do(workflows.update, None, flow.id, {"priority": 9}, "bob")
    assert (after.anchor_at, after.next_fire_at) == (flow.anchor_at, flow.next_fire_at)


def test_a_changed_schedule_counts_its_slots_from_now(store: Store) -> None:
    flow = store.workflow(interval=HOUR)
    after = store.do(workflows.update, None, flow.id, {"interval": timedelta(minutes=1)}, "bob")
    assert after.anchor_at >= flow.anchor_at
    assert after.next_fire_at == after.anchor_at + timedelta(minutes=1)


def test_a_changed_start_sets_the_rhythm_anew(store: Store) -> None:
    flow = store.workflow(interval=HOUR)
    start = ahead(minutes=10)
    after = store.do(workflows.update, None, flow.id, {"start_at": start}, "bob")
    assert (after.anchor_at, after.next_fire_at) == (start, start + HOUR)


def test_an_interval_may_become_a_cron_expression_and_a_schedule_be_taken_away(store: Store) -> None:
    flow = store.workflow(interval=HOUR)
    after = store.do(workflows.update, None, flow.id, {"interval": None, "cron": "0 * * * *", "timezone": "UTC"}, "bob")
    assert after.next_fire_at is not None
    assert (after.next_fire_at.minute, after.next_fire_at.second) == (0, 0)
    after = store.do(workflows.update, None, flow.id, {"cron": None, "timezone": None}, "bob")
    assert after.next_fire_at is None


@pytest.mark.parametrize("hold", [workflows.pause, workflows.terminate])
def test_a_changed_schedule_of_a_workflow_that_is_not_active_fires_only_after_it_is_resumed(
    store: Store, hold: object
) -> None:
    flow = store.workflow(interval=HOUR)
    held = store.do(hold, None, flow.id, "ann")
    after = store.do(workflows.update, None, flow.id, {"interval": timedelta(minutes=1)}, "bob")
    assert (after.status, after.next_fire_at, after.generation) == (held.status, None, 2)
    resumed = store.do(workflows.resume, None, flow.id, "ann")
    assert resumed.next_fire_at == after.anchor_at + timedelta(minutes=1)


def test_a_workflow_cannot_take_the_name_of_another(store: Store) -> None:
    store.workflow(name="taken")
    flow = store.workflow(name="mine")
    with pytest.raises(Conflict) as refused:
        store.do(workflows.update, None, flow.id, {"name": "taken"}, "bob")
    assert refused.value.code == "name_taken"
    assert store.flow(flow) == flow


def test_another_tenants_workflow_cannot_be_touched(store: Store) -> None:
    flow = store.workflow(interval=HOUR)
    for verb in (workflows.pause, workflows.resume, workflows.terminate, workflows.delete):
        with pytest.raises(NotFound):
            store.do(verb, "other", flow.id, "eve")
    with pytest.raises(NotFound):
        store.do(workflows.update, "other", flow.id, {"priority": 1}, "eve")
    assert store.flow(flow) == flow


def test_a_concurrency_puts_live_jobs_into_a_lane_of_their_own_and_none_takes_them_out(store: Store) -> None:
    flow = store.workflow()
    live, ended = store.add(store.job_of(flow), store.job_of(flow))
    beside = store.enqueue_one()
    store.cancel(ended)
    store.do(workflows.update, None, flow.id, {"concurrency": 2}, "bob")
    assert [store.row(job_id).lane for job_id in (live, ended, beside)] == [flow.id.hex, "", ""]
    store.do(workflows.update, None, flow.id, {"concurrency": None}, "bob")
    assert store.row(live).lane == ""


# --- pause, resume ---------------------------------------------------------------------------------------------------


def test_a_paused_workflow_has_no_next_slot_and_its_jobs_go_on(store: Store) -> None:
    flow = store.workflow(interval=HOUR)
    job_id = store.add(store.job_of(flow))[0]
    paused = store.do(workflows.pause, "acme", flow.id, "bob")
    assert (paused.status, paused.next_fire_at, paused.generation) == (WorkflowStatus.PAUSED, None, 1)
    assert store.state(job_id) == "PENDING·ready"
    assert store.do(workflows.pause, "acme", flow.id, "bob") == paused
    assert events(store, flow.id) == [("create", "ann"), ("pause", "bob")]


def test_slots_that_pass_while_a_workflow_is_paused_are_dropped(store: Store) -> None:
    flow = store.workflow(interval=timedelta(seconds=60))
    store.due(flow, 30)
    store.do(workflows.pause, None, flow.id, "bob")
    resumed = store.do(workflows.resume, None, flow.id, "bob")
    assert resumed.next_fire_at is not None
    assert resumed.next_fire_at > datetime.now(UTC)
    assert (resumed.next_fire_at - resumed.anchor_at) % timedelta(seconds=60) == timedelta(0)
    store.materialize()
    assert store.jobs_of(flow) == []


def test_resuming_begins_a_new_generation_with_the_counter_at_zero(store: Store) -> None:
    flow = store.workflow()
    store.do(workflows.pause, None, flow.id, "bob")
    store.execute("UPDATE jobq_workflows SET consecutive_failures = 2")
    resumed = store.do(workflows.resume, None, flow.id, "bob")
    assert (resumed.status, resumed.generation, resumed.consecutive_failures) == (WorkflowStatus.ACTIVE, 2, 0)
    assert store.do(workflows.resume, None, flow.id, "bob") == resumed


def test_a_terminated_workflow_cannot_be_paused_but_resumed(store: Store) -> None:
    flow = store.workflow(interval=HOUR)
    ended = store.do(workflows.terminate, None, flow.id, "bob")
    assert (ended.status, ended.next_fire_at, ended.message) == (WorkflowStatus.TERMINATED, None, "terminated by bob")
    with pytest.raises(Conflict) as refused:
        store.do(workflows.pause, None, flow.id, "bob")
    assert refused.value.code == "already_finished"
    resumed = store.do(workflows.resume, None, flow.id, "bob")
    assert (resumed.status, resumed.message, resumed.generation) == (WorkflowStatus.ACTIVE, None, 2)
    assert resumed.next_fire_at is not None


# --- terminate -------------------------------------------------------------------------------------------------------


def test_terminating_by_hand_cancels_waiting_automatic_jobs_only(store: Store) -> None:
    worker = store.worker()
    flow = store.workflow()
    automatic, manual = store.add(store.job_of(flow, trigger=Trigger.AUTOMATIC), store.job_of(flow))
    store.do(workflows.terminate, None, flow.id, "bob")
    assert store.states([automatic, manual]) == ["CANCELED·workflow_terminated", "PENDING·ready"]
    store.promote()
    assert len(store.claim(worker, [manual])) == 1


def test_a_terminated_workflow_still_takes_manual_jobs(store: Store) -> None:
    flow = store.workflow()
    store.do(workflows.terminate, None, flow.id, "bob")
    worker = store.worker()
    job_id = store.add(store.job_of(flow))[0]
    store.promote()
    store.end(worker, store.claim(worker, [job_id])[0])
    assert store.state(job_id) == "COMPLETED·succeeded"


def test_terminating_twice_says_so_once(store: Store) -> None:
    flow = store.workflow()
    first = store.do(workflows.terminate, None, flow.id, "bob")
    assert store.do(workflows.terminate, None, flow.id, "eve") == first
    assert events(store, flow.id) == [("create", "ann"), ("terminate", "bob")]


# --- delete ----------------------------------------------------------------------------------------------------------


def test_a_workflow_with_live_jobs_cannot_be_deleted(store: Store) -> None:
    flow = store.workflow()
    job_id = store.add(store.job_of(flow))[0]
    with pytest.raises(Conflict) as refused:
        store.do(workflows.delete, None, flow.id, "bob")
    assert refused.value.code == "has_live_jobs"
    store.cancel(job_id)
    store.do(workflows.delete, None, flow.id, "bob")
    with pytest.raises(NotFound):
        store.flow(flow)


def test_the_finished_jobs_of_a_deleted_workflow_stay(store: Store) -> None:
    worker = store.worker()
    flow = store.workflow(name="nightly")
    job_id = store.add(store.job_of(flow))[0]
    store.promote()
    store.end(worker, store.claim(worker, [job_id])[0], failed())
    store.do(workflows.delete, None, flow.id, "bob")
    assert (store.state(job_id), store.job(job_id).workflow_id) == ("FAILED·error", flow.id)
    assert store.workflow(name="nightly").id != flow.id


def test_the_database_itself_refuses_a_name_twice(store: Store) -> None:
    store.workflow(name="a")
    store.workflow(name="b")
    with pytest.raises(sa.exc.IntegrityError):
        store.execute("UPDATE jobq_workflows SET name = 'a'")
