"""``jobq tenant``: shares, limits and quotas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer
from typer import Argument, Option

from jobq.cli.options import AsJson, given, spread
from jobq.cli.output import plain, say, write_fields, write_json, write_listing, write_table
from jobq.cli.queues import parse_limit
from jobq.cli.session import connected
from jobq.errors import InvalidInput

app = typer.Typer(no_args_is_help=True, help="Look at tenants, set their shares, limits and quotas.")
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


@dataclass
class QuotaOptions:
    """A tenant's quota."""

    waiting: Annotated[str | None, Option(metavar="N|none|default", help="Jobs that are PENDING or QUEUED.")] = None
    running: Annotated[str | None, Option(metavar="N|none|default", help="Jobs that run.")] = None
    schedules: Annotated[str | None, Option(metavar="N|none|default", help="Workflows with a schedule.")] = None
    rate: Annotated[str | None, Option(metavar="N|none|default", help="Requests a second to each API process.")] = None
    burst: Annotated[
        str | None, Option(metavar="N|none|default", help="Requests at once; default: those of a second.")
    ] = None

    def changes(self) -> dict[str, float | str | None]:
        """As arguments of ``Tenants.quota``."""
        return {name: _value(name, text) for name, text in given(**vars(self)).items()}


def _value(name: str, text: str) -> float | str | None:
    if text in {"none", "default"}:
        return None if text == "none" else text
    try:
        return float(text) if name == "rate" else int(text)
    except ValueError:
        raise InvalidInput(
            f"{text[:100]!r} is no quota.", hint="Write a number, none or default.", pointer=f"/{name}"
        ) from None


@app.command()
@spread
def quota(context: typer.Context, name: Name, *, wanted: QuotaOptions, as_json: AsJson = False) -> None:
    """What it may have at once; beyond it no more jobs, schedules or requests of it are accepted for now.

    Without options it is shown only.
    """
    with connected(context) as jobq:
        found = jobq.tenants.quota(name, **wanted.changes())
    if as_json:
        write_json(found.model_dump())
        return
    write_fields((field, "no limit" if value is None else value) for field, value in found.model_dump().items())
