"""A worker reports on its jobs: only the owner's outcome counts, and whoever lost a job is told."""

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from jobq.models import Outcome, Step
from jobq.retry import RetryPolicy
from jobq.states import Reason
from jobq.store import control, workers
from jobq.store.record import MAX_REQUEUES
from tests.stores import STEP, Store, attempt, ended, failed

LATER = timedelta(minutes=5)


@pytest.fixture
def worker(store: Store) -> UUID:
    return store.worker()


def waits(store: Store, job_id: UUID) -> float:
    """Seconds until the job is due again."""
    due_at = store.row(job_id).due_at
    return (due_at - store.look(workers.database_now)).total_seconds()


# --- ends ------------------------------------------------------------------------------------------------------------


def test_a_success_completes_the_job(store: Store, worker: UUID) -> None:
    job = store.running_one(worker)
    assert store.end(worker, job) == {job.id}
    row = store.row(job.id)
    assert store.state(job.id) == "COMPLETED·succeeded"
    assert (row.failures, row.worker_id, row.host, row.due_at, row.next_send_at) == (0, None, None, None, None)
    assert row.finished_at >= row.started_at
    assert [(kept.outcome, kept.charged) for kept in store.attempts(job.id)] == [("COMPLETED", False)]


def test_a_skipped_job_is_completed_and_says_why(store: Store, worker: UUID) -> None:
    job = store.running_one(worker)
    store.end(worker, job, Outcome.skipped("nothing changed"))
    assert (store.state(job.id), store.job(job.id).message) == ("COMPLETED·skipped", "nothing changed")


def test_a_failure_is_tried_again_after_its_backoff(store: Store, worker: UUID) -> None:
    job = store.running_one(worker)
    retry = RetryPolicy(initial=timedelta(seconds=100), jitter=0)
    assert store.end(worker, job, failed("no answer", error_class="dns"), retry=retry) == {job.id}
    shown = store.job(job.id)
    assert store.state(job.id) == "PENDING·retrying"
    assert (shown.failures, shown.message, shown.error_class, shown.worker_id) == (1, "no answer", "dns", None)
    assert shown.ready_at is shown.started_at is shown.queued_at is None
    assert 95 < waits(store, job.id) <= 100


def test_the_last_failure_fails_the_job_with_all_of_them_counted(store: Store, worker: UUID) -> None:
    job = store.running_one(worker, max_attempts=3)
    for _ in range(2):
        store.end(worker, job, failed())
        job = store.again(worker, job.id)
    store.end(worker, job, Outcome.timed_out("timed out after 5 s"))
    shown = store.job(job.id)
    assert store.state(job.id) == "FAILED·timed_out"
    assert (shown.failures, shown.attempt, shown.message) == (3, 3, "timed out after 5 s")
    assert [(kept.attempt, kept.outcome, kept.charged) for kept in store.attempts(job.id)] == [
        (1, "FAILED", True), (2, "FAILED", True), (3, "FAILED", True),
    ]  # fmt: skip


def test_a_failure_that_no_retry_can_help_is_final_at_once(store: Store, worker: UUID) -> None:
    job, invalid = store.running(worker, 2)
    store.end(worker, job, failed(retry=False, reason=Reason.NONZERO_EXIT))
    store.end(worker, invalid, Outcome.invalid("no such image"))
    assert store.states([job.id, invalid.id]) == ["FAILED·nonzero_exit", "FAILED·invalid"]
    assert store.job(job.id).failures == 1


def test_a_failure_that_the_policy_gives_up_on_is_final(store: Store, worker: UUID) -> None:
    job = store.running_one(worker)
    store.end(worker, job, failed(error_class="tls"), retry=RetryPolicy(give_up_on=("tls",)))
    assert store.state(job.id) == "FAILED·error"


def test_an_attempt_whose_work_is_gone_is_unresolved_unless_the_policy_retries_it(store: Store, worker: UUID) -> None:
    kept, given_up = store.running(worker, 2)
    store.end(worker, kept, Outcome.lost(), retry=RetryPolicy(retry_lost=True))
    store.end(worker, given_up, Outcome.lost(), retry=RetryPolicy(retry_lost=False))
    assert store.states([kept.id, given_up.id]) == ["PENDING·retrying", "FAILED·unresolved"]
    assert [kept.outcome for kept in store.attempts(given_up.id)] == ["LOST"]


# --- back to the queue, at no charge ---------------------------------------------------------------------------------


def test_a_target_that_is_not_ready_gives_the_job_back_at_no_charge(store: Store, worker: UUID) -> None:
    job = store.running_one(worker)
    store.end(worker, job, Outcome.requeued(LATER, "429 from crm"))
    row = store.row(job.id)
    assert (store.state(job.id), row.message) == ("PENDING·requeued", "429 from crm")
    assert (row.failures, row.requeues, row.attempt) == (0, 1, 1)
    assert 290 < waits(store, job.id) <= 300
    assert [(kept.outcome, kept.charged) for kept in store.attempts(job.id)] == [("REQUEUED", False)]


def test_a_target_that_names_no_delay_makes_the_job_ready_at_once(store: Store, worker: UUID) -> None:
    job = store.running_one(worker)
    store.end(worker, job, Outcome.requeued(timedelta(0), "not now"))
    assert (store.state(job.id), store.job(job.id).requeues) == ("PENDING·ready", 1)


def test_a_job_is_given_back_twenty_times_and_then_fails(store: Store, worker: UUID) -> None:
    job = store.running_one(worker, max_attempts=1)
    for _ in range(MAX_REQUEUES):
        store.end(worker, job, Outcome.requeued(LATER, "429 from crm"))
        assert store.state(job.id) == "PENDING·requeued"
        job = store.again(worker, job.id)
    store.end(worker, job, Outcome.requeued(LATER, "429 from crm"))
    shown = store.job(job.id)
    assert MAX_REQUEUES == 20
    assert (store.state(job.id), shown.requeues, shown.failures, shown.attempt) == ("FAILED·error", 20, 1, 21)
    assert shown.message == "429 from crm (after 20 requeues)"


def test_a_drained_job_is_ready_at_once_and_nothing_is_charged(store: Store, worker: UUID) -> None:
    job = store.running_one(worker, max_attempts=1)
    store.end(worker, job, Outcome.stopped(), drained=True)
    shown = store.job(job.id)
    assert (store.state(job.id), shown.failures, shown.requeues) == ("PENDING·ready", 0, 0)
    assert [(kept.outcome, kept.charged) for kept in store.attempts(job.id)] == [("DRAINED", False)]
    store.promote()
    assert store.claim(worker, [job.id])[0].attempt == 2


# --- against a request to cancel -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "report", "state"),
    [
        (Outcome.succeeded(), {}, "COMPLETED·succeeded"),
        (Outcome.skipped("nothing to do"), {}, "COMPLETED·skipped"),
        (Outcome.stopped(), {}, "CANCELED·by_user"),
        (failed(), {}, "CANCELED·by_user"),
        (Outcome.timed_out("late"), {}, "CANCELED·by_user"),
        (Outcome.lost(), {}, "CANCELED·by_user"),
        (failed(retry=False), {}, "FAILED·error"),
        (Outcome.requeued(LATER, "429"), {}, "CANCELED·by_user"),
        (Outcome.stopped(), {"drained": True}, "CANCELED·by_user"),
    ],
    ids=["success", "skip", "stop", "retry", "timeout", "lost", "last failure", "requeue", "drain"],
)
def test_a_canceled_job_is_never_tried_again_but_an_end_that_came_first_stands(
    store: Store, worker: UUID, outcome: Outcome, report: dict[str, Any], state: str
) -> None:
    job = store.running_one(worker)
    store.cancel(job.id)
    assert store.state(job.id) == "RUNNING·executing"
    assert store.end(worker, job, outcome, **report) == {job.id}
    assert store.state(job.id) == state
    assert len(store.attempts(job.id)) == 1


def test_a_job_that_gave_way_to_a_newer_one_says_so_however_it_stopped(store: Store, worker: UUID) -> None:
    stopped, retried, requeued, drained = store.running(worker, 4)
    for job in (stopped, retried, requeued, drained):
        store.pretend(job.id, desired="CANCEL", cancel_reason="overlap")
    store.record(
        worker,
        ended(stopped, Outcome.stopped()),
        ended(retried, failed()),
        ended(requeued, Outcome.requeued(LATER, "429")),
        ended(drained, Outcome.stopped(), drained=True),
    )
    ids = [stopped.id, retried.id, requeued.id, drained.id]
    assert store.states(ids) == ["CANCELED·overlap"] * 4


# --- whose outcome counts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "outcome", [Outcome.succeeded(), failed(), Outcome.requeued(LATER, "429"), Outcome.stopped()],
    ids=["success", "failure", "requeue", "stop"],
)  # fmt: skip
def test_a_worker_that_lost_its_job_cannot_record_and_is_told(store: Store, worker: UUID, outcome: Outcome) -> None:
    # given a job that another worker took over at the same attempt
    other = store.worker()
    job = store.running_one(worker)
    store.pretend(job.id, worker_id=other)
    before = store.row(job.id)
    # when the first one reports, then nothing happens
    assert store.end(worker, job, outcome) == set()
    assert store.row(job.id) == before
    assert store.attempts(job.id) == []
    # and the owner's outcome counts
    assert store.end(other, job) == {job.id}


@pytest.mark.parametrize("outcome", [Outcome.succeeded(), failed()], ids=["success", "failure"])
def test_an_outcome_of_another_attempt_is_refused(store: Store, worker: UUID, outcome: Outcome) -> None:
    job = store.running_one(worker)
    store.end(worker, job, failed())
    store.again(worker, job.id)
    before = store.row(job.id)
    for number in (1, 3):
        assert store.end(worker, attempt(job, number), outcome) == set()
    assert store.row(job.id) == before


@pytest.mark.parametrize(
    "outcome", [Outcome.succeeded(), failed(), Outcome.stopped()], ids=["success", "failure", "stop"]
)
@pytest.mark.parametrize("end", [Outcome.succeeded(), failed(retry=False), Outcome.stopped()], ids=["C", "F", "X"])
def test_the_outcome_of_a_job_that_has_ended_is_refused(
    store: Store, worker: UUID, end: Outcome, outcome: Outcome
) -> None:
    job = store.running_one(worker)
    store.end(worker, job, end)
    before = store.row(job.id)
    assert store.end(worker, job, outcome) == set()
    assert store.row(job.id) == before
    assert len(store.attempts(job.id)) == 1


def test_an_outcome_of_a_job_that_waits_again_is_refused(store: Store, worker: UUID) -> None:
    job = store.running_one(worker)
    store.end(worker, job, Outcome.stopped(), drained=True)
    assert store.end(worker, job) == set()
    assert store.state(job.id) == "PENDING·ready"


def test_the_late_outcome_of_a_dead_worker_counts_until_its_jobs_are_touched(store: Store, worker: UUID) -> None:
    first, second = store.running(worker, 2, retry={"retry_lost": False})
    store.do(workers.declare_dead, [worker])
    assert store.end(worker, first) == {first.id}
    store.do(workers.release_lost, reattach_grace=300.0)
    assert store.end(worker, second) == set()
    assert store.states([first.id, second.id]) == ["COMPLETED·succeeded", "FAILED·unresolved"]


# --- what is kept of an attempt --------------------------------------------------------------------------------------


def test_an_attempt_keeps_all_that_its_executor_told(store: Store, worker: UUID) -> None:
    job = store.running_one(worker, max_attempts=1)
    outcome = failed(
        "exit 3", error_class="exit_3", reason=Reason.NONZERO_EXIT, exit_code=3, result={"é": [1, None]},
        usage={"memory_bytes": 1 << 40, "cpu_seconds": 0.25},
    )  # fmt: skip
    store.end(worker, job, outcome, steps=[Step("dns", 0.0, 0.125), STEP])
    (kept,) = store.attempts(job.id)
    assert (kept.job_id, kept.attempt, kept.worker_id) == (job.id, 1, worker)
    assert kept.worker == f"here:{worker.hex[-6:]}"
    assert (kept.outcome, kept.reason, kept.charged) == ("FAILED", "nonzero_exit", True)
    assert (kept.message, kept.error_class, kept.exit_code) == ("exit 3", "exit_3", 3)
    assert kept.result == {"é": [1, None]}
    assert kept.usage == {"memory_bytes": 1 << 40, "cpu_seconds": 0.25}
    assert kept.steps == [Step("dns", 0.0, 0.125), Step("connect", 0.5, 0.25)]
    assert kept.started_at == job.started_at
    assert kept.finished_at >= store.job(job.id).finished_at


@pytest.mark.parametrize("result", [None, 0, False, "", "text", 1.5, [], {}, [0], {"a": None}])
def test_a_result_comes_back_as_it_was(store: Store, worker: UUID, result: Any) -> None:
    job = store.running_one(worker)
    store.end(worker, job, Outcome.succeeded(result, exit_code=0))
    (kept,) = store.attempts(job.id)
    assert kept.result == result
    assert type(kept.result) is type(result)
    assert kept.exit_code == 0


def test_every_attempt_is_kept_with_who_ran_it(store: Store) -> None:
    first, second = store.worker(), store.worker()
    job = store.running_one(first)
    store.end(first, job, failed("first"))
    store.end(second, store.again(second, job.id), Outcome.succeeded("second"))
    assert [(kept.attempt, kept.worker_id, kept.message, kept.result) for kept in store.attempts(job.id)] == [
        (1, first, "first", None), (2, second, None, "second"),
    ]  # fmt: skip


def test_what_the_last_failure_said_is_not_kept_with_a_success(store: Store, worker: UUID) -> None:
    job = store.running_one(worker)
    store.end(worker, job, failed("no answer"))
    store.end(worker, store.again(worker, job.id))
    assert (store.job(job.id).message, store.job(job.id).error_class) == (None, None)


# --- batches ---------------------------------------------------------------------------------------------------------


def test_one_batch_holds_ends_of_every_sort_and_each_job_gets_its_own(store: Store, worker: UUID) -> None:
    # given
    other = store.worker()
    names = ("done", "skipped", "retried", "last", "requeued", "drained", "stopped", "canceled", "stolen", "gone")
    jobs = dict(zip(names, store.running(worker, len(names)), strict=True))
    store.pretend(jobs["last"].id, failures=2)
    store.cancel(jobs["canceled"].id)
    store.pretend(jobs["stolen"].id, worker_id=other)
    store.end(worker, jobs["gone"])
    # when
    outcomes: dict[str, tuple[Outcome, dict[str, Any]]] = {
        "done": (Outcome.succeeded({"n": 1}), {}),
        "skipped": (Outcome.skipped("no"), {}),
        "retried": (failed("a"), {}),
        "last": (failed("b"), {}),
        "requeued": (Outcome.requeued(LATER, "c"), {}),
        "drained": (Outcome.stopped(), {"drained": True}),
        "stopped": (Outcome.stopped(), {}),
        "canceled": (failed("d"), {}),
        "stolen": (Outcome.succeeded(), {}),
        "gone": (failed("e"), {}),
    }
    written = store.record(worker, *(ended(jobs[name], outcome, **more) for name, (outcome, more) in outcomes.items()))
    # then
    assert {name for name in names if jobs[name].id in written} == {*names} - {"stolen", "gone"}
    assert {name: store.state(jobs[name].id) for name in names} == {
        "done": "COMPLETED·succeeded",
        "skipped": "COMPLETED·skipped",
        "retried": "PENDING·retrying",
        "last": "FAILED·error",
        "requeued": "PENDING·requeued",
        "drained": "PENDING·ready",
        "stopped": "CANCELED·by_user",
        "canceled": "CANCELED·by_user",
        "stolen": "RUNNING·executing",
        "gone": "COMPLETED·succeeded",
    }
    assert {name: len(store.attempts(jobs[name].id)) for name in names if name != "stolen"} == dict.fromkeys(
        {*names} - {"stolen"}, 1
    )


def test_a_batch_may_hold_a_thousand_ends(store: Store, worker: UUID) -> None:
    jobs = store.running(worker, 1000)
    reports = [ended(job, Outcome.succeeded(number)) for number, job in enumerate(jobs)]
    assert store.record(worker, *reports) == {job.id for job in jobs}
    assert store.attempts(jobs[777].id)[0].result == 777
    assert store.count("jobq_jobs", "status = 'COMPLETED'") == store.count("jobq_attempts") == 1000


def test_recording_nothing_does_nothing(store: Store, worker: UUID) -> None:
    assert store.record(worker) == set()


def test_a_job_of_a_paused_queue_that_runs_may_end(store: Store, worker: UUID) -> None:
    job = store.running_one(worker)
    store.do(control.pause_queue, "noop", "ann")
    store.end(worker, job)
    assert store.state(job.id) == "COMPLETED·succeeded"


def test_a_drained_job_goes_on_before_those_that_came_after_it(store: Store, worker: UUID) -> None:
    job = store.running_one(worker)
    younger = store.enqueue_one()
    store.pretend(job.id, ready_at=-60)
    store.end(worker, job, Outcome.stopped(), drained=True)
    assert store.promote()["noop"] == [job.id, younger]


def test_a_job_that_its_target_did_not_take_goes_behind_those_that_wait(store: Store, worker: UUID) -> None:
    job = store.running_one(worker)
    other = store.enqueue_one()
    store.pretend(job.id, ready_at=-60)
    store.pretend(other, ready_at=-30)
    store.end(worker, job, Outcome.requeued(timedelta(0), "not now"))
    assert store.promote()["noop"] == [other, job.id]


# --- data that no database takes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("message", "kept"), [("a\x00b", "a\\x00b"), ("a\udcffb", "a\\udcffb"), ("\ud800", "\\ud800")])
def test_a_message_may_hold_what_no_text_column_takes(store: Store, worker: UUID, message: str, kept: str) -> None:
    final, retried = store.running(worker, 2)
    store.record(worker, ended(final, failed(message, retry=False)), ended(retried, failed(message)))
    for job in (final, retried):
        assert store.job(job.id).message == kept
        assert store.attempts(job.id)[0].message == kept


@pytest.mark.parametrize("result", [float("nan"), {"a": [float("inf")]}, {1, 2}], ids=["nan", "inf", "set"])
def test_a_result_that_is_no_json_is_refused_as_such_and_nothing_is_written(
    store: Store, worker: UUID, result: Any
) -> None:
    """The recorder halves a batch on such an error; one that looks like an outage it would repeat for ever."""
    job, other = store.running(worker, 2)
    with pytest.raises((ValueError, TypeError, sa.exc.DBAPIError)) as refused:
        store.record(worker, ended(job, Outcome.succeeded(result)), ended(other))
    assert not isinstance(refused.value, sa.exc.OperationalError)
    assert store.states([job.id, other.id]) == ["RUNNING·executing"] * 2
