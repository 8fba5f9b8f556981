"""``jobq worker``: run one with ``-Q``; look at all of them, drain one."""

from __future__ import annotations

import os
from typing import Annotated

import typer
from typer import Argument, Option

from jobq.cli.options import AsJson
from jobq.cli.output import ago, say, state, write_listing, write_table
from jobq.cli.service import LogFormat, MetricsAddress, run_worker
from jobq.cli.session import connected, parse_id

app = typer.Typer(invoke_without_command=True, help="Run a worker (-Q), look at workers, drain one.")


@app.callback()
def worker(
    context: typer.Context,
    queues: Annotated[
        str | None,
        Option("--queues", "-Q", metavar="QUEUE:SLOTS,…", help="What to serve, such as container:8,heartbeat:2000."),
    ] = None,
    log_format: LogFormat = None,
    metrics: MetricsAddress = None,
) -> None:
    """Run a worker: jobq worker -Q container:8,heartbeat:2000. It drains at SIGTERM or Ctrl-C."""
    if context.invoked_subcommand is not None:
        if queues is not None:
            raise typer.BadParameter(
                f"it runs a worker, and {context.invoked_subcommand} is a command", param_hint="-Q"
            )
        return
    wanted = os.environ.get("JOBQ_QUEUES") if queues is None else queues
    if wanted is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)
    raise typer.Exit(run_worker(context, wanted, log_format, metrics))


@app.command("list")
def list_workers(
    context: typer.Context,
    everything: Annotated[bool, Option("--all", help="Those that ended, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """The worker processes, newest first, of all machines."""
    with connected(context) as jobq:
        found = jobq.workers.list(everything=everything)
    if as_json:
        write_listing(found)
        return
    rows = (
        (one.id, state(one.state), one.name, ",".join(f"{queue}:{slots}" for queue, slots in one.queues.items()),
         one.running, ago(one.started_at), ago(one.renewed_at))
        for one in found
    )  # fmt: skip
    head = ("ID", "STATE", "NAME", "QUEUES", "RUNNING", "STARTED", "SEEN")
    write_table(
        head, rows, empty="No worker lives. Start one: jobq worker -Q heartbeat:100", cut="QUEUES", drop=("STARTED",)
    )


@app.command()
def drain(
    context: typer.Context,
    worker: Annotated[str, Argument(metavar="ID", help="The worker's whole id.", show_default=False)],
) -> None:
    """It takes no more jobs, lets the running ones end, and exits."""
    with connected(context) as jobq:
        jobq.workers.drain(parse_id(worker, "worker"))
    say(f"{worker} is draining")
