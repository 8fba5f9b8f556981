"""When a failed attempt is tried again, and how long that waits. Pure: a policy, and two functions that judge by it."""

from __future__ import annotations

import math
from datetime import timedelta
from random import Random
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator

from jobq.duration import Duration
from jobq.models import Outcome
from jobq.states import Reason, Status

if TYPE_CHECKING:
    from jobq.plugins import Kind

LONGEST = timedelta(days=7)


def _names(value: object) -> object:
    """Error classes by name; Python code may give the exception classes themselves."""
    if not isinstance(value, list | tuple | set | frozenset):
        return value
    return tuple(
        item.__name__ if isinstance(item, type) and issubclass(item, BaseException) else item for item in value
    )


def _numbers(value: object) -> object:
    return tuple(value) if isinstance(value, list | tuple | set | frozenset) else value


_ErrorClass = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x20]+$")]
_ExitCode = Annotated[int, Field(ge=1, le=255)]
ErrorClasses = Annotated[
    tuple[_ErrorClass, ...],
    BeforeValidator(_names),
    PlainSerializer(list, return_type=list[str], when_used="json"),
    Field(max_length=100),
]
ExitCodes = Annotated[
    tuple[_ExitCode, ...],
    BeforeValidator(_numbers),
    PlainSerializer(list, return_type=list[int], when_used="json"),
    Field(max_length=255),
]


class RetryPolicy(BaseModel):
    """Which failures of a job are tried again, how often, and after how long.

    The wait before the n-th retry is ``initial * factor ** (n - 1)``, at most ``maximum``; of that, a random part of
    up to ``jitter`` is taken off, so that jobs that failed together do not come back together. 0 takes off nothing;
    1 is the "full jitter" of the AWS Architecture Blog (Exponential Backoff and Jitter, 2015).

    Rules, in this order: a failure that its executor calls hopeless is final; a lost attempt is judged by
    ``retry_lost`` alone; what ``give_up_on`` or ``no_retry_exit_codes`` name is final; where ``retry_on`` or
    ``retry_exit_codes`` are given, only what they name is retried; everything else is.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    max_attempts: Annotated[int, Field(ge=1, le=100)] | None = None
    """Charged attempts in all, the first one too: 1 never retries. None: the kind's default."""
    initial: Duration = timedelta(seconds=1)
    factor: Annotated[float, Field(ge=1, le=100)] = 2.0
    maximum: Duration = timedelta(minutes=5)
    jitter: Annotated[float, Field(ge=0, le=1)] = 0.2
    retry_lost: bool | None = None
    """Try again after a worker died and nobody knows how far it came? None: the kind's default."""
    retry_exit_codes: ExitCodes | None = None
    """Of attempts that ended with an exit code, retry these only (and what ``retry_on`` names)."""
    no_retry_exit_codes: ExitCodes = ()
    retry_on: ErrorClasses | None = None
    """Retry these error classes only (and ``retry_exit_codes``): words such as ``dns``, names of exceptions."""
    give_up_on: ErrorClasses = ()

    @model_validator(mode="after")
    def _consistent(self) -> RetryPolicy:
        if not timedelta(0) <= self.initial <= self.maximum <= LONGEST:
            raise ValueError("backoff needs 0 <= initial <= maximum <= 7 days")
        if both := {*(self.retry_exit_codes or ())} & {*self.no_retry_exit_codes}:
            raise ValueError(f"exit code {min(both)} is both retried and not retried")
        if names := {*(self.retry_on or ())} & {*self.give_up_on}:
            raise ValueError(f"{min(names)!r} is in retry_on and in give_up_on")
        if "lost" in (*(self.retry_on or ()), *self.give_up_on):
            raise ValueError("whether a lost attempt is tried again is said by retry_lost, not by its error class")
        return self

    def resolved(self, kind: Kind) -> RetryPolicy:
        """The policy with the kind's defaults filled in: what a job is stored with."""
        missing = {name: getattr(kind, name) for name in ("max_attempts", "retry_lost") if getattr(self, name) is None}
        return self.model_copy(update=missing) if missing else self

    def stored(self) -> dict[str, Any]:
        """The policy as small JSON: without what is as in ``RetryPolicy()``. ``model_validate`` reads it back."""
        return self.model_dump(mode="json", exclude_defaults=True)


OF_CHILDREN = RetryPolicy(retry_lost=True)
"""Of REPLICATION jobs, which store none of their own: writing an entity again does no harm."""


def stored_policy(kind: str, stored: dict[str, Any] | None) -> RetryPolicy:
    """The policy of a job, from what is stored with it."""
    return OF_CHILDREN if stored is None and kind == "REPLICATION" else RetryPolicy.model_validate(stored or {})


def retryable(policy: RetryPolicy, outcome: Outcome) -> bool:
    """May an attempt that ended like this be tried again? How many there were is counted elsewhere.

    False for everything but failures. ``retry_lost`` counts as no while it is not ``resolved``: where nobody knows
    whether the work was done, doing it twice is the worse mistake.
    """
    if outcome.status is not Status.FAILED or not outcome.retry:
        return False
    if outcome.reason is Reason.UNRESOLVED:
        return policy.retry_lost is True
    code, name = outcome.exit_code, outcome.error_class
    if name in policy.give_up_on or code in policy.no_retry_exit_codes:
        return False
    by_code = None if policy.retry_exit_codes is None or code is None else code in policy.retry_exit_codes
    by_name = None if policy.retry_on is None else name in policy.retry_on
    return True if by_code is None and by_name is None else bool(by_code or by_name)


def backoff(policy: RetryPolicy, failures: int, seed: str | int | UUID) -> timedelta:
    """How long to wait after the ``failures``-th charged failure (1, 2, …), at most ``policy.maximum``.

    The same seed (the job's id) and number give the same wait in every process.
    """
    if failures < 1:
        raise ValueError("backoff follows a failure: they count from 1")
    base, longest = policy.initial, policy.maximum
    if base:
        # In logarithms, because the power itself may overflow.
        reached = (failures - 1) * math.log(policy.factor) >= math.log(longest / base)
        base = longest if reached else base * policy.factor ** (failures - 1)
    return base * (1 - policy.jitter * Random(f"{seed}:{failures}").random())
