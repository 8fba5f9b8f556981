"""``jobq key``: API keys, shown once."""

from __future__ import annotations

from typing import Annotated

import typer
from typer import Argument, Option

from jobq.cli.options import AsJson
from jobq.cli.output import ago, document, plain, say, write, write_json, write_listing, write_table
from jobq.cli.session import connected, parse_id

app = typer.Typer(no_args_is_help=True, help="API keys for the HTTP API: made and shown once, listed, revoked.")


@app.command()
def create(
    context: typer.Context,
    name: Annotated[str, Argument(metavar="NAME", help="Who or what holds it.", show_default=False)],
    *,
    scope: Annotated[str, Option(metavar="read|run|admin", help="What it may do.")] = "run",
    expires_in: Annotated[str | None, Option(metavar="DURATION", help="Such as P90D; else it lasts for ever.")] = None,
    operator: Annotated[bool, Option("--operator", help="For all tenants; queues, tenants and workers, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a key for the tenant. The key itself is printed on stdout, this once."""
    with connected(context) as jobq:
        made = jobq.keys.create(name, scope, expires_in=expires_in, operator=operator)
    if as_json:
        write_json(document({"key": made.key, "stored": made.stored}))
        return
    say(f"made {plain(name)}, {made.stored.id}: it is not shown again", stderr=True)
    write(made.key + "\n")


@app.command("list")
def list_keys(
    context: typer.Context,
    everything: Annotated[bool, Option("--all", help="Of all tenants, and the operators'.")] = False,
    as_json: AsJson = False,
) -> None:
    """The keys, newest first: how each begins, never more of it."""
    with connected(context) as jobq:
        found = jobq.keys.list(everything=everything)
    if as_json:
        write_listing(found)
        return
    rows = (
        (one.id, plain(one.name), one.tenant or "(operator)", one.scope, f"{one.start}…", ago(one.created_at),
         ago(one.last_used_at), "revoked" if one.revoked_at else ago(one.expires_at))
        for one in found
    )  # fmt: skip
    head = ("ID", "NAME", "TENANT", "SCOPE", "KEY", "CREATED", "USED", "ENDS")
    write_table(head, rows, empty="There is no key: the API is served on loopback only. Make one: jobq key create NAME")


@app.command()
def revoke(
    context: typer.Context,
    key: Annotated[str, Argument(metavar="ID", help="The key's whole id.", show_default=False)],
) -> None:
    """Requests with it are refused within 5 s."""
    with connected(context) as jobq:
        jobq.keys.revoke(parse_id(key, "key"), any_tenant=True)
    say(f"revoked {key}")
