"""JSON values, both ways: read strictly from text, made of what database drivers return, and made into it again."""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any, NoReturn
from uuid import UUID


def read_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError for what only some readers take: NaN, infinity, lone surrogates."""
    try:
        value = json.loads(text, parse_constant=_no_constant, parse_float=_finite)
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 (at byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON: {error.msg} (at character {error.pos + 1})") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if (b"\\u" if isinstance(text, bytes) else "\\u") in text:  # type: ignore[operator]
        try:
            write_json(value)
        except UnicodeEncodeError:
            raise ValueError("text in it contains half of a surrogate pair") from None
    return value


def write_json(value: object) -> bytes:
    """Compact JSON in UTF-8. Raises ValueError (UnicodeEncodeError, too) or TypeError for what JSON does not have."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError("a number in it is too large")
    return number


# --- from a driver -----------------------------------------------------------------------------------------------


def as_json(value: Any) -> Any:
    """A driver's value as JSON, without loss where JSON can: decimals and UUIDs become text, bytes base64.

    Instants are ISO 8601 text, aware ones in UTC, so that they do not change with the session's time zone. Intervals
    are seconds. NaN and infinity, which JSON lacks, become null.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal):
        return str(value) if value.is_finite() else None
    if isinstance(value, datetime):
        return (value.astimezone(UTC) if value.tzinfo else value).isoformat()
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(bytes(value)).decode()
    if isinstance(value, Mapping):
        return {str(name): as_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [as_json(item) for item in value]
    return str(value)


_MARKED: dict[str, tuple[type[Any], Callable[[str], Any]]] = {
    "datetime": (datetime, datetime.fromisoformat),  # before date, which it is one of
    "date": (date, date.fromisoformat),
    "time": (time, time.fromisoformat),
    "decimal": (Decimal, Decimal),
    "uuid": (UUID, UUID),
    "bytes": (bytes, base64.b64decode),
}


def mark(value: Any) -> Any:
    """A driver's value as JSON that ``unmark`` makes into the very same value: for cursors and states."""
    for name, (kind, _) in _MARKED.items():
        if isinstance(value, kind):
            return {name: value.isoformat() if name == "datetime" else as_json(value)}
    return as_json(value)


def unmark(value: Any) -> Any:
    """What ``mark`` was given. Raises ValueError."""
    if not isinstance(value, Mapping):
        return value
    for name, text in value.items():
        if name in _MARKED and isinstance(text, str):
            try:
                return _MARKED[name][1](text)
            except InvalidOperation:
                break
    raise ValueError("it does not come from this source")


# --- to a driver -------------------------------------------------------------------------------------------------


def to_type(kind: type[Any], value: Any) -> Any:
    """A JSON value as a column of this Python type takes it. Raises ValueError where it cannot be one."""
    if value is None or isinstance(value, kind):
        if kind is int and isinstance(value, bool):
            return int(value)
        return value
    if isinstance(value, str):
        return _from_text(kind, value)
    if isinstance(value, list | dict):
        if kind is str:
            return write_json(value).decode()
        raise ValueError("an object or a list does not fit into it")
    if kind is Decimal:
        return Decimal(str(value))
    if kind is str:
        return write_json(value).decode()
    if kind is float:
        return float(value)
    if kind is timedelta and not isinstance(value, bool):
        return timedelta(seconds=value)
    if kind is bool and value in (0, 1):
        return bool(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if kind in {int, bool, datetime, date, time, UUID, bytes}:
        raise ValueError(f"a number does not fit into it ({kind.__name__})")
    return value


def _from_text(kind: type[Any], text: str) -> Any:
    try:
        if kind in {datetime, date, time}:
            moment = text.strip()
            if kind is date and len(moment) > 10:
                return datetime.fromisoformat(moment).date()
            return kind.fromisoformat(moment)
        if kind in {int, float, Decimal, UUID}:
            return kind(text.strip())
        if kind is bytes:
            return base64.b64decode(text, validate=True)
        if kind is bool:
            return {"true": True, "false": False, "1": True, "0": False}[text.strip().lower()]
        if kind is timedelta:
            return timedelta(seconds=float(text))
    except (ValueError, KeyError, InvalidOperation, binascii.Error):
        raise ValueError(f"the text is no {kind.__name__}") from None
    return text
