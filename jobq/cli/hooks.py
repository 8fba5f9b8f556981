"""``jobq workflow hook``: inbound hooks, by which other systems start a workflow's jobs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer
from typer import Argument, Option

from jobq.cli.options import AsJson, spread
from jobq.cli.output import ago, document, plain, say, write, write_json, write_listing, write_table
from jobq.cli.session import connected, parse_id, parse_key

app = typer.Typer(no_args_is_help=True, help="Inbound hooks: a POST to one starts a job of the workflow.")
Key = Annotated[str, Argument(metavar="WORKFLOW", help="Id or name.", show_default=False)]


@dataclass
class HookOptions:
    """What a hook asks of those who send to it."""

    signature: Annotated[
        str, Option(metavar="none|hub|standard", help="X-Hub-Signature-256, or Standard Webhooks.")
    ] = "none"
    secret_file: Annotated[
        typer.FileText | None, Option(help="The secret of the signatures, from a file or -; else one is made.")
    ] = None
    replay_window: Annotated[
        str | None, Option(metavar="DURATION", help="How old a signed timestamp may be (standard); default: PT5M.")
    ] = None
    rate_limit: Annotated[int | None, Option(metavar="N", help="At most so many jobs a minute.")] = None
    envelope: Annotated[bool, Option("--envelope", help="The state has the query and the headers, too.")] = False

    def asked(self) -> dict[str, Any]:
        """As arguments of ``Hooks.create``."""
        fields = {name: value for name, value in vars(self).items() if name != "secret_file"}
        return {**fields, "secret": None if self.secret_file is None else self.secret_file.read().strip()}


@app.command()
@spread
def create(
    context: typer.Context,
    workflow: Key,
    name: Annotated[str, Argument(metavar="NAME", help="Who sends to it.", show_default=False)],
    *,
    wanted: HookOptions,
    as_json: AsJson = False,
) -> None:
    """Make a hook. Its path, and the secret if one was made, are printed on stdout, this once."""
    asked = wanted.asked()
    with connected(context) as jobq:
        made = jobq.hooks.create(parse_key(workflow), name, **asked)
    if as_json:
        write_json(document({"token": made.token, "path": made.path, "secret": made.secret, "stored": made.stored}))
        return
    say(f"made {plain(name)}, {made.stored.id}: its token is not shown again", stderr=True)
    write(made.path + "\n")
    if made.secret is not None and asked["secret"] is None:
        write(made.secret + "\n")


@app.command("list")
def list_hooks(context: typer.Context, workflow: Key, as_json: AsJson = False) -> None:
    """The workflow's hooks, newest first: how each token begins, never more of it."""
    with connected(context) as jobq:
        found = jobq.hooks.list(parse_key(workflow))
    if as_json:
        write_listing(found)
        return
    rows = (
        (one.id, plain(one.name), f"{one.start}…", one.signature, one.rate_limit, ago(one.created_at),
         ago(one.last_used_at), "revoked" if one.revoked_at else None)
        for one in found
    )  # fmt: skip
    head = ("ID", "NAME", "TOKEN", "SIGNATURE", "RATE", "CREATED", "USED", "")
    write_table(head, rows, empty="It has no hook. Make one: jobq workflow hook create WORKFLOW NAME")


@app.command()
def revoke(
    context: typer.Context,
    workflow: Key,
    hook: Annotated[str, Argument(metavar="ID", help="The hook's whole id.", show_default=False)],
) -> None:
    """Whatever is sent to it from now on is answered as if it had never been."""
    with connected(context) as jobq:
        jobq.hooks.revoke(parse_key(workflow), parse_id(hook, "hook"))
    say(f"revoked {hook}")
