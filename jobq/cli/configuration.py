"""``jobq config``: the effective settings and where each comes from."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

import typer

from jobq.cli.options import AsJson
from jobq.cli.output import cell, note, write_json, write_table
from jobq.cli.session import session


def config(context: typer.Context, as_json: AsJson = False) -> None:
    """The effective settings and where each comes from.

    Passwords and keys are masked.
    """
    from jobq.settings import config_file

    own = session(context)
    values = dict(flat(own.settings.masked()))
    file = config_file()
    said = said_by_file(file)
    sources = {name: _source(name, own.flags, said) for name in values}
    if as_json:
        write_json({"file": str(file) if said else None, "values": values, "sources": sources})
        return
    rows = ((name, sources[name], cell("" if value is None else value)) for name, value in values.items())
    write_table(("SETTING", "FROM", "VALUE"), rows, empty="", cut="VALUE")
    note(f"File: {file}" + ("" if said else " (not there, or empty)"))


def flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Names and values, those of nested settings as ``policy.images``."""
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        found += flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)]
    return found


def said_by_file(file: Path) -> dict[str, Any]:
    """What the file of settings says; nothing where there is none."""
    return dict(flat(tomllib.loads(file.read_text(encoding="utf-8")))) if file.is_file() else {}


def _source(name: str, flags: dict[str, str], said: dict[str, Any]) -> str:
    variable = f"JOBQ_{name.replace('.', '__')}".upper()
    if name in flags:
        return "flag"
    if variable in {key.upper() for key in os.environ}:
        return "environment"
    return "file" if name in said else "default"
