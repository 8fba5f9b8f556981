"""What people and programs read: tables and sentences on a terminal, JSON documents with ``--json``.

Everything that came from outside passes ``plain`` first: a job's name or a line of its log cannot steer a terminal.
Rich markup is never interpreted. Colors appear on terminals only, and not where NO_COLOR is set.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import IO, TYPE_CHECKING, Any, Literal
from uuid import UUID

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

BROKEN_PIPE = 141
"""What a shell reports of a program that SIGPIPE ended: the reader went away, which is no error of ours."""
_PIPED_WIDTH = 100_000
_GAP = 2
_SHORTEST_CUT = 8
_UNITS = ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"))
_STEERING = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_COLORS = {
    "COMPLETED": "green", "FAILED": "red", "CANCELED": "yellow", "RUNNING": "cyan", "QUEUED": "blue",
    "ACTIVE": "green", "PAUSED": "yellow", "TERMINATED": "red",
    "live": "green", "draining": "yellow", "late": "red", "dead": "red", "stopped": "dim",
}  # fmt: skip


def plain(text: object) -> str:
    """The text on one line, with what could move the cursor, change colors or reorder it written as escapes."""
    return _STEERING.sub(_escaped, str(text))


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    named = {0x0A: "\\n", 0x0D: "\\r"}
    return named.get(code) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


# --- where it goes -----------------------------------------------------------------------------------------------


def console(*, stderr: bool = False) -> Console:
    """A Rich console that interprets nothing, and is as wide as it takes where no person watches."""
    from rich.console import Console

    class Ours(Console):
        def on_broken_pipe(self) -> None:
            _reader_left()

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _PIPED_WIDTH
    colors: Literal["auto"] | None = None if os.environ.get("NO_COLOR") else "auto"
    return Ours(file=stream, width=width, color_system=colors, highlight=False, markup=False, emoji=False)


def say(text: str | Text = "", *, stderr: bool = False) -> None:
    """One line on stdout, or for things beside the answer on stderr; the terminal wraps it."""
    console(stderr=stderr).print(text, soft_wrap=True)


def write(text: str, to: IO[str] | None = None) -> None:
    """Text as it is, at once."""
    to = to or sys.stdout
    try:
        to.write(text)
        to.flush()
    except BrokenPipeError:
        _reader_left()


def write_bytes(content: bytes) -> None:
    """Bytes as they are."""
    try:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        _reader_left()


def note(text: str) -> None:
    """A line for the person who watches; nothing where nobody does."""
    if sys.stderr.isatty():
        from rich.text import Text

        say(Text(plain(text), "dim"), stderr=True)


def _reader_left() -> None:
    """``jobq job list | head``: end in silence, also when Python flushes stdout at the exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    raise typer.Exit(BROKEN_PIPE)


# --- JSON ----------------------------------------------------------------------------------------------------------


def document(value: Any) -> Any:
    """The value as JSON types: instants in RFC 3339, durations in seconds, ids as text."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: document(getattr(value, field.name)) for field in fields(value)}
    if callable(dump := getattr(value, "model_dump", None)):  # pydantic's models
        value = dump()
    if isinstance(value, Mapping):
        return {str(key): document(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [document(item) for item in value]
    if isinstance(value, datetime):
        return instant(value)
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, UUID) else value


def instant(value: datetime) -> str:
    """RFC 3339 in UTC, to the microsecond."""
    return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def write_json(value: Any, *, indent: int | None = 2) -> None:
    """One JSON document; ``indent`` None: on one line."""
    text = json.dumps(document(value), indent=indent, ensure_ascii=False)
    # These characters occur within strings only, where JSON knows an escape for each.
    escaped = _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}" if found[0] != "\n" else "\n", text)
    write(escaped + "\n")


def write_listing(items: Iterable[Any], next_cursor: str | None = None, **more: Any) -> None:
    """Every listing has this shape, as over HTTP."""
    write_json({"items": list(items), "next_cursor": next_cursor, **more})


# --- for people ------------------------------------------------------------------------------------------------------


def write_table(
    head: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str, cut: str = "", drop: Sequence[str] = ()
) -> None:
    """A table without frames. Where a terminal is too narrow, columns in ``drop`` are left out one after the other,
    then the column ``cut`` is shortened: ids stay whole, so that they can be copied.
    """
    cells = [[cell(value) for value in row] for row in rows]
    if not cells:
        note(empty)
        return
    widths = {name: max(len(name), *(row[n].cell_len for row in cells)) for n, name in enumerate(head)}
    out = console()
    for name in drop:
        if _width(widths) > out.width:
            del widths[name]
    if cut in widths:
        widths[cut] = max(min(widths[cut], widths[cut] + out.width - _width(widths)), _SHORTEST_CUT)
    lines = [_line([cell(name) for name in head], head, widths)]
    lines[0].stylize("bold")
    lines += [_line(row, head, widths) for row in cells]
    from rich.text import Text

    say(Text("\n").join(lines))


def _width(widths: Mapping[str, int]) -> int:
    return sum(widths.values()) + _GAP * (len(widths) - 1)


def _line(row: Sequence[Text], head: Sequence[str], widths: Mapping[str, int]) -> Text:
    from rich.text import Text

    line = Text()
    for name, text in zip(head, row, strict=True):
        if name in widths:
            line.append(" " * _GAP if line else "")
            shown = text.copy()
            shown.truncate(widths[name], overflow="ellipsis", pad=True)
            line.append_text(shown)
    line.rstrip()
    return line


def write_fields(pairs: Iterable[tuple[str, object]]) -> None:
    """Names and values, one a line; what is None or empty is left out."""
    shown = [(name, value) for name, value in pairs if value not in (None, "", [], {})]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        from rich.text import Text

        say(Text.assemble((f"{name:<{width}}  ", "bold"), cell(value)))


def said(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A spec without the fields that are empty."""
    return {name: value for name, value in spec.items() if value not in (None, {}, [])}


def cell(value: object) -> Text:
    """A value as people read it."""
    from rich.text import Text

    if isinstance(value, Text):
        return value
    if value is None:
        return Text("-", "dim")
    if isinstance(value, bool):
        return Text("yes" if value else "no")
    if isinstance(value, datetime):
        return Text(f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC")
    if isinstance(value, timedelta):
        return Text(duration(value.total_seconds()))
    if isinstance(value, dict | list):
        return Text(plain(json.dumps(document(value), ensure_ascii=False)))
    return Text(plain(value))


def state(status: object, reason: object = None) -> Text:
    """``COMPLETED·succeeded``, in the color of the status."""
    from rich.text import Text

    text = plain(status) if reason is None else f"{plain(status)}·{plain(reason)}"
    return Text(text, _COLORS.get(str(status), ""))


def duration(seconds: float, *, roughly: bool = False) -> str:
    """``85 ms``, ``3.2 s``, ``4 min 5 s``, ``2 h 3 min``, ``3 d 4 h``; roughly: ``4 min``."""
    if seconds < 1:
        return f"{seconds * 1000:.{1 if seconds < 0.01 else 0}f} ms".replace(".0 ms", " ms")
    if seconds < 60:
        return f"{seconds:.{0 if roughly else 1}f} s".replace(".0 s", " s")
    whole = round(seconds)
    size, unit, smaller, part = next(step for step in _UNITS if whole >= step[0])
    rest = 0 if roughly else whole % size // smaller
    return f"{whole // size} {unit}" + (f" {rest} {part}" if rest else "")


def count(number: int, noun: str) -> str:
    """``1 job``, ``2 jobs``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def ago(value: datetime | None) -> str | None:
    """How long ago, or in how long, by this machine's clock."""
    if value is None:
        return None
    passed = (datetime.now(UTC) - value).total_seconds()
    if passed < -1:
        return f"in {duration(-passed, roughly=True)}"
    return f"{duration(max(round(passed), 1), roughly=True)} ago"


def took(began: datetime | None, ended: datetime | None) -> str | None:
    """The time between two instants, if both are known."""
    return None if began is None or ended is None else duration((ended - began).total_seconds())
