"""``jobq sync``: what incremental Syncs remember of their sources."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from typer import Argument

from jobq.cli.options import AsJson
from jobq.cli.output import ago, document, plain, say, write_fields, write_json, write_listing, write_table
from jobq.cli.session import connected

app = typer.Typer(no_args_is_help=True, help="What Syncs remember.")
state = typer.Typer(no_args_is_help=True, help="How far each domain was read; incremental Syncs go on from there.")
app.add_typer(state, name="state")
Domain = Annotated[str, Argument(metavar="DOMAIN", help="What is synced, such as customers.", show_default=False)]


@state.command("list")
def list_states(context: typer.Context, as_json: AsJson = False) -> None:
    """All domains that have a state, by name."""
    with connected(context) as jobq:
        found = jobq.sync_states.list()
    if as_json:
        write_listing(found)
        return
    rows = ((one.domain, json.dumps(document(one.state), ensure_ascii=False), ago(one.updated_at)) for one in found)
    write_table(("DOMAIN", "STATE", "CHANGED"), rows, empty="No domain has a state.", cut="STATE")


@state.command()
def show(context: typer.Context, domain: Domain, as_json: AsJson = False) -> None:
    """The state of one domain, and the job that left it."""
    with connected(context) as jobq:
        found = jobq.sync_states.get(domain)
    if as_json:
        write_json(found)
        return
    shown = json.dumps(document(found.state), ensure_ascii=False)
    write_fields([("domain", found.domain), ("state", shown), ("left by", found.job_id), ("changed", found.updated_at)])


@state.command()
def reset(context: typer.Context, domain: Domain) -> None:
    """Forget it: the next incremental Sync reads everything."""
    with connected(context) as jobq:
        jobq.sync_states.reset(domain)
    say(f"reset {plain(domain)}: the next incremental Sync of it reads everything")
