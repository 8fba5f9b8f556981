"""Errors as people see them: one message on stderr, the code in parentheses, what to do, and an exit code."""

from __future__ import annotations

import sys
import traceback
from importlib import import_module
from types import ModuleType

import typer

from jobq.cli.output import plain, say
from jobq.errors import JobQError, Misconfigured, TooMany, Unavailable

FAILED = 1
MISTAKE = 2
AWAY = 3
DEFECT = 70
INTERRUPTED = 130
_GLOBAL_OPTIONS = {"--database-url", "--broker-url", "--tenant", "--config"}


def exit_code(error: JobQError) -> int:
    """2 for the user's mistakes, 3 for what is away or over a quota just now, 1 for the rest."""
    if isinstance(error, Unavailable | TooMany):
        return AWAY
    return FAILED if type(error) is JobQError else MISTAKE


def tell(error: JobQError) -> int:
    """Print the error of a command; returns the exit code."""
    where = f", at {error.pointer}" if error.pointer else ""
    _print(f"{error.message.rstrip('.')}{where} ({error.code}).", error.hint)
    return exit_code(error)


def tell_usage(error: typer.TyperException) -> int:
    """Print what is wrong with the command line; returns the exit code."""
    context = getattr(error, "ctx", None)
    message = error.format_message().strip().replace(" Value error,", "")
    if type(error).__name__ == "NoArgsIsHelpError":
        sys.stderr.write(message + "\n")
        return MISTAKE
    hint = f"{context.command_path} --help shows how it is written." if context is not None else None
    option = str(getattr(error, "option_name", ""))
    if option in _GLOBAL_OPTIONS and context is not None:
        message = f"{option} comes before the command"
        hint = context.command_path.replace("jobq", f"Write: jobq {option} …", 1)
    elif option and context is not None and context.command_path == "jobq enqueue container":
        hint = "Options of the command itself follow two dashes: jobq enqueue container IMAGE -- COMMAND -x"
    _print(f"{message.rstrip('.')} (usage).", hint)
    return MISTAKE


def tell_defect() -> int:
    """Print an exception that nobody foresaw, for a report; returns the exit code."""
    sys.stderr.write(traceback.format_exc())
    _print("This is a defect of jobq (defect).", "Please report it with the lines above.")
    return DEFECT


def _print(message: str, hint: str | None) -> None:
    from rich.text import Text

    say(Text.assemble(("jobq: ", "bold red"), plain(message)), stderr=True)
    if hint:
        say(Text(f"      {plain(hint)}"), stderr=True)


def load(module: str, extra: str = "worker") -> ModuleType:
    """A module that needs an extra. Raises Misconfigured if that is not installed."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in {"jobq", "workers", "scheduler"}:
            raise
        raise Misconfigured(
            f"This needs the package {error.name!r}, which is not installed.",
            code="extra_missing", hint=f"Run: pip install 'jobq[{extra}]'",
        ) from error  # fmt: skip
