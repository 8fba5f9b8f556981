"""``jobq analytics``: what ended, how, and how long it took, as a table over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from jobq.cli.options import AsJson, given, spread
from jobq.cli.output import instant, say, write_json, write_table
from jobq.cli.session import connected, parse_key
from jobq.errors import InvalidInput
from jobq.states import Status

if TYPE_CHECKING:
    from jobq.analytics import Point, Trend
    from jobq.client import JobQ

_BYTES = ((2**30, "GB"), (2**20, "MB"), (2**10, "kB"))


@dataclass(frozen=True)
class Question:
    """Which jobs, and how they are divided."""

    since: Annotated[str | None, Option(metavar="RFC3339", help="Ended at or after; a day before --until.")] = None
    until: Annotated[str | None, Option(metavar="RFC3339", help="Ended before; now.")] = None
    last: Annotated[str | None, Option(metavar="DURATION", help="Instead of --since, such as P30D.")] = None
    bucket: Annotated[str | None, Option(metavar="minute|hour|day", help="Divide the time.")] = None
    by: Annotated[str | None, Option(metavar="kind|queue|workflow", help="Divide the jobs.")] = None
    kind: Annotated[list[str] | None, Option(metavar="KIND", help="Repeatable.")] = None
    queue: Annotated[list[str] | None, Option(metavar="QUEUE", help="Repeatable.")] = None
    workflow: Annotated[str | None, Option(help="Id or name of a workflow.")] = None
    timezone: Annotated[str | None, Option(metavar="ZONE", help="Whose days; UTC.")] = None
    limit: Annotated[int | None, Option(help="By workflow: how many (20), those with the most jobs.")] = None

    def asked(self, jobq: JobQ) -> dict[str, Any]:
        """As arguments of ``JobQ.analytics``."""
        from datetime import UTC, datetime

        from jobq.duration import HINT, parse_duration
        from jobq.schedule import parse_rfc3339

        until = None if self.until is None else parse_rfc3339(self.until, "/until")
        since = None if self.since is None else parse_rfc3339(self.since, "/since")
        if self.last is not None:
            try:
                since = (until or datetime.now(UTC)) - parse_duration(self.last)
            except (ValueError, OverflowError) as error:
                raise InvalidInput(f"last is wrong: {error}.", hint=HINT, pointer="/last") from None
        return given(
            since=since, until=until, bucket=self.bucket, group_by=self.by, timezone=self.timezone, limit=self.limit,
            kinds=[kind.upper() for kind in self.kind or ()], queues=self.queue,
            workflow_id=None if self.workflow is None else jobq.get_workflow(parse_key(self.workflow)).id,
        )  # fmt: skip


@spread
def analytics(context: typer.Context, question: Question, as_json: AsJson = False) -> None:
    """Ended jobs: counts, success rate, run and wait times, retries and log volume; exact, percentiles to 5 %."""
    with connected(context) as jobq:
        trend = jobq.analytics(**question.asked(jobq))
        names = _names(jobq, trend.items) if trend.group_by == "workflow" and not as_json else {}
    if as_json:
        write_json(trend)
        return
    head = [
        "JOBS",
        "COMPLETED",
        "FAILED",
        "CANCELED",
        "SUCCESS",
        "RUN P50",
        "P95",
        "P99",
        "WAIT P50",
        "P95",
        "P99",
        "RETRIES",
        "LOGS",
    ]
    before = [*(["FROM (UTC)"] if trend.bucket else []), *([str(trend.group_by).upper()] if trend.group_by else [])]
    rows = [(*_place(point, trend, names), *_figures(point)) for point in trend.items]
    write_table([*before, *head], rows, empty="No job ended in that time.", drop=("LOGS", "RETRIES", "CANCELED"))
    say(f"{instant(trend.since)} to {instant(trend.until)}", stderr=True)


def _names(jobq: JobQ, points: Sequence[Point]) -> dict[Any, str]:
    from jobq.errors import NotFound

    found = {}
    for workflow_id in {point.workflow_id for point in points if point.workflow_id is not None}:
        try:
            found[workflow_id] = jobq.get_workflow(workflow_id).name
        except NotFound:
            found[workflow_id] = str(workflow_id)  # deleted; what it did stays
    return found


def _place(point: Point, trend: Trend, names: dict[Any, str]) -> list[object]:
    at = [] if point.start is None else [instant(point.start)[:16].replace("T", " ")]
    if trend.group_by is None:
        return [*at]
    if trend.group_by == "workflow":
        return [*at, names.get(point.workflow_id, "(none)")]
    return [*at, point.kind or point.queue]


def _figures(point: Point) -> list[object]:
    rate = "" if point.success_rate is None else f"{point.success_rate:.1%}"
    times = [
        _seconds(value) for spread_ in (point.run, point.wait) for value in (spread_.p50, spread_.p95, spread_.p99)
    ]
    counts = [point.statuses[status] for status in (Status.COMPLETED, Status.FAILED, Status.CANCELED)]
    return [point.jobs, *counts, rate, *times, point.retries, _size(point.log_bytes)]


def _seconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s" if value < 100 else f"{value / 60:.0f} min"


def _size(count: int) -> str:
    for unit, name in _BYTES:
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} B"
