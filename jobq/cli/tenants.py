"""``jobq tenant``: shares and limits."""

from __future__ import annotations

from typing import Annotated

import typer
from typer import Argument

from jobq.cli.options import AsJson
from jobq.cli.output import plain, say, write_listing, write_table
from jobq.cli.queues import parse_limit
from jobq.cli.session import connected

app = typer.Typer(no_args_is_help=True, help="Look at tenants, set their shares and limits.")
Name = Annotated[str, Argument(metavar="NAME", help="Name of the tenant.", show_default=False)]


@app.command("list")
def list_tenants(context: typer.Context, as_json: AsJson = False) -> None:
    """Tenants with a setting or with jobs in flight."""
    with connected(context) as jobq:
        found = jobq.tenants.list()
    if as_json:
        write_listing(found)
        return
    rows = ((one.name, f"{one.weight:g}", one.limit, one.in_flight) for one in found)
    write_table(("TENANT", "WEIGHT", "LIMIT", "IN FLIGHT"), rows, empty="No tenant has a setting or jobs in flight.")


@app.command()
def limit(
    context: typer.Context,
    name: Name,
    limit: Annotated[
        str, Argument(metavar="N|none", help="At most so many of its jobs in flight.", show_default=False)
    ],
) -> None:
    """How many of its jobs may be queued or running at once, over all queues."""
    with connected(context) as jobq:
        jobq.tenants.limit(name, parse_limit(limit))
    say(f"tenant {plain(name)}: limit {plain(limit)}")


@app.command()
def weight(
    context: typer.Context,
    name: Name,
    weight: Annotated[
        float, Argument(metavar="WEIGHT", help="Relative to the others'; the default is 1.", show_default=False)
    ],
) -> None:
    """Its share of the room, where tenants compete."""
    with connected(context) as jobq:
        jobq.tenants.weight(name, weight)
    say(f"tenant {plain(name)}: weight {weight:g}")
