"""``jobq job``: look at jobs, and act on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from jobq.cli.made import report, tell_end, wait_for
from jobq.cli.options import AsJson, WaitOptions, given, spread
from jobq.cli.output import (
    ago,
    instant,
    note,
    plain,
    say,
    state,
    took,
    write,
    write_bytes,
    write_json,
    write_listing,
    write_table,
)
from jobq.cli.session import connected, parse_id, parse_key
from jobq.errors import InvalidInput
from jobq.states import Reason, Status, Trigger

if TYPE_CHECKING:
    from jobq.client import JobQ
    from jobq.models import Job, LogLine, Page

app = typer.Typer(no_args_is_help=True, help="Look at jobs, and act on them.")
Id = Annotated[str, Argument(metavar="ID", help="The job's whole id.", show_default=False)]
Limit = Annotated[int, Option(help="1 to 200.")]
Cursor = Annotated[str | None, Option(help="Go on behind an earlier listing, with the same filters.")]


@dataclass(frozen=True)
class Filters:
    """What a listing is narrowed to; repeated options are alternatives."""

    status: Annotated[
        list[Status] | None, Option(metavar="STATUS", case_sensitive=False, help="Such as FAILED; repeatable.")
    ] = None
    reason: Annotated[
        list[Reason] | None, Option(metavar="REASON", case_sensitive=False, help="Such as timed_out; repeatable.")
    ] = None
    kind: Annotated[list[str] | None, Option(metavar="KIND", help="Repeatable.")] = None
    queue: Annotated[list[str] | None, Option(metavar="QUEUE", help="Repeatable.")] = None
    trigger: Annotated[Trigger | None, Option(metavar="AUTOMATIC|MANUAL", case_sensitive=False)] = None
    workflow: Annotated[str | None, Option(help="Id or name of a workflow.")] = None
    parent: Annotated[str | None, Option(metavar="ID", help="Children of this job.")] = None
    domain: Annotated[str | None, Option(help="What is synced.")] = None
    domain_end: Annotated[
        str | None, Option(metavar="source|target", help="The end of the domain's mapping that the job works for.")
    ] = None
    name: Annotated[str | None, Option(help="A part of the name.")] = None
    since: Annotated[str | None, Option(metavar="RFC3339", help="Created at or after.")] = None
    until: Annotated[str | None, Option(metavar="RFC3339", help="Created before.")] = None

    def asked(self, jobq: JobQ) -> dict[str, Any]:
        """As fields of ``JobFilter``."""
        from jobq.schedule import parse_rfc3339

        return given(
            statuses=frozenset(self.status or ()), reasons=frozenset(self.reason or ()),
            kinds=frozenset(kind.upper() for kind in self.kind or ()), queues=frozenset(self.queue or ()),
            trigger=self.trigger, name_contains=self.name, domain=self.domain, domain_end=_end(self.domain_end),
            workflow_id=None if self.workflow is None else jobq.get_workflow(parse_key(self.workflow)).id,
            parent_id=None if self.parent is None else parse_id(self.parent),
            created_from=None if self.since is None else parse_rfc3339(self.since, "/since"),
            created_until=None if self.until is None else parse_rfc3339(self.until, "/until"),
        )  # fmt: skip


def _end(text: str | None) -> str | None:
    if text is None or (word := text.lower()) in {"source", "target"}:
        return None if text is None else word
    raise InvalidInput(f"{text[:100]!r} is no end of a domain: write source or target.")


@app.command("list")
@spread
def list_jobs(
    context: typer.Context,
    filters: Filters,
    *,
    limit: Limit = 50,
    cursor: Cursor = None,
    watch: Annotated[
        bool, Option("--watch", "-w", help="Instead, a line for each job as it changes, on and on.")
    ] = False,
    total: Annotated[bool, Option("--total", help="Count them, too: an estimate above 10,000.")] = False,
    as_json: AsJson = False,
) -> None:
    """The newest jobs first."""
    with connected(context) as jobq:
        if watch:
            _watch(jobq, filters.asked(jobq), as_json=as_json)
            return
        only = filters.asked(jobq)
        page, count = jobq.list(limit=limit, cursor=cursor, **only), jobq.count(**only) if total else None
    if as_json:
        write_listing(page.items, page.next_cursor, **given(total=count))
        return
    head = ("ID", "STATUS", "KIND", "NAME", "CREATED", "TOOK")
    empty = "No job matches so far." if page.next_cursor else "No job matches."
    write_table(head, map(_row, page.items), empty=empty, cut="NAME", drop=("TOOK", "KIND"))
    if count is not None:
        say(f"{'' if count.exact else 'About '}{count.count:,} match.", stderr=True)
    _tell_more(page)


def _watch(jobq: JobQ, asked: dict[str, Any], *, as_json: bool) -> None:
    known = ("statuses", "kinds", "queues", "workflow_id")
    if others := [name for name, value in asked.items() if value and name not in known]:
        raise InvalidInput(f"--watch goes with --status, --kind, --queue and --workflow, not with {others[0]!r}.")
    for change in jobq.changes(**{name: value for name, value in asked.items() if value}):
        if change.what == "gap":
            note("Some changes were skipped.")
        if change.job is None:
            continue
        if as_json:
            write_json(change.job, indent=None)
        else:
            told = change.job.message or ""
            write(f"{change.job.id} {change.job.status}·{change.job.reason} {plain(change.job.name)} {plain(told)}\n")


def _row(job: Job) -> tuple[object, ...]:
    lasted = took(job.started_at, job.finished_at)
    return job.id, state(job.status, job.reason), job.kind, job.name, ago(job.created_at), lasted


@app.command()
def show(
    context: typer.Context,
    job: Id,
    as_json: AsJson = False,
    details: Annotated[bool, Option("--details", help="Print its job_details document, as JSON.")] = False,
) -> None:
    """All that is known of a job: times, attempts with their steps, usage, cause."""
    from jobq.cli.job_page import write_page

    with connected(context) as jobq:
        if details:
            write_json(jobq.details(parse_id(job)))
            return
        found = jobq.get(parse_id(job))
        spec, attempts, why = jobq.spec(found.id), jobq.attempts(found.id), jobq.why(found.id)
        fanout = jobq.fanout(found.id) if found.kind == "SYNC" else None
    if as_json:
        write_json({**_fields(found), "spec": spec, "attempts": attempts, "why": why, "fanout": fanout})
    else:
        write_page(found, spec, attempts, why, fanout)


def _fields(job: Job) -> dict[str, Any]:
    return {name: getattr(job, name) for name in job.__dataclass_fields__}


@app.command()
def why(context: typer.Context, job: Id, as_json: AsJson = False) -> None:
    """One or two sentences: why the job is where it is."""
    with connected(context) as jobq:
        found = jobq.get(parse_id(job))
        reason = jobq.why(found.id)
    if as_json:
        write_json({"id": found.id, "status": found.status, "reason": found.reason, "why": reason})
    else:
        say(plain(reason))


# --- fan-outs --------------------------------------------------------------------------------------------------------


@app.command()
def children(
    context: typer.Context,
    job: Id,
    *,
    status: Annotated[
        list[Status] | None, Option(metavar="STATUS", case_sensitive=False, help="Such as FAILED; repeatable.")
    ] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
    as_json: AsJson = False,
) -> None:
    """The jobs that a SYNC fanned out, the newest first: one for each entity and target."""
    only = given(statuses=frozenset(status or ()) or None)
    with connected(context) as jobq:
        page = jobq.children(parse_id(job), limit=limit, cursor=cursor, **only)
    if as_json:
        write_listing(page.items, page.next_cursor)
        return
    head = ("ID", "STATUS", "TARGET", "ENTITY", "CREATED", "CAUSE")
    write_table(head, map(_child_row, page.items), empty="It has no such children.", cut="CAUSE", drop=("CREATED",))
    _tell_more(page)


def _child_row(job: Job) -> tuple[object, ...]:
    return job.id, state(job.status, job.reason), job.target, job.entity_key, ago(job.created_at), job.message or ""


@app.command()
def exports(context: typer.Context, job: Id, limit: Limit = 50, cursor: Cursor = None, as_json: AsJson = False) -> None:
    """What became of each entity at each target: its report, and the target's own id of it."""
    with connected(context) as jobq:
        page = jobq.exports(parse_id(job), limit=limit, cursor=cursor)
    if as_json:
        write_listing(page.items, page.next_cursor)
        return
    rows = (
        (one.key, one.target, one.status, one.external_id, " ".join(filter(None, (one.error_class, one.message))))
        for one in page.items
    )
    write_table(("ENTITY", "TARGET", "STATUS", "EXTERNAL ID", "CAUSE"), rows, empty="Nothing was written.", cut="CAUSE")
    _tell_more(page)


def _tell_more(page: Page[Any]) -> None:
    if page.next_cursor:
        note(f"There are more: --cursor {page.next_cursor}")


# --- what it wrote ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LogOptions:
    """Which lines, and how they are shown."""

    after: Annotated[int, Option(metavar="LINE", help="Only lines behind this number.")] = 0
    stream: Annotated[str | None, Option(metavar="stdout|stderr|system", help="Only this stream.")] = None
    attempt: Annotated[int | None, Option(help="Only this attempt.")] = None
    timestamps: Annotated[bool, Option("--timestamps", "-t", help="Begin each line with its instant.")] = False
    raw: Annotated[bool, Option("--raw", help="Leave control characters as they are.")] = False
    as_json: Annotated[bool, Option("--json", help="Print one JSON document a line.")] = False

    def wants(self, line: LogLine) -> bool:
        """Is the line among those that were asked for?"""
        return self.stream in {None, line.stream} and self.attempt in {None, line.attempt}

    def shown(self, line: LogLine) -> str:
        """The line as text."""
        text = line.text if self.raw else plain(line.text)
        return f"{instant(line.at)} {text}\n" if self.timestamps else f"{text}\n"


@app.command()
@spread
def logs(
    context: typer.Context,
    job: Id,
    options: LogOptions,
    follow: Annotated[bool, Option("--follow", "-f", help="Go on until the job has ended.")] = False,
) -> None:
    """What the job wrote."""
    with connected(context) as jobq:
        _write_lines(jobq.logs(parse_id(job), after=options.after, follow=follow), options)


def _write_lines(lines: Iterator[LogLine], options: LogOptions) -> None:
    for line in lines:
        if not options.wants(line):
            continue
        if options.as_json:
            write_json(line, indent=None)
        else:
            write(options.shown(line))


@app.command()
def artifacts(
    context: typer.Context,
    job: Id,
    name: Annotated[
        str | None, Argument(metavar="[NAME]", help="Write this file to stdout.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """The files that the job left; with a name, the content of one."""
    with connected(context) as jobq:
        job_id = parse_id(job)
        if name is not None:
            write_bytes(jobq.artifact(job_id, name))
            return
        found = jobq.artifacts(job_id)
    if as_json:
        write_listing(found)
    else:
        write_table(
            ("ARTIFACT", "BYTES", "ATTEMPT"),
            ((one.name, one.size, one.attempt) for one in found),
            empty="It left no file.",
        )


@app.command()
def wait(
    context: typer.Context,
    job: Id,
    timeout: Annotated[float | None, Option(metavar="SECONDS", help="Exit 3 after so long; the job goes on.")] = None,
    as_json: AsJson = False,
) -> None:
    """Wait until the job has ended; exit 1 unless it completed."""
    with connected(context) as jobq:
        job_id = parse_id(job)
        tell_end(wait_for(jobq, job_id, timeout), as_json=as_json, asked=job_id)


# --- act -------------------------------------------------------------------------------------------------------------


@app.command()
def cancel(
    context: typer.Context,
    job: Id,
    force: Annotated[
        bool, Option("--force", help="End it now, though its worker does not react: its work may go on for a while.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Cancel: at once while the job waits, within seconds while it runs."""
    with connected(context) as jobq:
        job_id = parse_id(job)
        held = force and jobq.get(job_id).status is Status.RUNNING
        _tell(jobq.cancel(job_id, force=force), as_json)
    if held:
        say("Its worker learns of it with the next renewal of its lease; until then its work may go on.", stderr=True)


@app.command()
def pause(context: typer.Context, job: Id, as_json: AsJson = False) -> None:
    """Hold a waiting job until it is resumed."""
    with connected(context) as jobq:
        _tell(jobq.pause(parse_id(job)), as_json)


@app.command()
def resume(context: typer.Context, job: Id, as_json: AsJson = False) -> None:
    """Let a paused job go on."""
    with connected(context) as jobq:
        _tell(jobq.resume(parse_id(job)), as_json)


@app.command()
@spread
def retry(context: typer.Context, job: Id, after: WaitOptions) -> None:
    """Run an ended job again, as a new job; prints its id."""
    with connected(context) as jobq:
        report(jobq, jobq.retry(parse_id(job)), after)


def _tell(job: Job, as_json: bool) -> None:
    from rich.text import Text

    if as_json:
        write_json(job)
        return
    asked = ", asked to end: within seconds" if job.status is Status.RUNNING and job.desired == "CANCEL" else ""
    say(Text.assemble(f"{job.id} is ", state(job.status, job.reason), asked))
