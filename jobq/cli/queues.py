"""``jobq queue``: what waits where, pause and limits, for all tenants at once."""

from __future__ import annotations

from typing import Annotated

import typer
from typer import Argument

from jobq.cli.options import AsJson
from jobq.cli.output import plain, say, write_listing, write_table
from jobq.cli.session import connected
from jobq.errors import InvalidInput

app = typer.Typer(no_args_is_help=True, help="Look at queues, pause and limit them (all tenants).")
Name = Annotated[str, Argument(metavar="NAME", help="Name of the queue.", show_default=False)]
_COUNTED = 10_000


@app.command("list")
def list_queues(context: typer.Context, as_json: AsJson = False) -> None:
    """Queues with jobs, workers or a setting."""
    with connected(context) as jobq:
        found = jobq.queues.list()
    if as_json:
        write_listing(found)
        return
    rows = (
        (one.name, f"{one.ready}+" if one.ready >= _COUNTED else one.ready, one.in_flight, one.slots, one.limit,
         "paused" if one.paused else "open" if one.slots else "no worker")
        for one in found
    )  # fmt: skip
    write_table(("QUEUE", "READY", "IN FLIGHT", "SLOTS", "LIMIT", "STATE"), rows, empty="No queue has jobs or workers.")


@app.command()
def pause(context: typer.Context, name: Name) -> None:
    """No job of the queue starts until it is resumed; running ones go on."""
    with connected(context) as jobq:
        jobq.queues.pause(name)
    say(f"queue {plain(name)} is paused")


@app.command()
def resume(context: typer.Context, name: Name) -> None:
    """Let its jobs start again."""
    with connected(context) as jobq:
        jobq.queues.resume(name)
    say(f"queue {plain(name)} is open")


@app.command()
def limit(
    context: typer.Context,
    name: Name,
    limit: Annotated[
        str, Argument(metavar="N|none", help="At most so many of its jobs in flight.", show_default=False)
    ],
) -> None:
    """How many of its jobs may be queued or running at once."""
    with connected(context) as jobq:
        jobq.queues.limit(name, parse_limit(limit))
    say(f"queue {plain(name)}: limit {plain(limit)}")


def parse_limit(text: str) -> int | None:
    """A number, or None for ``none``."""
    if text == "none":
        return None
    try:
        return int(text)
    except ValueError:
        raise InvalidInput(f"{text[:100]!r} is no limit.", hint="Write a number, or none.", pointer="/limit") from None
