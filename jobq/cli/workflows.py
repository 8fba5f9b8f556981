"""``jobq workflow``: definitions, their schedules, and triggers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from jobq.cli import hooks
from jobq.cli.made import report
from jobq.cli.options import AsJson, WaitOptions, WorkOptions, given, read_json, read_yaml, spread
from jobq.cli.output import (
    ago,
    cell,
    note,
    plain,
    said,
    say,
    state,
    write_fields,
    write_json,
    write_listing,
    write_table,
)
from jobq.cli.session import connected, judging, parse_key
from jobq.errors import InvalidInput

if TYPE_CHECKING:
    from jobq.models import Workflow

app = typer.Typer(no_args_is_help=True, help="Define, look at and trigger workflows.")
Key = Annotated[str, Argument(metavar="WORKFLOW", help="Id or name.", show_default=False)]
app.add_typer(hooks.app, name="hook")


@app.command()
def apply(
    context: typer.Context,
    file: Annotated[
        str, Option("--file", "-f", help="YAML file of workflows and connectors; - reads stdin.", show_default=False)
    ],
    as_json: AsJson = False,
) -> None:
    """Bring workflows to what a file says, all or none; applying it twice changes nothing.

    Connectors in the file are applied first: the workflows may name them.
    """
    from jobq.manifest import load_manifest

    with connected(context) as jobq:
        manifest = load_manifest(read_yaml(file), judging(jobq))
        stored = jobq.connectors.apply(manifest.connectors) if manifest.connectors else []
        done = jobq.apply(manifest.workflows)
    if as_json:
        write_listing([*stored, *({"what": one.what, "workflow": one.workflow} for one in done)])
        return
    for each in stored:
        say(f"{each.what:<9} connector {plain(each.connector.name)}")
    for one in done:
        say(f"{one.what:<9} {plain(one.workflow.name)}")


@dataclass(frozen=True)
class ScheduleOptions:
    """When a workflow runs, and its policies."""

    interval: Annotated[str | None, Option(metavar="DURATION", help="Run every so long, such as PT5M or 90.")] = None
    cron: Annotated[str | None, Option(metavar="EXPRESSION", help="Run by the clock, such as '30 2 * * MON-FRI'.")] = (
        None
    )
    timezone: Annotated[str | None, Option(help="Of the cron expression, such as Europe/Berlin; default: UTC.")] = None
    start_at: Annotated[str | None, Option(metavar="RFC3339", help="Slots are counted from here; default: now.")] = None
    misfire: Annotated[str | None, Option(metavar="coalesce|skip|catch_up", help="What becomes of missed slots.")] = (
        None
    )
    misfire_grace: Annotated[str | None, Option(metavar="DURATION", help="How late a slot may start.")] = None
    max_catch_up: Annotated[int | None, Option(help="For catch_up: at most so many missed slots.")] = None
    overlap: Annotated[
        str | None,
        Option(metavar="allow|skip|queue|cancel_running", help="What becomes of a job beside an earlier one."),
    ] = None
    concurrency: Annotated[int | None, Option(help="At most so many of its jobs at once.")] = None
    max_failures: Annotated[
        int | None, Option(help="Consecutive failed jobs after which it is terminated; default: 3.")
    ] = None
    retention: Annotated[str | None, Option(metavar="DURATION", help="How long its finished jobs are kept.")] = None

    def asked(self) -> dict[str, Any]:
        """As fields of ``jobq.definition.Definition``."""
        return given(
            interval=self.interval, cron=self.cron, timezone=self.timezone, start_at=self.start_at,
            misfire=self.misfire, misfire_grace=self.misfire_grace, max_catch_up=self.max_catch_up,
            overlap=self.overlap, concurrency=self.concurrency, retention=self.retention,
            max_consecutive_job_failures_allowed=self.max_failures,
        )  # fmt: skip


@app.command()
@spread
def create(
    context: typer.Context,
    name: Annotated[str, Argument(metavar="NAME", help="Its name, unique in the tenant.", show_default=False)],
    *,
    schedule: ScheduleOptions,
    work: WorkOptions,
    kind: Annotated[str, Option(help="Such as CONTAINER or HEARTBEAT.", show_default=False)],
    spec: Annotated[str, Option(metavar="JSON", help="What to run; @FILE reads a file, @- stdin.")] = "{}",
    as_json: AsJson = False,
) -> None:
    """A new workflow; without --interval and --cron it runs only when it is triggered."""
    fields = {"kind": kind.upper() if kind.islower() else kind, "name": name, **schedule.asked(), **work.asked()}
    with connected(context) as jobq:
        _tell(jobq.create_workflow(read_json(spec, "--spec"), **fields), as_json)


@app.command("list")
def list_workflows(
    context: typer.Context,
    status: Annotated[str | None, Option(metavar="ACTIVE|PAUSED|TERMINATED")] = None,
    limit: Annotated[int, Option(help="1 to 200.")] = 50,
    cursor: Annotated[str | None, Option(help="Go on behind an earlier listing, with the same filters.")] = None,
    as_json: AsJson = False,
) -> None:
    """The oldest first."""
    wanted = None if status is None else _status(status)
    with connected(context) as jobq:
        page = jobq.list_workflows(status=wanted, limit=limit, cursor=cursor)
    if as_json:
        write_listing(page.items, page.next_cursor)
        return
    rows = (
        (one.name, state(one.status), one.kind, _rhythm(one), ago(one.next_fire_at), one.consecutive_failures)
        for one in page.items
    )
    head = ("NAME", "STATUS", "KIND", "SCHEDULE", "NEXT", "FAILURES")
    write_table(
        head,
        rows,
        empty="There is no workflow. jobq workflow apply -f FILE makes some.",
        cut="SCHEDULE",
        drop=("KIND",),
    )
    if page.next_cursor:
        note(f"There are more: --cursor {page.next_cursor}")


def _status(text: str) -> Any:
    from jobq.models import WorkflowStatus

    try:
        return WorkflowStatus(text.upper())
    except ValueError:
        raise InvalidInput(f"{text[:100]!r} is no status: write ACTIVE, PAUSED or TERMINATED.") from None


def _rhythm(workflow: Workflow) -> str:
    from jobq.store.workflows import schedule_of

    schedule = schedule_of(workflow)
    return "by hand" if schedule is None else str(schedule)


@app.command()
def show(context: typer.Context, workflow: Key, as_json: AsJson = False) -> None:
    """All that is known of a workflow."""
    with connected(context) as jobq:
        found = jobq.get_workflow(parse_key(workflow))
    if as_json:
        write_json(found)
        return
    from rich.text import Text

    say(Text.assemble((plain(found.name), "bold"), "  ", state(found.status)))
    say()
    write_fields(_facts(found))


def _facts(found: Workflow) -> Iterator[tuple[str, object]]:
    yield "id", found.id
    yield "kind", found.kind
    yield "queue", f"{found.queue}, priority {found.priority}"
    yield "schedule", _rhythm(found)
    yield (
        "next slot",
        None if found.next_fire_at is None else cell(found.next_fire_at).append(f" ({ago(found.next_fire_at)})"),
    )
    yield "misfire", found.misfire if found.next_fire_at else None
    yield "overlap", found.overlap if found.next_fire_at else None
    yield "concurrency", found.concurrency
    yield "timeout", found.timeout
    yield "attempts", f"at most {found.max_attempts}"
    yield "retry", found.retry
    yield (
        "failures",
        f"{found.consecutive_failures} in a row; terminated at {found.max_consecutive_job_failures_allowed}",
    )
    yield "retention", found.retention
    yield "generation", found.generation
    yield "created", found.created_at
    yield "updated", found.updated_at
    yield "message", found.message
    yield "spec", said(found.spec)


@app.command()
def pause(context: typer.Context, workflow: Key, as_json: AsJson = False) -> None:
    """No more slots until it is resumed; its jobs go on."""
    with connected(context) as jobq:
        _tell(jobq.pause_workflow(parse_key(workflow)), as_json)


@app.command()
def resume(context: typer.Context, workflow: Key, as_json: AsJson = False) -> None:
    """Make it ACTIVE again, also after a termination, with its failures forgotten."""
    with connected(context) as jobq:
        _tell(jobq.resume_workflow(parse_key(workflow)), as_json)


@app.command()
def terminate(context: typer.Context, workflow: Key, as_json: AsJson = False) -> None:
    """End it: jobs that its schedule made and that wait are canceled."""
    with connected(context) as jobq:
        _tell(jobq.terminate_workflow(parse_key(workflow)), as_json)


@app.command()
def delete(context: typer.Context, workflow: Key) -> None:
    """Remove the definition; finished jobs stay until their retention ends."""
    with connected(context) as jobq:
        jobq.delete_workflow(parse_key(workflow))
    say(f"deleted {plain(workflow)}")


def _tell(workflow: Workflow, as_json: bool) -> None:
    from rich.text import Text

    if as_json:
        write_json(workflow)
        return
    following = f", next slot {ago(workflow.next_fire_at)}" if workflow.next_fire_at else ""
    say(Text.assemble(f"{plain(workflow.name)} ({workflow.id}) is ", state(workflow.status), following))


@app.command()
@spread
def trigger(
    context: typer.Context,
    workflow: Key,
    *,
    after: WaitOptions,
    name: Annotated[str | None, Option(help="Name of the job; default: the workflow's.")] = None,
    at: Annotated[str | None, Option(metavar="RFC3339", help="When to run; default: now.")] = None,
    state: Annotated[
        str | None, Option(metavar="JSON", help="A JSON value that the job sees; @FILE reads a file.")
    ] = None,
    dedupe_key: Annotated[
        str | None, Option(help="While a job with this key lives, a second one is its duplicate.")
    ] = None,
) -> None:
    """Start a job of the workflow, whatever its status is; prints the job's id."""
    seen = None if state is None else read_json(state, "--state")
    fields = given(name=name, scheduled_at=at, state=seen, dedupe_key=dedupe_key)
    with connected(context) as jobq:
        report(jobq, jobq.trigger(parse_key(workflow), **fields), after)


@app.command()
def preview(
    context: typer.Context,
    workflow: Key,
    number: Annotated[int, Option("--number", "-n", help="How many, 1 to 1000.")] = 5,
    as_json: AsJson = False,
) -> None:
    """The next instants of its schedule."""
    with connected(context) as jobq:
        found = jobq.get_workflow(parse_key(workflow))
        slots = jobq.preview(found.id, number)
    if as_json:
        write_listing(slots)
        return
    rows = ((cell(slot), _local(slot, found.timezone), ago(slot)) for slot in slots)
    write_table(("SLOT", "LOCAL", "WHEN"), rows, empty="It has no schedule: it runs only when it is triggered.")


def _local(slot: Any, timezone: str | None) -> str:
    from zoneinfo import ZoneInfo

    return f"{slot.astimezone(ZoneInfo(timezone or 'UTC')):%a %Y-%m-%d %H:%M:%S %Z}"
