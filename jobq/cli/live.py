"""What ``jobq dev`` shows: the workflows and the newest jobs as tables, or a line for each job that ended.

Children of a SYNC are shown as the progress of their SYNC, never one by one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from jobq.cli.output import duration, plain, state
from jobq.errors import NotFound
from jobq.models import FanOut, Job, JobFilter, Workflow, WorkflowStatus
from jobq.states import Reason, Status
from jobq.store import exports, jobs, workflows
from jobq.store.listing import list_page
from jobq.store.workers import database_now

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.style import Style
    from rich.table import Table
    from rich.text import Text

    from jobq.store.database import Connection, Database

_NEWEST = 200
_WORKFLOWS = 40
_LINES = 40
"""Jobs looked at, workflows shown, and lines written at most, per second."""
_FOLLOWED = 2000
"""Jobs that have not ended of which the end will be told, at most."""
_SYNCS = 20
"""Fan-outs looked at: their children may push everything else out of the newest jobs."""
_NO_FILTER = JobFilter()
_SYNC = "SYNC"


@dataclass(slots=True)
class Seen:
    """The database at one moment, and what changed since the moment before."""

    at: datetime
    workflows: list[Workflow]
    newest: list[Job]
    ended: list[Job]
    """Since the last look, in the order in which they ended."""
    terminated: list[Workflow]
    progress: dict[UUID, str]
    """Of SYNCs: what became of their children."""


@dataclass(slots=True)
class Watch:
    """Looks once a second; a look costs the newest jobs and the workflows, however many others there are."""

    database: Database
    succeeded: Counter[UUID] = field(default_factory=Counter)
    failed: Counter[UUID] = field(default_factory=Counter)
    last: dict[UUID, Job] = field(default_factory=dict)
    """Per workflow, since the start: jobs that completed, that failed, and the one that ended last."""
    _shown: dict[UUID, Job] = field(default_factory=dict)
    _progress: dict[UUID, str] = field(default_factory=dict)
    _came_to: dict[UUID, str] = field(default_factory=dict)
    """Progress of SYNCs, and of those that have ended: it stays as it is."""
    _live: set[UUID] = field(default_factory=set)
    _newest: UUID | None = None
    _terminated: set[UUID] = field(default_factory=set)

    def look(self) -> Seen:
        """What is there now. The first look reports nothing as ended: that was before."""
        with self.database.read() as conn:
            at = database_now(conn)
            flows = workflows.list_page(conn, None, after=None, limit=_WORKFLOWS)
            newest = self._look_at_jobs(conn)
            ended = self._ended(conn, newest)
            self._look_at_syncs(conn, newest)
        terminated = {flow.id for flow in flows if flow.status is WorkflowStatus.TERMINATED}
        new = [] if self._newest is None else [flow for flow in flows if flow.id in terminated - self._terminated]
        self._terminated = terminated
        self._newest = max([job.id for job in newest], default=UUID(int=0))
        for job in ended:
            self._count(job)
        return Seen(at, flows, newest, ended, new, self._progress)

    def _look_at_jobs(self, conn: Connection) -> list[Job]:
        """The newest jobs that are no children, and those that were shown before their children came."""
        rows = list_page(conn, None, _NO_FILTER, before=None, limit=_NEWEST).jobs
        found = {job.id: job for job in rows if job.entity_key is None}
        if len(found) < len(rows):
            found |= {job_id: job for job_id, job in self._shown.items() if job.finished and job_id not in found}
            others = {*self._shown, *exports.newest_fanouts(conn, _SYNCS)} - found.keys()
            found |= {job.id: job for job in self._get(conn, others)}
        newest = sorted(found.values(), key=lambda job: job.id, reverse=True)[:_NEWEST]
        self._shown = {job.id: job for job in newest}
        return newest

    def _look_at_syncs(self, conn: Connection, newest: list[Job]) -> None:
        syncs = [job for job in newest if job.kind == _SYNC and job.started_at is not None][:_SYNCS]
        self._progress = {
            job.id: self._came_to.get(job.id) or _progress(job, exports.fanout(conn, job.id)) for job in syncs
        }
        self._came_to = {job.id: self._progress[job.id] for job in syncs if job.finished}

    @staticmethod
    def _get(conn: Connection, ids: Iterable[UUID]) -> Iterator[Job]:
        for job_id in sorted(ids):
            with suppress(NotFound):  # pruned meanwhile
                yield jobs.get(conn, None, job_id)

    def _ended(self, conn: Connection, newest: list[Job]) -> list[Job]:
        known = {job.id: job for job in newest}
        ended = [job for job in newest if job.finished and self._newest is not None and job.id > self._newest]
        ended += [known[job_id] for job_id in self._live & known.keys() if known[job_id].finished]
        ended += self._ended_elsewhere(conn, self._live - known.keys())
        live = self._live - {job.id for job in ended} | {job.id for job in newest if not job.finished}
        self._live = set(sorted(live)[-_FOLLOWED:])
        return sorted(ended, key=lambda job: (job.finished_at or job.created_at, job.id))

    def _ended_elsewhere(self, conn: Connection, ids: set[UUID]) -> list[Job]:
        """Which of the jobs that newer ones pushed out of sight have ended."""
        return list(self._get(conn, ids - jobs.unfinished(conn, ids))) if ids else []

    def _count(self, job: Job) -> None:
        if job.workflow_id is not None:
            self.last[job.workflow_id] = job
            self.succeeded[job.workflow_id] += job.status is Status.COMPLETED
            self.failed[job.workflow_id] += job.status is Status.FAILED


# --- lines -----------------------------------------------------------------------------------------------------------


def lines(seen: Seen) -> list[str]:
    """A line for each job that ended, and for each workflow that its failures ended."""
    shown = [_line(_ending(job), job.name, _took(job), _message(job, seen.progress)) for job in seen.ended[:_LINES]]
    if len(seen.ended) > _LINES:
        counts = Counter(_ending(job) for job in seen.ended[_LINES:])
        shown.append(f"…          {', '.join(f'{number} more {word}' for word, number in sorted(counts.items()))}")
    return shown + [
        _line("terminated", flow.name, "", f"the workflow: {plain(flow.message)}") for flow in seen.terminated
    ]


def _line(what: str, name: str, took: str, message: str) -> str:
    return f"{what:<10} {plain(name):<20} {took:>8}  {message}".rstrip()


def _ending(job: Job) -> str:
    return "skipped" if job.reason is Reason.SKIPPED else job.status.lower()


def _progress(job: Job, counts: FanOut) -> str:
    """How far a SYNC is, or what it came to."""
    ended = counts.completed + counts.skipped + counts.failed + counts.canceled
    if not job.finished:
        failed = f", {counts.failed} failed" if counts.failed else ""
        return f"{ended}/{counts.total}{'+' if counts.reading else ''} children{failed}"
    return f"{counts.read} read, {counts.new} new, {counts.updated} updated, {counts.total} children"


def _message(job: Job, progress: dict[UUID, str]) -> str:
    message = plain((not job.finished and progress.get(job.id)) or job.message or progress.get(job.id) or "")
    if job.attempt > 1:
        message += f" (attempt {job.attempt})"
    return message


def _took(job: Job) -> str:
    """From the claim to the record; empty for a job that never ran."""
    if job.started_at is None or job.finished_at is None:
        return ""
    return duration((job.finished_at - job.started_at).total_seconds())


# --- tables ----------------------------------------------------------------------------------------------------------


def tables(seen: Seen, watch: Watch, *, height: int) -> RenderableType:
    """The workflows, and below them as many of the newest jobs as there is room for in ``height`` lines."""
    from rich.console import Group

    rows = max(height - len(seen.workflows) - 8, 5)
    return Group(_workflows(seen, watch), _jobs(seen.newest[:rows], seen.progress))


def _workflows(seen: Seen, watch: Watch) -> Table:
    table = _table("workflow", "schedule", "status", ">next in", "last job", ">ok", ">failed")
    for flow in seen.workflows:
        last = watch.last.get(flow.id)
        table.add_row(
            _text(flow.name), _text(_schedule(flow)), _in_color(flow.status, flow.status.lower()), _text(_next_in(flow, seen.at)),
            _text("") if last is None else _in_color(last.status, f"{_ending(last)} {_took(last)}"),
            _text(str(watch.succeeded[flow.id])), _text(str(watch.failed[flow.id])),
        )  # fmt: skip
    return table


def _jobs(newest: Iterable[Job], progress: dict[UUID, str]) -> Table:
    table = _table("state", "kind", "job", ">took", "message")
    table.columns[-1].ratio = 1
    for job in newest:
        table.add_row(
            _in_color(job.status, _standing(job)), _text(job.kind), _text(job.name), _text(_took(job)),
            _text(_message(job, progress)),
        )  # fmt: skip
    return table


def _table(*headings: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=True)
    for heading in headings:
        table.add_column(
            heading.removeprefix(">"),
            justify="right" if heading.startswith(">") else "left",
            no_wrap=True,
            overflow="ellipsis",
            min_width=len(heading.removeprefix(">")),
        )
    return table


def _text(text: str, style: str | Style = "") -> Text:
    from rich.text import Text

    return Text(plain(text), style=style)


def _in_color(status: Status | WorkflowStatus, text: str) -> Text:
    return _text(text, state(status).style)


def _standing(job: Job) -> str:
    """The status; for a job that waits, what for; for a SYNC that somebody holds or ends, how."""
    told = job.status is Status.PENDING or job.reason in {Reason.PAUSING, Reason.PAUSED, Reason.DEQUEUING}
    return job.reason.lower() if told else _ending(job)


def _schedule(flow: Workflow) -> str:
    if flow.interval is not None:
        return f"every {_lasting(flow.interval)}"
    return "by hand" if flow.cron is None else f"{flow.cron} {flow.timezone}"


def _next_in(flow: Workflow, at: datetime) -> str:
    if flow.next_fire_at is None:
        return ""
    return _lasting(timedelta(seconds=max(round((flow.next_fire_at - at).total_seconds()), 0)))


def _lasting(time: timedelta) -> str:
    """A round number of seconds or more."""
    return duration(time.total_seconds()) if time >= timedelta(seconds=1) else f"{time.total_seconds():g} s"
