"""``jobq secret``: what containers get as files, encrypted at rest."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from typer import Argument, Option

from jobq.cli.options import AsJson
from jobq.cli.output import ago, plain, say, write_listing, write_table
from jobq.cli.session import connected
from jobq.errors import InvalidInput

app = typer.Typer(no_args_is_help=True, help="Store secrets for containers; a value is never shown again.")
Name = Annotated[str, Argument(metavar="NAME", help="Name of the secret.", show_default=False)]


@app.command("set")
def set_secret(
    context: typer.Context,
    name: Name,
    file: Annotated[typer.FileText | None, Option("--file", "-f", help="Read the value from a file.")] = None,
) -> None:
    """Store a value from --file, from stdin, or typed unseen: never from the command line, which others can read."""
    try:
        if file is not None:
            value = file.read()
        elif sys.stdin.isatty():
            value = typer.prompt("Value", hide_input=True, err=True)
        else:
            value = sys.stdin.read().removesuffix("\n")
    except UnicodeError:
        raise InvalidInput("The value is no UTF-8 text.", pointer="/value") from None
    with connected(context) as jobq:
        jobq.secrets.set(name, value)
    say(f"stored {plain(name)}")


@app.command("list")
def list_secrets(context: typer.Context, as_json: AsJson = False) -> None:
    """Names and the instants of their last change."""
    with connected(context) as jobq:
        found = jobq.secrets.list()
    if as_json:
        write_listing({"name": name, "updated_at": changed} for name, changed in found)
    else:
        write_table(
            ("SECRET", "CHANGED"), ((name, ago(changed)) for name, changed in found), empty="There is no secret."
        )


@app.command("rm")
def remove(context: typer.Context, name: Name) -> None:
    """Forget a secret."""
    with connected(context) as jobq:
        jobq.secrets.remove(name)
    say(f"removed {plain(name)}")
