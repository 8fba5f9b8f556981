"""``jobq config``: the effective settings and where each comes from."""

from __future__ import annotations

import os
import tomllib
from typing import Any

import typer

from jobq.cli.options import AsJson
from jobq.cli.output import cell, note, write_json, write_table
from jobq.cli.session import session


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(config)


def config(context: typer.Context, as_json: AsJson = False) -> None:
    """The effective settings, passwords and keys masked, and where each comes from."""
    from jobq.settings import config_file

    own = session(context)
    values = dict(_flat(own.settings.masked()))
    file = config_file()
    said = _said_by_file() if file.is_file() else {}
    sources = {name: _source(name, own.flags, said) for name in values}
    if as_json:
        write_json({"file": str(file) if said else None, "values": values, "sources": sources})
        return
    rows = ((name, sources[name], cell("" if value is None else value)) for name, value in values.items())
    write_table(("SETTING", "FROM", "VALUE"), rows, empty="")
    note(f"File: {file}" + ("" if said else " (not there, or empty)"))


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        found += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)]
    return found


def _said_by_file() -> dict[str, Any]:
    from jobq.settings import config_file

    return dict(_flat(tomllib.loads(config_file().read_text(encoding="utf-8"))))


def _source(name: str, flags: dict[str, str], said: dict[str, Any]) -> str:
    variable = f"JOBQ_{name.replace('.', '__')}".upper()
    if name in flags:
        return "flag"
    if variable in {key.upper() for key in os.environ}:
        return "environment"
    return "file" if name in said else "default"
