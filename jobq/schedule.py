"""When workflows run: schedules, their slots, what becomes of missed slots, and of jobs that overlap.

Pure arithmetic on aware instants; results are in UTC. A schedule is given with the workflow's **anchor**
(``anchor_of``): slots of an interval are ``anchor + k * interval`` for k = 1, 2, …, exact to the microsecond; slots of
a cron expression are its instants from the anchor on (``jobq.cron`` says what happens where clocks are changed).
Each slot is computed from the anchor, never from when something ran: there is no drift.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from itertools import islice, takewhile
from typing import Literal, NamedTuple
from zoneinfo import ZoneInfo

from jobq import cron
from jobq.duration import HINT, format_duration, parse_duration
from jobq.errors import InvalidInput

MIN_INTERVAL = timedelta(seconds=1)
MAX_INTERVAL = timedelta(days=365)
MAX_GRACE = timedelta(seconds=60)
MAX_SLOTS = 1_000
"""How many on-time slots one plan holds."""
MAX_COUNTED = 100
"""How far missed slots of a cron expression are counted: each costs some 10 µs."""

Misfire = Literal["coalesce", "skip", "catch_up"]
Overlap = Literal["allow", "skip", "queue", "cancel_running"]

_RFC_3339 = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?([Zz]|[+-][0-9]{2}:[0-9]{2})"
)
# Keys of the zone database; the folders and links that some hosts keep beside it are none.
_ZONE = re.compile(r"(?!posix|right/|localtime|Factory)[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*")
_YEARS = range(1970, 2200)
_TICK = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, init=False)
class Every:
    """A schedule with a fixed interval: ``Every("PT5M")``, ``Every(90)``, ``Every(minutes=5)``, ``Every(timedelta(…))``.

    The first slot is one interval after ``start_at``, or after the workflow's creation if it is not given; a
    ``start_at`` in the past only sets the rhythm. Text is an ISO 8601 duration without months and years; numbers are
    seconds; from one second to 365 days. Raises InvalidInput ``invalid_schedule``.
    """

    interval: timedelta
    start_at: datetime | None

    def __init__(
        self,
        interval: str | float | timedelta | None = None,
        start_at: str | datetime | None = None,
        *,
        weeks: float = 0,
        days: float = 0,
        hours: float = 0,
        minutes: float = 0,
        seconds: float = 0,
    ) -> None:
        units = {"weeks": weeks, "days": days, "hours": hours, "minutes": minutes, "seconds": seconds}
        if interval is None:
            interval = _sum_of(units)
        elif any(units.values()):
            raise _invalid("Give an interval or units such as minutes=5, not both.", "/interval")
        object.__setattr__(self, "interval", _parse_interval(interval))
        object.__setattr__(self, "start_at", None if start_at is None else _parse_start(start_at))

    def __str__(self) -> str:
        return f"every {format_duration(self.interval)}"


@dataclass(frozen=True, slots=True)
class Cron:
    """A schedule by wall clock: ``Cron("30 2 * * MON-FRI", "Europe/Berlin")``.

    Five fields (minute, hour, day of month, month, day of week) with names, lists, ranges, steps, ``L``, ``LW`` and
    ``MON#1``, as cronsim reads them (Debian's cron and a bit more); an IANA zone; no slot before ``start_at``. Hours
    that are skipped or come twice when clocks are changed: see ``jobq.cron``. Raises InvalidInput ``invalid_schedule``.
    """

    expression: str
    timezone: str = "UTC"
    start_at: datetime | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.expression, str):
            raise _invalid("A cron expression is text such as '30 2 * * *'.", "/cron")
        object.__setattr__(self, "expression", " ".join(self.expression.split()))
        _zone(self.timezone)
        try:
            cron.is_every_hour(self.expression)
        except ValueError as error:
            raise _invalid(f"{self.expression[:100]!r} is no schedule: {error}.", "/cron") from None
        if self.start_at is not None:
            object.__setattr__(self, "start_at", _parse_start(self.start_at))

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.timezone)

    def __str__(self) -> str:
        return f"cron {self.expression} ({self.timezone})"


Schedule = Every | Cron


def check_minimum(schedule: Schedule, minimum: timedelta) -> None:
    """Refuse (``invalid_schedule``) a schedule whose slots are closer than the operator's ``minimum``."""
    pointer, distance = "/interval", minimum
    if isinstance(schedule, Every):
        distance = schedule.interval
    elif minimum > timedelta(minutes=1):  # the finest that a cron expression can be
        pointer, distance = "/cron", cron.shortest_distance(schedule.expression)
    if distance < minimum:
        raise _invalid(
            f"The schedule runs {format_duration(distance)} apart; the operator's minimum is {format_duration(minimum)}.",
            pointer,
            hint="The operator sets it with JOBQ_POLICY__MIN_INTERVAL.",
        )


def parse_rfc3339(value: object, pointer: str = "") -> datetime:
    """The instant that RFC 3339 text (its offset is required) or an aware datetime names, in UTC.

    Digits beyond microseconds are dropped. Raises InvalidInput ``invalid_schedule``.
    """
    with suppress(ValueError, OverflowError):  # no such day, or none in UTC: refused below, as all else is
        if isinstance(value, datetime) and value.utcoffset() is not None:
            return value.astimezone(UTC)
        if isinstance(value, str) and _RFC_3339.fullmatch(value):
            return datetime.fromisoformat(value.upper()).astimezone(UTC)
    missing = "a datetime without an offset" if isinstance(value, datetime) else repr(value)[:100]
    raise _invalid(
        f"An instant must have a date, a time and an offset; {missing} is none.",
        pointer,
        hint="Write it like 2026-03-01T08:00:00+01:00 or 2026-03-01T07:00:00Z; in Python, pass an aware datetime.",
    )


def parse_instant(value: object, now: datetime, pointer: str = "/scheduled_at") -> datetime:
    """When a job shall run that was asked for ``value`` (see ``parse_rfc3339``): the past means ``now``.

    More than a year ahead (the same date next year still counts) is ``invalid_schedule``.
    """
    instant, now = parse_rfc3339(value, pointer), _utc(now)
    if instant > _a_year_after(now):
        raise _invalid(f"{instant.isoformat()} is more than a year ahead.", pointer, hint="Use a workflow instead.")
    return max(instant, now)


def anchor_of(schedule: Schedule, created_at: datetime) -> datetime:
    """What the slots are counted from: ``start_at``, or else the workflow's creation."""
    return schedule.start_at or _utc(created_at)


def first_slot(schedule: Schedule, created_at: datetime) -> datetime | None:
    """The first slot of a workflow that is created (or gets this schedule) at ``created_at``."""
    return next_slot(schedule, anchor_of(schedule, created_at), created_at)


def next_slot(schedule: Schedule, anchor: datetime, after: datetime) -> datetime | None:
    """The first slot strictly after ``after``. None: the cron expression matches no day in the next 50 years."""
    anchor, after = _utc(anchor), _utc(after)
    if isinstance(schedule, Every):
        return anchor + max((after - anchor) // schedule.interval + 1, 1) * schedule.interval
    return next(cron.instants(schedule.expression, schedule.zone, max(after, anchor - _TICK)), None)


def preview(schedule: Schedule, anchor: datetime, after: datetime, count: int) -> list[datetime]:
    """The next ``count`` slots after ``after``; fewer if there are no more."""
    slots: list[datetime] = []
    slot = next_slot(schedule, anchor, after)
    while slot is not None and len(slots) < count:
        slots.append(slot)
        slot = next_slot(schedule, anchor, slot)
    return slots


class Plan(NamedTuple):
    """What the scheduler does with a due workflow: make a job for each of ``slots`` and store ``next_fire_at``."""

    slots: tuple[datetime, ...]
    """Ascending: missed slots that are made up for, then those on time."""
    missed: int
    """How many were missed, made up for or not; of a cron expression they are counted up to
    ``MAX_COUNTED`` (or as many as may be caught up)."""
    next_fire_at: datetime | None
    """The first slot that this plan did not judge. It may be due already, if more than ``MAX_SLOTS`` were on time."""


def default_grace(interval: timedelta) -> timedelta:
    """How late a slot may start and still be on time: half the interval, from 1 to 60 seconds."""
    return max(min(interval / 2, MAX_GRACE), MIN_INTERVAL)


def plan(
    schedule: Schedule,
    anchor: datetime,
    due: datetime,
    now: datetime,
    policy: Misfire = "coalesce",
    *,
    grace: timedelta | None = None,
    max_catch_up: int = 10,
) -> Plan:
    """Judge every slot from ``due`` (the stored ``next_fire_at``) up to ``now``.

    A slot is missed when ``now > slot + grace`` (None: ``default_grace`` of the distance to the next slot). Slots on
    time always run. Of the missed ones ``skip`` runs none, ``coalesce`` the newest, ``catch_up`` the newest
    ``max_catch_up``. Costs the same however long nobody looked: intervals are divided, cron is searched backwards.
    """
    anchor, due, now = _utc(anchor), _utc(due), _utc(now)
    made_up = 0 if policy == "skip" else 1 if policy == "coalesce" else max_catch_up
    if isinstance(schedule, Every):
        return _plan_interval(schedule.interval, anchor, due, now, grace=grace, made_up=made_up)
    return _plan_cron(schedule, due, now, grace=grace, made_up=made_up)


def _plan_interval(
    interval: timedelta,
    anchor: datetime,
    due: datetime,
    now: datetime,
    *,
    grace: timedelta | None,
    made_up: int,
) -> Plan:
    """In slot numbers: [first, on_time) are missed, [on_time, end) run. ``-(-a // b)`` rounds up."""
    first = max(-((anchor - due) // interval), 1)
    beyond = (now - anchor) // interval + 1
    if beyond <= first:
        return Plan((), 0, anchor + first * interval)
    grace = default_grace(interval) if grace is None else grace
    on_time = min(max(-((anchor + grace - now) // interval), first), beyond)
    end = min(beyond, on_time + MAX_SLOTS)
    start = max(first, on_time - made_up)
    return Plan(tuple(anchor + k * interval for k in range(start, end)), on_time - first, anchor + end * interval)


def _plan_cron(schedule: Cron, due: datetime, now: datetime, *, grace: timedelta | None, made_up: int) -> Plan:
    """``due`` is taken for a slot, even if the zone's rules changed since it was computed."""
    if due > now:
        return Plan((), 0, due)
    # Older slots cannot be on time: the search for those begins here, however long ago ``due`` was.
    oldest = now - (MAX_GRACE if grace is None else grace)
    slots = cron.instants(schedule.expression, schedule.zone, max(due, oldest - _TICK))
    slot = due if due >= oldest else next(slots, None)
    on_time: list[datetime] = []
    while slot is not None and slot <= now and len(on_time) < MAX_SLOTS:
        following = next(slots, None)
        own = grace
        if own is None:
            own = default_grace(following - slot) if following else MAX_GRACE
        if now <= slot + own:
            on_time.append(slot)
        slot = following
    missed_until = (on_time[0] if on_time else now + _TICK) - _TICK
    missed = _missed(schedule, due, missed_until, max(made_up, MAX_COUNTED))
    return Plan((*_newest(schedule, due, missed_until, min(made_up, missed)), *on_time), missed, slot)


def _missed(schedule: Cron, due: datetime, until: datetime, limit: int) -> int:
    """How many slots lie in [due, until]; counting ends at ``limit``."""
    if due > until:
        return 0
    later = takewhile(lambda slot: slot <= until, cron.instants(schedule.expression, schedule.zone, due))
    return 1 + sum(1 for _ in islice(later, limit - 1))


def _newest(schedule: Cron, due: datetime, until: datetime, count: int) -> list[datetime]:
    """The newest ``count`` slots in [due, until], ascending; there are as many."""
    found = islice(cron.instants_back(schedule.expression, schedule.zone, until), count) if count else ()
    newest = [slot for slot in found if slot > due]
    return [*([due] if len(newest) < count else []), *newest[::-1]]


class Verdict(StrEnum):
    """What becomes of a new AUTOMATIC job beside the earlier ones of its workflow."""

    RUN = "run"
    """Accept it. Under every policy but ``allow`` it starts only when the live ones have ended."""
    CANCEL_NEW = "cancel_new"
    """Record it as CANCELED·overlap."""
    CANCEL_RUNNING_THEN_RUN = "cancel_running_then_run"
    """Cancel every earlier one (CANCELED·overlap), waiting or running; accept the new one, as in ``RUN``."""


def judge_overlap(policy: Overlap, live: int, waiting: int) -> Verdict:
    """Judge a new AUTOMATIC job against the workflow's other AUTOMATIC ones; MANUAL ones count for nothing.

    ``live`` counts those that are ready, queued, running, retrying or requeued, ``waiting`` the ones among them that
    are not running. ``queue`` keeps at most one waiting and cancels newer ones: a slot that was accepted is never
    put off by the next.
    """
    if live == 0 or policy == "allow":
        return Verdict.RUN
    if policy == "cancel_running":
        return Verdict.CANCEL_RUNNING_THEN_RUN
    return Verdict.CANCEL_NEW if policy == "skip" or waiting > 0 else Verdict.RUN


def _invalid(message: str, pointer: str, *, hint: str | None = None) -> InvalidInput:
    return InvalidInput(message, code="invalid_schedule", hint=hint, pointer=pointer)


def _a_year_after(now: datetime) -> datetime:
    """The same date next year; for 29 February, 1 March."""
    if (now.month, now.day) == (2, 29):
        return now.replace(year=now.year + 1, month=3, day=1)
    return now.replace(year=now.year + 1)


def _utc(instant: datetime) -> datetime:
    """In UTC: datetimes that share another zone would be subtracted by their wall clocks."""
    if instant.tzinfo is UTC:
        return instant
    if instant.tzinfo is None:
        raise TypeError("instants are aware: this datetime has no offset")
    return instant.astimezone(UTC)


def _sum_of(units: dict[str, float]) -> timedelta:
    try:
        return timedelta(**units)
    except (OverflowError, TypeError, ValueError):
        raise _invalid("The units of an interval are numbers, together at most 365 days.", "/interval") from None


def _parse_interval(value: object) -> timedelta:
    try:
        interval = parse_duration(value)
    except ValueError as error:
        raise _invalid(f"The interval is wrong: {error}.", "/interval", hint=HINT) from None
    if not MIN_INTERVAL <= interval <= MAX_INTERVAL:
        raise _invalid(
            f"An interval lasts from 1 second to 365 days; {interval.total_seconds():g} seconds do not.",
            "/interval",
            hint=HINT,
        )
    return interval


def _parse_start(value: object) -> datetime:
    instant = parse_rfc3339(value, "/start_at")
    if instant.year not in _YEARS:
        raise _invalid(f"start_at lies between the years 1970 and 2199, not in {instant.year}.", "/start_at")
    return instant


def _zone(key: object) -> None:
    """Refuse what is no IANA zone: looked up in the system's zone database, then in the package ``tzdata``."""
    with suppress(OSError, ValueError, KeyError):
        if isinstance(key, str) and _ZONE.fullmatch(key):
            ZoneInfo(key)
            return
    raise _invalid(
        f"{str(key)[:100]!r} is no time zone.",
        "/timezone",
        hint="Write an IANA name such as 'Europe/Berlin' or 'UTC'.",
    )
