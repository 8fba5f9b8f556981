"""The trend: what ended, how, how long it waited and ran, over time and by kind, queue or workflow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from jobq.errors import InvalidInput
from jobq.histogram import percentile
from jobq.states import REASONS, TERMINAL, Reason, Status
from jobq.store import analytics as store
from jobq.store.rollup import Sums

if TYPE_CHECKING:
    from jobq.store.database import Database

Bucket = Literal["minute", "hour", "day"]
Group = Literal["kind", "queue", "workflow"]
_HOUR = timedelta(hours=1)
_WIDTHS = {"minute": timedelta(minutes=1), "hour": _HOUR, "day": timedelta(days=1)}
_MOST_BUCKETS = 1_000
_MOST_MINUTES = timedelta(hours=6)
_MOST_HOURS = timedelta(days=62)
"""Of a range whose days are not those of UTC: it is added up hour by hour."""
_STATUS_OF = {reason: status for status in TERMINAL for reason in REASONS[status]}


@dataclass(frozen=True, slots=True)
class Spread:
    """How seconds are distributed. Percentiles are off by 5 % at most, or by a millisecond; None: of no job."""

    mean: float | None
    p50: float | None
    p95: float | None
    p99: float | None


@dataclass(frozen=True, slots=True)
class Point:
    """Jobs that ended in one bucket of time, of one kind, queue or workflow if they are grouped so."""

    start: datetime | None
    """Of the bucket; None: the whole range."""
    kind: str | None
    queue: str | None
    workflow_id: UUID | None
    jobs: int
    statuses: dict[Status, int]
    reasons: dict[Reason, int]
    success_rate: float | None
    """COMPLETED of COMPLETED and FAILED; None: neither."""
    run: Spread
    """From the start of the last attempt to its end, of jobs that had one."""
    wait: Spread
    """From ready to that start."""
    retries: int
    """Attempts beyond the first."""
    log_bytes: int


@dataclass(frozen=True, slots=True)
class Trend:
    """What was asked for, in whole hours (or minutes), and the answer, the oldest and the most first."""

    since: datetime
    until: datetime
    bucket: str | None
    group_by: str | None
    timezone: str
    items: list[Point]


class Trends:
    """What ``JobQ`` knows of ended jobs, all together."""

    tenant: str

    if TYPE_CHECKING:

        @cached_property
        def database(self) -> Database: ...

    def analytics(  # noqa: PLR0913 - a question has many sides, and each has its name
        self, *, since: datetime | None = None, until: datetime | None = None, bucket: Bucket | None = None,
        group_by: Group | None = None, kinds: Sequence[str] = (), queues: Sequence[str] = (),
        workflow_id: UUID | None = None, timezone: str = "UTC", limit: int = 20,
    ) -> Trend:  # fmt: skip
        """Jobs that ended in [since, until), by default in the last day, widened to whole hours.

        ``bucket`` divides the time: into days of ``timezone`` (an hour belongs to the day in which it begins), hours, or
        minutes, which are those of jobs that are still kept and reach over 6 h at most. ``group_by`` divides the jobs;
        by workflow only the ``limit`` (1 to 100) with the most jobs are told. Exact but for the percentiles.
        """
        zone = _zone(timezone)
        if not 1 <= limit <= 100:
            raise InvalidInput("limit is between 1 and 100.", pointer="/limit")
        _check(bucket, _WIDTHS, "bucket")
        _check(group_by, ("kind", "queue", "workflow"), "group_by")
        since, until = _range(since, until, bucket, zone)
        wanted = store.Wanted(
            self.tenant, since, until, frozenset(kinds), frozenset(queues), workflow_id,
            each_workflow=group_by == "workflow", by_hour=bucket == "hour" or (bucket == "day" and zone is not UTC),
            limit=limit,
        )  # fmt: skip

        def place(start: datetime, kind: str, queue: str, workflow: UUID | None) -> tuple[datetime | None, Any]:
            group = {"kind": kind, "queue": queue, "workflow": workflow}
            return _bucket(start, bucket, zone), group[group_by] if group_by else None

        with self.database.read() as conn:
            found = store.read_jobs(conn, wanted, 60, place) if bucket == "minute" else store.read(conn, wanted, place)
        if not group_by:
            starts = _buckets(since, until, bucket, zone) if bucket else [None]
            found = {(start, None): found.get((start, None), Sums()) for start in starts}
        points = [_point(start, group_by, group, sums) for (start, group), sums in found.items()]
        if group_by == "workflow":
            points = _busiest(points, limit)
        points.sort(key=lambda point: (point.start or since, -point.jobs, str(point)))
        return Trend(since, until, bucket, group_by, timezone, points)


def _busiest(points: Sequence[Point], limit: int) -> list[Point]:
    totals: dict[UUID | None, int] = {}
    for point in points:
        totals[point.workflow_id] = totals.get(point.workflow_id, 0) + point.jobs
    kept = set(sorted(totals, key=lambda each: (-totals[each], str(each)))[:limit])
    return [point for point in points if point.workflow_id in kept]


def _point(start: datetime | None, group_by: str | None, group: Any, sums: Sums) -> Point:
    named = {"kind": None, "queue": None, "workflow": None} | ({group_by: group} if group_by else {})
    reasons = {Reason(reason): count for reason, count in sorted(sums.ends.items())}
    statuses = dict.fromkeys(sorted(TERMINAL), 0)
    for reason, count in reasons.items():
        statuses[_STATUS_OF[reason]] += count
    tried = statuses[Status.COMPLETED] + statuses[Status.FAILED]
    return Point(
        start, named["kind"], named["queue"], named["workflow"], sums.jobs, statuses, reasons,
        statuses[Status.COMPLETED] / tried if tried else None, _spread(sums.run.counts(), sums.run_seconds),
        _spread(sums.wait.counts(), sums.wait_seconds), sums.retries, sums.log_bytes,
    )  # fmt: skip


def _spread(counts: dict[int, int], seconds: float) -> Spread:
    count = sum(counts.values())
    return Spread(seconds / count if count else None, *(percentile(counts, percent) for percent in (50, 95, 99)))


# --- ranges and buckets of time --------------------------------------------------------------------------------------


def _range(since: datetime | None, until: datetime | None, bucket: str | None, zone: Any) -> tuple[datetime, datetime]:
    until = until or datetime.now(UTC)
    since = since or until - timedelta(days=1)
    for instant, name in ((since, "since"), (until, "until")):
        if instant.tzinfo is None:
            raise InvalidInput(f"{name} has no offset from UTC.", pointer=f"/{name}")
    step = _WIDTHS["minute"] if bucket == "minute" else _HOUR
    since, until = _floor(since, step), _ceiling(until, step)
    if since >= until:
        raise InvalidInput("since is not before until.", code="invalid_range", pointer="/since")
    width = until - since
    if bucket == "minute" and width > _MOST_MINUTES:
        raise InvalidInput("Minutes reach over 6 h at most.", code="invalid_range", pointer="/bucket")
    if bucket == "day" and zone is not UTC and width > _MOST_HOURS:
        raise InvalidInput(
            "Days of a zone other than UTC reach over 62 at most.", code="invalid_range", pointer="/since"
        )
    if bucket and width / _WIDTHS[bucket] > _MOST_BUCKETS:
        raise InvalidInput(
            f"The range has more than {_MOST_BUCKETS} buckets.", code="invalid_range", pointer="/bucket",
            hint="Ask for a shorter range, or for longer buckets.",
        )  # fmt: skip
    return since, until


def _floor(instant: datetime, step: timedelta) -> datetime:
    instant = instant.astimezone(UTC)
    return instant - (instant - datetime(1970, 1, 1, tzinfo=UTC)) % step


def _ceiling(instant: datetime, step: timedelta) -> datetime:
    floor = _floor(instant, step)
    return floor if floor == instant else floor + step


def _bucket(start: datetime, bucket: str | None, zone: Any) -> datetime | None:
    if bucket is None:
        return None
    if bucket != "day":
        return start
    local = start.astimezone(zone)
    return local.replace(hour=0, minute=0, second=0, microsecond=0, fold=0).astimezone(UTC)


def _buckets(since: datetime, until: datetime, bucket: str, zone: Any) -> Iterator[datetime]:
    """Every bucket of the range, also those in which nothing ended."""
    step = min(_WIDTHS[bucket], _HOUR)
    last = None
    while since < until:
        start = _bucket(since, bucket, zone)
        if start is not None and start != last:
            yield start
        last, since = start, since + step


def _zone(name: str) -> Any:
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise InvalidInput(
            f"There is no time zone {name[:100]!r}.", hint="Use a name such as Europe/Berlin.", pointer="/timezone"
        ) from None


def _check(value: str | None, allowed: Any, name: str) -> None:
    if value is not None and value not in allowed:
        raise InvalidInput(f"{name} is one of {', '.join(allowed)}.", pointer=f"/{name}")
