"""The types of a mapping's fields: what a JSON value is in each, as a JSON value again. Pure.

A converter gets any value but null. It returns None for blank text where that is no value of the type, and raises
TypeError, ValueError or ArithmeticError for what the type does not have.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any, Literal, get_args

Type = Literal["string", "integer", "number", "boolean", "date", "datetime", "json"]
Transform = Literal["strip", "lower", "upper"]

_INTEGER = re.compile(r"[+-]?[0-9]+(\.0*)?")
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("true", "yes", "on", "1", "t", "y"), True),
    **dict.fromkeys(("false", "no", "off", "0", "f", "n"), False),
    "": None,
}


def _string(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return str(value)
    raise TypeError


def _integer(value: Any) -> int | None:
    if isinstance(value, str):
        text = value.strip()
        if text and not _INTEGER.fullmatch(text):
            raise ValueError
        return int(text.partition(".")[0]) if text else None
    if isinstance(value, bool) or not isinstance(value, int | float) or value != (whole := int(value)):
        raise ValueError
    return whole


def _number(value: Any) -> int | float | None:
    if isinstance(value, str):
        text = value.strip()
        if text and not _NUMBER.fullmatch(text):
            raise ValueError
        if not text:
            return None
        value = int(text) if text.lstrip("+-").isdigit() else float(text)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError
    return value


def _boolean(value: Any) -> bool | None:
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower() if isinstance(value, str | int) else "?"
    if word not in _WORDS:
        raise ValueError
    return _WORDS[word]


def _date(value: str) -> str | None:
    text = value.strip()
    if not text:
        return None
    found = date.fromisoformat(text) if len(text) == 10 else datetime.fromisoformat(text.upper())
    return found.isoformat()[:10]


def _datetime(value: str) -> str | None:
    text = value.strip()
    if not text:
        return None
    found = datetime.fromisoformat(text.upper())
    found = found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    return found.isoformat().removesuffix("+00:00") + "Z"


def _of_text(convert: Callable[[str], str | None]) -> Callable[[Any], str | None]:
    def checked(value: Any) -> str | None:
        if not isinstance(value, str):
            raise TypeError
        return convert(value)

    return checked


CONVERTERS: dict[str, Callable[[Any], Any]] = {
    "string": _string,
    "integer": _integer,
    "number": _number,
    "boolean": _boolean,
    "date": _of_text(_date),
    "datetime": _of_text(_datetime),
}
TRANSFORMS: dict[str, Callable[[str], str]] = {"strip": str.strip, "lower": str.lower, "upper": str.upper}
NOUNS = {"string": "text", "date": "date (such as 2026-03-01)", "datetime": "datetime (such as 2026-03-01T08:00:00Z)"}
assert {*CONVERTERS, "json"} == {*get_args(Type)}
