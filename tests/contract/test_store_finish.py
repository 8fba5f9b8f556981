"""Jobs end: once, for good, and with all that an end means to their workflow."""

import re
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from jobq.models import Outcome, Workflow, WorkflowStatus
from jobq.states import EDGES, REASONS, TERMINAL, Reason, Status, Transition, Trigger
from jobq.store import finish as ends
from jobq.store import workflows
from jobq.store.claim import Claimed
from jobq.store.finish import Change
from jobq.store.jobs import new_id
from tests.stores import Store, ended, failed, new_job

FATAL = {"retry": False}
HOUR = timedelta(hours=1)


@pytest.fixture
def worker(store: Store) -> UUID:
    return store.worker()


def finish(store: Store, *changes: Change) -> set[UUID]:
    return store.do(ends.finish, changes)


# --- the guard -------------------------------------------------------------------------------------------------------


def test_a_change_is_written_only_while_the_job_is_as_its_writer_saw_it(store: Store, worker: UUID) -> None:
    job = store.running_one(worker)
    done = Transition(Status.COMPLETED, Reason.SUCCEEDED)
    assert finish(store, Change(job.id, Status.RUNNING, 2, done)) == set()
    assert finish(store, Change(job.id, Status.QUEUED, 1, Transition(Status.CANCELED, Reason.BY_USER))) == set()
    assert finish(store, Change(job.id, Status.RUNNING, 1, done, worker_id=new_id())) == set()
    assert finish(store, Change(new_id(), Status.RUNNING, 1, done)) == set()
    assert store.state(job.id) == "RUNNING·executing"
    assert finish(store, Change(job.id, Status.RUNNING, 1, done, worker_id=worker)) == {job.id}
    assert finish(store, Change(job.id, Status.RUNNING, 1, done, worker_id=worker)) == set()


def test_a_change_without_an_edge_is_refused_before_anything_is_written(store: Store) -> None:
    job_id = store.enqueue_one()
    done = Transition(Status.COMPLETED, Reason.SUCCEEDED)
    with pytest.raises(ValueError, match="no edge from QUEUED to COMPLETED"):
        finish(store, Change(job_id, Status.PENDING, 0, done), Change(new_id(), Status.QUEUED, 0, done))
    assert store.state(job_id) == "PENDING·ready"


def test_one_batch_may_end_jobs_in_every_state(store: Store, worker: UUID) -> None:
    running, (queued,), pending = store.running_one(worker).id, store.queued(), store.enqueue_one()
    canceled = Transition(Status.CANCELED, Reason.BY_USER)
    changes = [
        Change(pending, Status.PENDING, 0, canceled),
        Change(running, Status.RUNNING, 1, canceled),
        Change(queued, Status.QUEUED, 0, canceled, message="no longer needed"),
    ]
    assert finish(store, *changes) == {pending, running, queued}
    assert set(store.states([pending, running, queued])) == {"CANCELED·by_user"}
    assert store.job(queued).message == "no longer needed"


def test_jobs_that_end_leave_everything_that_others_look_for(store: Store, worker: UUID) -> None:
    running = store.running(worker, host="engine-1")[0]
    store.end(worker, running)
    row = store.row(running.id)
    assert (row.worker_id, row.host, row.due_at, row.next_send_at) == (None, None, None, None)


# --- the database itself ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", list(Status))
@pytest.mark.parametrize("before", sorted(TERMINAL))
def test_the_database_refuses_to_bring_a_finished_job_back(store: Store, before: Status, after: Status) -> None:
    job_id = store.enqueue_one()
    reason = min(REASONS[before])
    store.pretend(job_id, status=before.value, reason=reason.value, finished_at=-1)
    if before is after:
        store.execute("UPDATE jobq_jobs SET status = :status", status=after.value)
        return
    with pytest.raises(sa.exc.DBAPIError, match="a finished job never changes its status"):
        store.execute(
            "UPDATE jobq_jobs SET status = :status, finished_at = NULL, next_send_at = NULL", status=after.value
        )
    assert store.state(job_id) == f"{before}·{reason}"


def test_what_is_no_status_of_a_finished_job_may_still_be_noted(store: Store) -> None:
    job_id = store.enqueue_one()
    store.cancel(job_id)
    store.execute("UPDATE jobq_jobs SET message = 'kept for the audit'")
    assert store.job(job_id).message == "kept for the audit"


@pytest.mark.parametrize(
    "columns",
    [
        "status = 'COMPLETED', reason = 'succeeded'",  # without its instant
        "finished_at = created_at",  # the instant without the status
        "status = 'QUEUED', reason = 'dispatched'",  # without an instant to send its hint again
        "next_send_at = created_at",  # the instant without the status
    ],
)
def test_the_database_refuses_rows_that_contradict_themselves(store: Store, columns: str) -> None:
    store.enqueue_one()
    with pytest.raises(sa.exc.IntegrityError):
        store.execute(f"UPDATE jobq_jobs SET {columns}")


@pytest.mark.parametrize("status", ["PAUSED", "TERMINATED"])
def test_the_database_refuses_a_workflow_that_fires_although_it_is_not_active(store: Store, status: str) -> None:
    store.workflow(interval=HOUR)
    with pytest.raises(sa.exc.IntegrityError):
        store.execute("UPDATE jobq_workflows SET status = :status", status=status)


def test_the_statuses_that_the_database_guards_are_the_terminal_ones(store: Store) -> None:
    query = {
        "sqlite": "SELECT sql FROM sqlite_master WHERE name = 'jobq_jobs_terminal'",
        "postgresql": "SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE tgname = 'jobq_jobs_terminal'",
    }[store.dialect]
    with store.database.read() as conn:
        text = conn.scalar(sa.text(query))
    assert set(re.findall(r"'([A-Z]+)'", text)) == {status.value for status in EDGES if not EDGES[status]}


# --- the failure counter ---------------------------------------------------------------------------------------------


def run(store: Store, worker: UUID, flow: Workflow, count: int = 1, **fields: object) -> list[Claimed]:
    """Running jobs of the workflow."""
    ids = store.add(*(store.job_of(store.flow(flow), **fields) for _ in range(count)))
    store.promote()
    claimed = store.claim(worker, ids)
    assert len(claimed) == count
    return claimed


def outcomes(store: Store, worker: UUID, flow: Workflow, *ends: Outcome) -> None:
    """So many jobs of the workflow end, one after the other."""
    for outcome in ends:
        store.end(worker, run(store, worker, flow)[0], outcome)


def failures(store: Store, flow: Workflow) -> int:
    return store.flow(flow).consecutive_failures


def test_failures_in_a_row_are_counted_and_a_success_forgets_them(store: Store, worker: UUID) -> None:
    flow = store.workflow(max_consecutive_job_failures_allowed=9)
    outcomes(store, worker, flow, failed(), Outcome.timed_out("late"))
    assert failures(store, flow) == 2
    outcomes(store, worker, flow, Outcome.succeeded())
    assert failures(store, flow) == 0
    outcomes(store, worker, flow, failed())
    assert failures(store, flow) == 1


def test_an_unresolved_job_counts_as_a_failure(store: Store, worker: UUID) -> None:
    flow = store.workflow()
    outcomes(store, worker, flow, Outcome.lost())
    assert failures(store, flow) == 1


def test_a_job_counts_once_after_its_retries(store: Store, worker: UUID) -> None:
    flow = store.workflow()
    (job,) = run(store, worker, flow, max_attempts=2)
    store.end(worker, job, failed())
    assert failures(store, flow) == 0
    store.end(worker, store.again(worker, job.id), failed())
    assert failures(store, flow) == 1


def test_skipped_and_canceled_jobs_leave_the_counter_as_it_is(store: Store, worker: UUID) -> None:
    flow = store.workflow()
    outcomes(store, worker, flow, failed(), Outcome.skipped("no"), Outcome.stopped())
    store.cancel(store.add(store.job_of(flow))[0])
    assert failures(store, flow) == 1


def test_children_leave_the_counter_as_it_is(store: Store, worker: UUID) -> None:
    flow = store.workflow()
    outcomes(store, worker, flow, failed())
    failing, succeeding = run(store, worker, flow, 2, parent_id=new_id())
    store.record(worker, ended(failing, failed()), ended(succeeding))
    assert failures(store, flow) == 1


def test_jobs_that_no_workflow_made_count_for_none(store: Store, worker: UUID) -> None:
    flow = store.workflow()
    store.end(worker, store.running_one(worker, max_attempts=1), failed())
    assert failures(store, flow) == 0


def test_only_jobs_of_the_current_generation_count(store: Store, worker: UUID) -> None:
    flow = store.workflow()
    outcomes(store, worker, flow, failed())
    old_failure, old_success = run(store, worker, flow, 2)
    store.do(workflows.update, None, flow.id, {"priority": 5}, "ann")
    store.end(worker, old_failure, failed())
    assert failures(store, flow) == 0
    outcomes(store, worker, flow, failed())
    store.end(worker, old_success)
    assert failures(store, flow) == 1


@pytest.mark.parametrize(
    ("sequence", "count"),
    [("ffsf", 1), ("sff", 2), ("ffs", 0), ("fkxf", 2), ("sfsfsff", 2), ("k", 0)],
)
def test_what_ends_in_one_batch_counts_in_the_order_of_the_reports(
    store: Store, worker: UUID, sequence: str, count: int
) -> None:
    """f: failed, s: succeeded, k: skipped, x: canceled."""
    letters = {"f": failed(), "s": Outcome.succeeded(), "k": Outcome.skipped("no"), "x": Outcome.stopped()}
    flow = store.workflow(max_consecutive_job_failures_allowed=9)
    jobs = run(store, worker, flow, len(sequence))
    store.record(worker, *(ended(job, letters[letter]) for job, letter in zip(jobs[::-1], sequence, strict=True)))
    assert failures(store, flow) == count


def test_a_batch_with_a_success_between_failures_does_not_terminate(store: Store, worker: UUID) -> None:
    flow = store.workflow(max_consecutive_job_failures_allowed=3)
    jobs = run(store, worker, flow, 4)
    ends = [failed(), failed(), Outcome.succeeded(), failed()]
    store.record(worker, *(ended(job, outcome) for job, outcome in zip(jobs, ends, strict=True)))
    assert (store.flow(flow).status, failures(store, flow)) == (WorkflowStatus.ACTIVE, 1)


def test_one_batch_counts_for_each_workflow_apart(store: Store, worker: UUID) -> None:
    first, second = store.workflow(), store.workflow()
    a, b = run(store, worker, first, 2)
    (c,) = run(store, worker, second)
    store.record(worker, ended(a, failed()), ended(c), ended(b, failed()))
    assert (failures(store, first), failures(store, second)) == (2, 0)


# --- termination -----------------------------------------------------------------------------------------------------


def test_a_workflow_is_terminated_at_its_threshold_and_not_before(store: Store, worker: UUID) -> None:
    flow = store.workflow(interval=HOUR, max_consecutive_job_failures_allowed=2)
    outcomes(store, worker, flow, failed())
    assert store.flow(flow).status is WorkflowStatus.ACTIVE
    outcomes(store, worker, flow, failed())
    after = store.flow(flow)
    assert (after.status, after.next_fire_at, after.message) == (
        WorkflowStatus.TERMINATED,
        None,
        "2 jobs in a row failed",
    )


def test_a_paused_workflow_is_terminated_too(store: Store, worker: UUID) -> None:
    flow = store.workflow(max_consecutive_job_failures_allowed=1)
    (job,) = run(store, worker, flow)
    store.do(workflows.pause, None, flow.id, "ann")
    store.end(worker, job, failed())
    assert store.flow(flow).status is WorkflowStatus.TERMINATED


def test_termination_cancels_waiting_automatic_jobs_and_leaves_manual_ones(store: Store, worker: UUID) -> None:
    flow = store.workflow(max_consecutive_job_failures_allowed=1)
    automatic = {"trigger": Trigger.AUTOMATIC}
    running, failing, retrying = run(store, worker, flow, 3, max_attempts=5, **automatic)
    manual_running = run(store, worker, flow, max_attempts=5)[0]
    store.end(worker, retrying, failed())
    queued, manual_queued = store.add(store.job_of(flow, **automatic), store.job_of(flow))
    store.promote()
    ready, blocked, manual_ready = store.add(
        store.job_of(flow, **automatic), store.job_of(flow, blocked=True, **automatic), store.job_of(flow)
    )
    # when
    store.end(worker, failing, failed(**FATAL))
    # then what waited is canceled
    waited = [retrying.id, queued, ready, blocked]
    assert store.states(waited) == ["CANCELED·workflow_terminated"] * 4
    assert store.states([manual_queued, manual_ready]) == ["QUEUED·dispatched", "PENDING·ready"]
    assert store.states([running.id, manual_running.id]) == ["RUNNING·executing"] * 2
    # and what runs ends without a retry, but for people's jobs
    store.record(worker, ended(running, failed()), ended(manual_running, failed()))
    assert store.states([running.id, manual_running.id]) == ["FAILED·error", "PENDING·retrying"]


def test_a_running_job_of_a_terminated_workflow_may_still_succeed(store: Store, worker: UUID) -> None:
    flow = store.workflow(max_consecutive_job_failures_allowed=1)
    running, failing = run(store, worker, flow, 2, trigger=Trigger.AUTOMATIC)
    store.end(worker, failing, failed())
    assert store.end(worker, running) == {running.id}
    assert store.state(running.id) == "COMPLETED·succeeded"
    assert store.flow(flow).status is WorkflowStatus.TERMINATED


@pytest.mark.parametrize(
    "report", [{"outcome": Outcome.requeued(HOUR, "429")}, {"drained": True}], ids=["requeue", "drain"]
)
def test_a_running_job_of_a_terminated_workflow_does_not_go_back_to_the_queue(
    store: Store, worker: UUID, report: dict[str, Any]
) -> None:
    flow = store.workflow(max_consecutive_job_failures_allowed=1)
    (automatic, failing), (manual,) = run(store, worker, flow, 2, trigger=Trigger.AUTOMATIC), run(store, worker, flow)
    store.end(worker, failing, failed())
    for job in (automatic, manual):
        assert store.end(worker, job, **{"outcome": Outcome.stopped(), **report}) == {job.id}
    assert store.state(automatic.id) == "CANCELED·workflow_terminated"
    assert store.state(manual.id).startswith("PENDING·")


def test_a_running_job_of_a_terminated_workflow_is_said_to_be_in_its_last_attempt(store: Store, worker: UUID) -> None:
    flow = store.workflow(max_consecutive_job_failures_allowed=1)
    running, failing = run(store, worker, flow, 2, trigger=Trigger.AUTOMATIC, max_attempts=5)
    store.end(worker, failing, failed(**FATAL))
    assert store.why(running.id).startswith("Attempt 1 of at most 1 is executing")


def test_jobs_of_other_workflows_are_not_touched_by_a_termination(store: Store, worker: UUID) -> None:
    flow, other = store.workflow(max_consecutive_job_failures_allowed=1), store.workflow()
    waiting = store.add(store.job_of(other, trigger=Trigger.AUTOMATIC), new_job(trigger=Trigger.AUTOMATIC))
    outcomes(store, worker, flow, failed())
    assert set(store.states(waiting)) <= {"PENDING·ready", "QUEUED·dispatched"}


def test_more_failures_of_a_terminated_workflow_change_nothing(store: Store, worker: UUID) -> None:
    flow = store.workflow(max_consecutive_job_failures_allowed=1)
    first, second = run(store, worker, flow, 2)
    store.end(worker, first, failed())
    terminated = store.flow(flow)
    store.end(worker, second, failed())
    after = store.flow(flow)
    assert (after.status, after.updated_at, after.message) == (
        WorkflowStatus.TERMINATED, terminated.updated_at, terminated.message,
    )  # fmt: skip


def test_a_batch_may_terminate_the_workflow_whose_jobs_it_ends(store: Store, worker: UUID) -> None:
    flow = store.workflow(max_consecutive_job_failures_allowed=3)
    jobs = run(store, worker, flow, 5, trigger=Trigger.AUTOMATIC)
    assert store.record(worker, *(ended(job, failed()) for job in jobs)) == {job.id for job in jobs}
    after = store.flow(flow)
    assert (after.status, after.consecutive_failures) == (WorkflowStatus.TERMINATED, 5)
