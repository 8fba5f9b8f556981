"""``jobq doctor``: is everything there that jobs need, and what to do about what is not."""

from __future__ import annotations

from typing import Annotated

import typer
from typer import Option

from jobq.cli.options import AsJson
from jobq.cli.output import plain, say, write_json
from jobq.cli.problems import FAILED
from jobq.cli.session import session

_SIGN = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "broken": ("✗", "bold red"), "skipped": ("-", "dim")}


def doctor(
    context: typer.Context,
    ready: Annotated[bool, Option("--ready", help="Only what a health check asks: database and schema.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check the installation and say what to do.

    A line for each part; exit 1 if something is broken.
    """
    from jobq.cli.checks import Examination

    findings = []
    for finding in Examination(session(context).settings).findings(only_ready=ready):
        findings.append(finding)
        if not as_json:
            _tell(finding.state, finding.part, finding.text, finding.advice)
    broken = any(finding.state == "broken" for finding in findings)
    if as_json:
        write_json({"healthy": not broken, "checks": findings})
    if broken:
        raise typer.Exit(FAILED)


def _tell(state: str, part: str, text: str, advice: str) -> None:
    from rich.text import Text

    sign, color = _SIGN[state]
    line = Text.assemble((sign, color), f" {part:<10} {plain(text)}")
    if advice:
        line.append(f" → {plain(advice)}", "bold")
    say(line)
