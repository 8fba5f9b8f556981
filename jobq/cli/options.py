"""Options that several commands share, declared once as dataclasses: ``spread`` makes them options of a command."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from typer import Option

from jobq.cli.session import parse_id
from jobq.errors import InvalidInput

AsJson = Annotated[bool, Option("--json", help="Print a JSON document.")]


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameters of a dataclass type become one option for each field.

    The command gets an instance of the dataclass: twenty options are one parameter, and are named in one place.
    """
    asked = inspect.signature(command, eval_str=True).parameters.values()
    groups: dict[str, Any] = {one.name: one.annotation for one in asked if is_dataclass(one.annotation)}
    flat: list[inspect.Parameter] = []
    for one in asked:
        flat += _options_of(groups[one.name]) if one.name in groups else [one.replace(kind=one.KEYWORD_ONLY)]

    @functools.wraps(command)
    def flattened(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    flattened.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]
    flattened.__annotations__ = {one.name: one.annotation for one in flat}
    return flattened


def _options_of(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=_default(field), annotation=hints[field.name]
        )
        for field in fields(group)
    ]


def _default(field: Field[Any]) -> Any:
    return inspect.Parameter.empty if field.default is MISSING else field.default


def given(**values: Any) -> dict[str, Any]:
    """What was said on the command line; the rest is left to jobq's own defaults."""
    return {name: value for name, value in values.items() if value is not None and value != []}


_RETRY = "Retry"


@dataclass(frozen=True)
class WorkOptions:
    """What workflows and single jobs have in common."""

    queue: Annotated[str | None, Option(help="Queue; default: the kind in lower case.")] = None
    priority: Annotated[int | None, Option(help="0 to 9; 9 goes first. Default: 4.")] = None
    timeout: Annotated[str | None, Option(metavar="DURATION", help="Seconds or ISO 8601, such as 90 or PT5M.")] = None
    stale_after: Annotated[
        str | None, Option(metavar="DURATION", help="Give up after waiting so long; 'never' waits for ever.")
    ] = None
    max_attempts: Annotated[
        int | None, Option(help="Attempts in all, the first one too; 1 never retries.", rich_help_panel=_RETRY)
    ] = None
    retry_initial: Annotated[
        str | None, Option(metavar="DURATION", help="Wait before the first retry.", rich_help_panel=_RETRY)
    ] = None
    retry_factor: Annotated[
        float | None, Option(help="How much longer each further wait is.", rich_help_panel=_RETRY)
    ] = None
    retry_maximum: Annotated[
        str | None, Option(metavar="DURATION", help="The longest wait.", rich_help_panel=_RETRY)
    ] = None
    retry_jitter: Annotated[
        float | None, Option(help="The random part of each wait, 0 to 1.", rich_help_panel=_RETRY)
    ] = None
    retry_lost: Annotated[
        bool | None,
        Option("--retry-lost/--no-retry-lost", help="Try again when the worker died.", rich_help_panel=_RETRY),
    ] = None
    retry_exit_code: Annotated[
        list[int] | None,
        Option(metavar="CODE", help="Retry these exit codes only; repeatable.", rich_help_panel=_RETRY),
    ] = None
    no_retry_exit_code: Annotated[
        list[int] | None, Option(metavar="CODE", help="Never retry this exit code; repeatable.", rich_help_panel=_RETRY)
    ] = None
    retry_on: Annotated[
        list[str] | None,
        Option(
            metavar="CLASS", help="Retry these error classes only, such as dns; repeatable.", rich_help_panel=_RETRY
        ),
    ] = None
    give_up_on: Annotated[
        list[str] | None,
        Option(metavar="CLASS", help="Never retry this error class; repeatable.", rich_help_panel=_RETRY),
    ] = None

    def asked(self) -> dict[str, Any]:
        """As fields of ``jobq.definition``."""
        retry = given(
            max_attempts=self.max_attempts, initial=self.retry_initial, factor=self.retry_factor,
            maximum=self.retry_maximum, jitter=self.retry_jitter, retry_lost=self.retry_lost,
            retry_exit_codes=self.retry_exit_code, no_retry_exit_codes=self.no_retry_exit_code,
            retry_on=self.retry_on, give_up_on=self.give_up_on,
        )  # fmt: skip
        fields = given(queue=self.queue, priority=self.priority, timeout=self.timeout, stale_after=self.stale_after)
        if self.stale_after == "never":
            fields["stale_after"] = None
        return {**fields, **({"retry": retry} if retry else {})}


@dataclass(frozen=True)
class JobOptions:
    """What single jobs have of their own."""

    name: Annotated[str | None, Option(help="Name; assigned where none is given.")] = None
    at: Annotated[
        str | None, Option(metavar="RFC3339", help="When to run, such as 2026-03-01T08:00:00+01:00; default: now.")
    ] = None
    dedupe_key: Annotated[
        str | None, Option(help="While a job with this key lives, a second one is recorded as its duplicate.")
    ] = None
    idempotency_key: Annotated[
        str | None, Option(help="Repeating the call with this key returns the job that the first call made.")
    ] = None
    state: Annotated[str | None, Option(metavar="JSON", help="A JSON value that the job sees; @FILE reads a file.")] = (
        None
    )

    after_jobs: Annotated[
        list[str] | None, Option("--after", metavar="ID", help="Wait until this job has completed; repeatable.")
    ] = None

    def asked(self) -> dict[str, Any]:
        """As fields of ``jobq.definition``."""
        return given(
            name=self.name, scheduled_at=self.at, dedupe_key=self.dedupe_key, idempotency_key=self.idempotency_key,
            state=None if self.state is None else read_json(self.state, "--state"),
            after=[parse_id(job) for job in self.after_jobs or ()],
        )  # fmt: skip


@dataclass(frozen=True)
class WaitOptions:
    """What is done with a job that was just made."""

    wait: Annotated[bool, Option("--wait", help="Wait until it has ended; exit 1 unless it completed.")] = False
    wait_timeout: Annotated[
        float | None, Option(metavar="SECONDS", help="With --wait: exit 3 after so long; the job goes on.")
    ] = None
    as_json: AsJson = False


def read_json(text: str, option: str, max_bytes: int | None = None) -> Any:
    """The JSON value of an option; ``@FILE`` reads a file, ``@-`` stdin. Raises InvalidInput."""
    from jobq.validation import MAX_BYTES, parse_json

    raw: bytes | str = text
    if text.startswith("@"):
        try:
            raw = sys.stdin.buffer.read() if text == "@-" else Path(text[1:]).read_bytes()
        except (OSError, ValueError) as error:
            raise InvalidInput(f"{option}: the file {text[1:]!r} cannot be read: {error}.") from None
    return parse_json(raw, max_bytes or MAX_BYTES)


def read_yaml(file: str) -> Path | str:
    """What ``--file`` names, for ``jobq.manifest``: a path, or the text of stdin for ``-``. Raises InvalidInput."""
    if file != "-":
        return Path(file)
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeError:
        raise InvalidInput("The input is not UTF-8.", code="invalid_yaml") from None
