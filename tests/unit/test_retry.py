from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobq.errors import InvalidInput
from jobq.models import Outcome
from jobq.plugins import BUILT_IN
from jobq.retry import RetryPolicy, backoff, retryable
from jobq.states import Reason
from jobq.validation import parse

JOB = UUID("0199c0de-0000-7000-8000-000000000001")
SECOND = timedelta(seconds=1)


def policy(**fields: Any) -> RetryPolicy:
    return parse(RetryPolicy, fields)


def seconds(of: RetryPolicy, count: int) -> list[float]:
    return [backoff(of, failures, JOB).total_seconds() for failures in range(1, count + 1)]


# --- how long --------------------------------------------------------------------------------------------------------


def test_without_jitter_waits_double_up_to_the_maximum() -> None:
    assert seconds(policy(jitter=0), 11) == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]


def test_a_wait_never_overflows_however_many_failures_there_were() -> None:
    assert backoff(policy(jitter=0, factor=100), 10_000, JOB) == timedelta(minutes=5)
    assert backoff(policy(jitter=0, factor=1.01), 10_000, JOB) == timedelta(minutes=5)
    assert backoff(policy(jitter=0, factor=1), 10_000, JOB) == SECOND


def test_an_initial_wait_of_zero_retries_at_once() -> None:
    assert backoff(policy(initial=0), 5, JOB) == timedelta(0)


def test_the_same_seed_gives_the_same_wait_and_another_job_another() -> None:
    assert backoff(policy(), 3, JOB) == backoff(policy(), 3, str(JOB))
    assert len({backoff(policy(), 3, seed) for seed in range(100)}) == 100


def test_failures_count_from_one() -> None:
    with pytest.raises(ValueError, match="from 1"):
        backoff(policy(), 0, JOB)


@given(
    st.builds(
        dict,
        initial=st.timedeltas(timedelta(0), timedelta(hours=1)),
        maximum=st.timedeltas(timedelta(hours=1), timedelta(days=7)),
        factor=st.floats(1, 100),
    ),
    st.floats(0, 1),
    st.integers(1, 200),
    st.integers(),
)
@settings(deadline=None)
def test_jitter_only_shortens_a_wait_and_only_by_its_share(
    fields: dict[str, Any], jitter: float, failures: int, seed: int
) -> None:
    full = backoff(policy(**fields, jitter=0), failures, seed)
    wait = backoff(policy(**fields, jitter=jitter), failures, seed)
    assert full <= fields["maximum"]
    assert full * (1 - jitter) - timedelta(microseconds=1) <= wait <= full


# --- whether ---------------------------------------------------------------------------------------------------------


def exited(code: int) -> Outcome:
    return Outcome.failed(f"exit code {code}", error_class=f"exit_{code}", reason=Reason.NONZERO_EXIT, exit_code=code)


def test_a_plain_failure_is_retried() -> None:
    assert retryable(policy(), Outcome.failed("no"))
    assert retryable(policy(), Outcome.timed_out("late"))
    assert retryable(policy(), exited(1))


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome.succeeded(),
        Outcome.skipped("nothing to do"),
        Outcome.stopped(),
        Outcome.requeued(SECOND, "not now"),
        Outcome.invalid("cannot work"),
        Outcome.failed("hopeless", retry=False),
    ],
)
def test_what_did_not_fail_or_is_hopeless_is_not_retried(outcome: Outcome) -> None:
    assert not retryable(policy(retry_lost=True, retry_on=["invalid", "error", "stopped", "Unavailable"]), outcome)


@pytest.mark.parametrize(("retry_lost", "retried"), [(True, True), (False, False), (None, False)])
def test_a_lost_attempt_is_judged_by_retry_lost_alone(retry_lost: bool | None, retried: bool) -> None:
    assert retryable(policy(retry_lost=retry_lost), Outcome.lost()) is retried
    assert retryable(policy(retry_lost=retry_lost, retry_on=["dns"]), Outcome.lost()) is retried


def test_exit_codes_that_are_not_retried() -> None:
    rules = policy(no_retry_exit_codes=[2, 64])
    assert [retryable(rules, exited(code)) for code in (1, 2, 64)] == [True, False, False]


def test_exit_codes_that_alone_are_retried_leave_failures_without_one_alone() -> None:
    rules = policy(retry_exit_codes=[75])
    assert [retryable(rules, exited(code)) for code in (1, 75)] == [False, True]
    assert retryable(rules, Outcome.timed_out("late"))


def test_error_classes_that_alone_are_retried() -> None:
    rules = policy(retry_on=["dns", ConnectionError])
    assert retryable(rules, Outcome.failed("no", error_class="dns"))
    assert retryable(rules, Outcome.failed("no", error_class="ConnectionError"))
    assert not retryable(rules, Outcome.failed("no", error_class="tls"))
    assert not retryable(rules, exited(75))


def test_error_classes_or_exit_codes_suffice_where_both_are_named() -> None:
    rules = policy(retry_on=["exit_7", "timed_out"], retry_exit_codes=[75])
    assert [retryable(rules, exited(code)) for code in (7, 75, 1)] == [True, True, False]
    assert retryable(rules, Outcome.timed_out("late"))


def test_giving_up_wins_over_retrying() -> None:
    assert not retryable(policy(give_up_on=["exit_75"], retry_exit_codes=[75]), exited(75))
    assert not retryable(policy(give_up_on={ValueError}), Outcome.failed("no", error_class="ValueError"))


# --- what people may write -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"max_attempts": 0}, "/max_attempts"),
        ({"max_attempts": 101}, "/max_attempts"),
        ({"max_attempts": "3"}, "/max_attempts"),
        ({"max_attempts": True}, "/max_attempts"),
        ({"factor": 0.5}, "/factor"),
        ({"factor": float("nan")}, "/factor"),
        ({"jitter": 1.1}, "/jitter"),
        ({"initial": "soon"}, "/initial"),
        ({"initial": -1}, ""),
        ({"initial": 600}, ""),
        ({"maximum": "P8D"}, ""),
        ({"retry_exit_codes": [0]}, "/retry_exit_codes/0"),
        ({"retry_exit_codes": [1, 256]}, "/retry_exit_codes/1"),
        ({"retry_exit_codes": 5}, "/retry_exit_codes"),
        ({"retry_exit_codes": [1], "no_retry_exit_codes": [1]}, ""),
        ({"retry_on": "dns"}, "/retry_on"),
        ({"retry_on": [""]}, "/retry_on/0"),
        ({"retry_on": ["dns"], "give_up_on": ["dns"]}, ""),
        ({"retry_on": ["lost"]}, ""),
        ({"tries": 3}, "/tries"),
    ],
)
def test_a_wrong_policy_is_refused_where_it_is_wrong(fields: dict[str, Any], pointer: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        policy(**fields)
    assert (raised.value.code, raised.value.pointer) == ("validation_error", pointer)


def test_the_kind_fills_in_what_a_policy_leaves_open() -> None:
    container, heartbeat = BUILT_IN["CONTAINER"], BUILT_IN["HEARTBEAT"]
    assert (policy().resolved(container).max_attempts, policy().resolved(container).retry_lost) == (1, False)
    assert (policy().resolved(heartbeat).max_attempts, policy().resolved(heartbeat).retry_lost) == (3, True)
    own = policy(max_attempts=7, retry_lost=True)
    assert own.resolved(container) is own


@pytest.mark.parametrize(
    "given_policy",
    [
        policy(),
        policy(max_attempts=5, initial="PT0.5S", retry_on=["dns"], no_retry_exit_codes=[2], retry_lost=True),
    ],
)
def test_a_stored_policy_reads_back_as_the_same(given_policy: RetryPolicy) -> None:
    assert RetryPolicy.model_validate(given_policy.stored()) == given_policy
    assert RetryPolicy.model_validate(given_policy.model_dump(mode="json")) == given_policy
    assert policy().stored() == {}
