"""``jobq connector``: where Syncs read and write, stored once for many of them."""

from __future__ import annotations

from typing import Annotated

import typer
from typer import Argument, Option

from jobq.cli.options import AsJson, read_yaml
from jobq.cli.output import ago, note, plain, said, say, write_fields, write_json, write_listing, write_table
from jobq.cli.session import connected, judging
from jobq.errors import InvalidInput

app = typer.Typer(no_args_is_help=True, help="Store connectors for Syncs: type, settings, names of secrets.")
Name = Annotated[str, Argument(metavar="NAME", help="Name of the connector.", show_default=False)]


@app.command()
def apply(
    context: typer.Context,
    file: Annotated[
        str, Option("--file", "-f", help="YAML file of 'kind: Connector' documents; - reads stdin.", show_default=False)
    ],
    as_json: AsJson = False,
) -> None:
    """Bring connectors to what a file says, all or none; applying it twice changes nothing."""
    from jobq.manifest import load_manifest

    with connected(context) as jobq:
        manifest = load_manifest(read_yaml(file), judging(jobq))
        if not manifest.connectors:
            raise InvalidInput("The file holds no connector.", hint="A connector is a document with 'kind: Connector'.")
        done = jobq.connectors.apply(manifest.connectors)
    if as_json:
        write_listing(done)
        return
    for one in done:
        say(f"{one.what:<9} {plain(one.connector.name)}")
    if manifest.workflows:
        note("The workflows of the file were left alone: jobq workflow apply takes both.")


@app.command("list")
def list_connectors(context: typer.Context, as_json: AsJson = False) -> None:
    """All, by name."""
    with connected(context) as jobq:
        found = jobq.connectors.list()
    if as_json:
        write_listing(found)
        return
    rows = ((one.name, one.type, ", ".join(sorted(one.secrets.values())), ago(one.updated_at)) for one in found)
    write_table(("CONNECTOR", "TYPE", "SECRETS", "CHANGED"), rows, empty="There is no connector.", cut="SECRETS")


@app.command()
def show(context: typer.Context, name: Name, as_json: AsJson = False) -> None:
    """All that is known of a connector; of its secrets, the names."""
    with connected(context) as jobq:
        found = jobq.connectors.get(name)
    if as_json:
        write_json(found)
        return
    write_fields(
        [
            ("name", found.name), ("type", found.type), ("config", said(found.config)), ("secrets", found.secrets),
            ("created", found.created_at), ("updated", found.updated_at),
        ]
    )  # fmt: skip


@app.command("rm")
def remove(context: typer.Context, name: Name) -> None:
    """Forget a connector; Syncs that name it fail from now on."""
    with connected(context) as jobq:
        jobq.connectors.remove(name)
    say(f"removed {plain(name)}")
