"""``jobq doctor``: is everything there that jobs need, and what to do about what is not."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer
from typer import Argument, Option

from jobq.cli.options import AsJson
from jobq.cli.output import plain, say, write_json
from jobq.cli.problems import FAILED
from jobq.cli.session import session

_SIGN = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "broken": ("✗", "bold red"), "skipped": ("-", "dim")}


class Process(StrEnum):
    """What runs for ever, and is asked whether it is ready."""

    worker = "worker"
    scheduler = "scheduler"


def doctor(
    context: typer.Context,
    process: Annotated[
        Process | None,
        Argument(
            metavar="[worker|scheduler]",
            show_default=False,
            help="With --ready: is the one of this machine or container ready, too?",
        ),
    ] = None,
    ready: Annotated[bool, Option("--ready", help="Only what a health check asks: database and schema.")] = False,
    pid: Annotated[int | None, Option(metavar="PID", help="Of which worker or scheduler, if several run here.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check the installation and say what to do.

    A line for each part; exit 1 if something is broken.
    """
    from jobq.cli.checks import Examination

    if process is not None and not ready:
        raise typer.BadParameter("it goes with --ready", param_hint=process.value)
    if pid is not None and process is None:
        raise typer.BadParameter("it goes with --ready worker or --ready scheduler", param_hint="--pid")
    findings = []
    asked = None if process is None else process.value
    for finding in Examination(session(context).settings).findings(only_ready=ready, process=asked, pid=pid):
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
