"""Every transition there is, every one there is not, and what the words of other systems mean."""

from __future__ import annotations

from datetime import timedelta
from itertools import combinations, product

import pytest

from jobq.states import (
    EDGES,
    REASONS,
    TERMINAL,
    WAKING,
    Desired,
    Reason,
    Status,
    Transition,
    arrival,
    canceled,
    give_back,
    may_go,
    retry_or_fail,
)
from jobq.vocabulary import (
    CONTAINER_SCHEDULER,
    FILE_HUB_JOB,
    FILE_HUB_TASK,
    INTEGRATION_PLATFORM,
    VOCABULARIES,
    Vocabulary,
    word_for,
)

P, Q, R, C, F, X = Status.PENDING, Status.QUEUED, Status.RUNNING, Status.COMPLETED, Status.FAILED, Status.CANCELED
MINUTE = timedelta(minutes=1)
STATES = [(status, reason) for status in Status for reason in sorted(REASONS[status])]

# --- edges and reasons -----------------------------------------------------------------------------------------------

ALLOWED = {(P, Q), (P, C), (P, F), (P, X), (Q, R), (Q, P), (Q, F), (Q, X), (R, C), (R, F), (R, X), (R, P)}


@pytest.mark.parametrize(("before", "after"), list(product(Status, Status)), ids=lambda status: status.value)
def test_an_edge_exists_or_it_does_not(before: Status, after: Status) -> None:
    assert may_go(before, after) is ((before, after) in ALLOWED)


def test_nothing_leads_out_of_a_terminal_status() -> None:
    assert {C, F, X} == TERMINAL
    assert all(not EDGES[status] for status in TERMINAL)
    assert all(EDGES[status] for status in set(Status) - TERMINAL)


def test_every_reason_belongs_to_one_status_but_for_paused() -> None:
    homes = {reason: {status for status in Status if reason in REASONS[status]} for reason in Reason}
    assert homes.pop(Reason.PAUSED) == {P, R}
    assert all(len(statuses) == 1 for statuses in homes.values())


@pytest.mark.parametrize(("status", "reason"), list(product(Status, Reason)), ids=str)
def test_a_transition_has_a_reason_that_is_legal_for_its_status(status: Status, reason: Reason) -> None:
    if reason in REASONS[status]:
        assert Transition(status, reason).terminal is (status in TERMINAL)
    else:
        with pytest.raises(ValueError, match=f"{reason} is no reason of {status}"):
            Transition(status, reason)


def test_what_wakes_by_itself_is_pending() -> None:
    assert REASONS[P] > WAKING
    assert {Reason.READY, Reason.BLOCKED, Reason.PAUSED}.isdisjoint(WAKING)


# --- decisions -------------------------------------------------------------------------------------------------------


def test_a_job_arrives_ready_scheduled_or_blocked() -> None:
    assert arrival(due_in=None) == arrival(due_in=-MINUTE) == Transition(P, Reason.READY)
    assert arrival(due_in=MINUTE) == Transition(P, Reason.SCHEDULED, due_in=MINUTE)
    assert arrival(due_in=MINUTE, blocked=True) == Transition(P, Reason.BLOCKED)


def test_a_job_is_canceled_for_a_reason() -> None:
    assert canceled() == Transition(X, Reason.BY_USER)
    assert canceled(Reason.UPSTREAM_FAILED) == Transition(X, Reason.UPSTREAM_FAILED)


def judge(*, retryable: bool = True, failures: int = 0, most: int = 3, desired: Desired = Desired.RUN) -> Transition:
    return retry_or_fail(
        failure=Reason.TIMED_OUT, retryable=retryable, failures=failures, max_attempts=most, desired=desired,
        backoff=MINUTE, why=Reason.OVERLAP,
    )  # fmt: skip


def test_a_failure_is_tried_again_while_attempts_are_left() -> None:
    again = Transition(P, Reason.RETRYING, due_in=MINUTE, charged=True)
    assert [judge(failures=failures) for failures in range(4)] == [again, again, *[judge(retryable=False)] * 2]


def test_a_failure_that_cannot_be_helped_or_was_the_last_is_final_and_charged() -> None:
    final = Transition(F, Reason.TIMED_OUT, charged=True)
    assert judge(retryable=False) == judge(failures=2) == judge(most=1) == final


def test_a_request_to_cancel_wins_over_a_retry_but_not_over_a_final_failure() -> None:
    assert judge(desired=Desired.CANCEL) == Transition(X, Reason.OVERLAP, charged=True)
    assert judge(desired=Desired.CANCEL, failures=2) == Transition(F, Reason.TIMED_OUT, charged=True)


def test_what_is_given_back_is_charged_to_nobody() -> None:
    assert give_back(desired=Desired.RUN) == Transition(P, Reason.READY)
    assert give_back(desired=Desired.RUN, due_in=timedelta(0)) == Transition(P, Reason.READY)
    assert give_back(desired=Desired.RUN, due_in=MINUTE) == Transition(P, Reason.REQUEUED, due_in=MINUTE)
    assert give_back(desired=Desired.CANCEL, due_in=MINUTE) == canceled()
    assert give_back(desired=Desired.CANCEL, why=Reason.OVERLAP) == canceled(Reason.OVERLAP)


@pytest.mark.parametrize("desired", list(Desired))
@pytest.mark.parametrize("failures", range(4))
@pytest.mark.parametrize("retryable", [True, False])
def test_every_decision_on_a_running_job_follows_an_edge(desired: Desired, failures: int, *, retryable: bool) -> None:
    decided = [
        judge(desired=desired, failures=failures, retryable=retryable),
        give_back(desired=desired, due_in=MINUTE),
    ]
    assert all(may_go(R, transition.status) for transition in decided)


# --- the words of other systems --------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocabulary", list(VOCABULARIES.values()), ids=list(VOCABULARIES))
def test_every_word_means_states_that_exist(vocabulary: Vocabulary) -> None:
    for word, meaning in vocabulary.items():
        assert meaning.states, word
        assert meaning.states <= set(STATES), word


@pytest.mark.parametrize("vocabulary", list(VOCABULARIES.values()), ids=list(VOCABULARIES))
def test_no_two_words_of_a_vocabulary_mean_the_same(vocabulary: Vocabulary) -> None:
    for one, other in combinations(vocabulary, 2):
        apart = {vocabulary[one].reported, vocabulary[other].reported} == {True, False}
        assert apart or not vocabulary[one].states & vocabulary[other].states, (one, other)


@pytest.mark.parametrize("vocabulary", [CONTAINER_SCHEDULER, FILE_HUB_JOB], ids=["container scheduler", "file hub"])
def test_every_state_has_a_word(vocabulary: Vocabulary) -> None:
    assert [state for state in STATES if word_for(vocabulary, *state) is None] == []


def test_every_end_of_a_task_has_a_word_with_and_without_a_report() -> None:
    ends = [state for state in STATES if state[0] in TERMINAL]
    assert all(word_for(FILE_HUB_TASK, *end, reported=reported) for end in ends for reported in (True, False))
    assert {word_for(FILE_HUB_TASK, F, reason) for reason in REASONS[F]} == {"Failure"}
    assert {word_for(FILE_HUB_TASK, F, reason, reported=True) for reason in REASONS[F]} == {"Error"}


def test_integration_platforms_lack_a_word_only_for_what_was_canceled() -> None:
    wordless = {state for state in STATES if word_for(INTEGRATION_PLATFORM, *state) is None}
    assert wordless == {(X, reason) for reason in REASONS[X] - {Reason.DUPLICATE}}


@pytest.mark.parametrize(
    ("vocabulary", "status", "reason", "word"),
    [
        (INTEGRATION_PLATFORM, P, Reason.READY, "pending"),
        (INTEGRATION_PLATFORM, Q, Reason.DISPATCHED, "pending"),
        (INTEGRATION_PLATFORM, R, Reason.EXECUTING, "processing"),
        (INTEGRATION_PLATFORM, C, Reason.SUCCEEDED, "completed"),
        (INTEGRATION_PLATFORM, C, Reason.SKIPPED, "skipped"),
        (INTEGRATION_PLATFORM, F, Reason.ERROR, "failed"),
        (INTEGRATION_PLATFORM, P, Reason.REQUEUED, "requeued"),
        (INTEGRATION_PLATFORM, X, Reason.DUPLICATE, "duplicate_aborted"),
        (INTEGRATION_PLATFORM, F, Reason.UNRESOLVED, "unresolved"),
        (CONTAINER_SCHEDULER, Q, Reason.DISPATCHED, "queued"),
        (CONTAINER_SCHEDULER, R, Reason.PREPARING, "queued"),
        (CONTAINER_SCHEDULER, R, Reason.EXECUTING, "running"),
        (FILE_HUB_JOB, P, Reason.READY, "Pending"),
        (FILE_HUB_JOB, R, Reason.EXECUTING, "Pending"),
        (FILE_HUB_JOB, R, Reason.FANNED_OUT, "Started"),
        (FILE_HUB_JOB, R, Reason.PAUSING, "Pausing"),
        (FILE_HUB_JOB, R, Reason.PAUSED, "Paused"),
        (FILE_HUB_JOB, R, Reason.DEQUEUING, "Dequeuing"),
        (FILE_HUB_JOB, C, Reason.SUCCEEDED, "Success"),
        (FILE_HUB_JOB, F, Reason.PARTIAL, "Failure"),
        (FILE_HUB_JOB, X, Reason.BY_USER, "Cancelled"),
        (FILE_HUB_TASK, C, Reason.SKIPPED, "Skipped"),
    ],
)
def test_the_table_says_what_the_design_says(vocabulary: Vocabulary, status: Status, reason: Reason, word: str) -> None:
    assert word_for(vocabulary, status, reason) == word
