"""Durations as people write them: ISO 8601 without months and years, or plain seconds.

Months and years differ in length, so they name no duration; weeks, days, hours, minutes and seconds do. A day is
24 hours here, whatever a clock on a wall shows.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer

HINT = "Write an ISO 8601 duration such as 'PT5M' or 'P1DT12H', or a number of seconds."

_LONGEST = 64  # characters: enough for every duration that a timedelta can hold
_UNITS = ("weeks", "days", "hours", "minutes", "seconds")
_SECONDS = re.compile(r"([0-9]+)(?:\.([0-9]+))?")
_ISO = re.compile(
    r"P(?:([0-9]+)W)?(?:([0-9]+)D)?(?:T(?:([0-9]+)H)?(?:([0-9]+)M)?(?:([0-9]+)(?:[.,]([0-9]+))?S)?)?",
    re.IGNORECASE,
)
_CALENDAR = re.compile(r"P[0-9.,]+Y.*|P(?:[0-9.,]+[WD])*[0-9.,]+M.*", re.IGNORECASE)


def parse_duration(value: object) -> timedelta:
    """The duration that ``value`` names: a timedelta, a number of seconds, or text (ISO 8601, or seconds).

    Text is read exactly, to the microsecond; a float is rounded to one. Negative numbers are returned as they are:
    the caller knows the range. Raises ValueError with a sentence for a person.
    """
    if isinstance(value, timedelta):
        return value
    if isinstance(value, str):
        return _parse_text(value.strip())
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"a duration is ISO 8601 text or a number of seconds, not {_shown(value)}")
    try:
        return timedelta(seconds=value)
    except (OverflowError, ValueError):  # infinity and NaN, too
        raise ValueError(f"{_shown(value)} seconds are no duration") from None


def _parse_text(text: str) -> timedelta:
    if found := _SECONDS.fullmatch(text[:_LONGEST]):
        seconds, fraction = found.groups()
        parts = {"seconds": int(seconds)}
    elif (found := _ISO.fullmatch(text[:_LONGEST])) and text[-1] not in "PTpt":
        *whole, fraction = found.groups()
        parts = {unit: int(number or 0) for unit, number in zip(_UNITS, whole, strict=True)}
    elif _CALENDAR.fullmatch(text[:_LONGEST]):
        raise ValueError(f"{_shown(text)} has years or months, which differ in length: write days or weeks")
    else:
        raise ValueError(f"{_shown(text)} is no duration")
    if len(text) > _LONGEST or len(fraction or "") > 6:
        raise ValueError(f"{_shown(text)} is too long or finer than a microsecond")
    try:
        return timedelta(**parts, microseconds=int((fraction or "0").ljust(6, "0")))
    except OverflowError:
        raise ValueError(f"{_shown(text)} is too long") from None


def _shown(value: object) -> str:
    """The value for a message: short, on one line."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print integers of thousands of digits
        return "that number"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def format_duration(duration: timedelta) -> str:
    """ISO 8601 text that ``parse_duration`` reads back exactly; the duration must not be negative."""
    if duration < timedelta(0):
        raise ValueError("a negative duration has no ISO 8601 text")
    minutes, seconds = divmod(duration.seconds, 60)
    hours, minutes = divmod(minutes, 60)
    fraction = f".{duration.microseconds:06}".rstrip("0") if duration.microseconds else ""
    day = f"{duration.days}D" if duration.days else ""
    time = "".join(
        (
            f"{hours}H" if hours else "",
            f"{minutes}M" if minutes else "",
            f"{seconds}{fraction}S" if seconds or fraction else "",
        )
    )
    return f"P{day}{'T' + time if time else ''}" if day or time else "PT0S"


Duration = Annotated[
    timedelta,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, return_type=str, when_used="json"),
]
"""A field that takes what ``parse_duration`` takes; in JSON it is ISO 8601 text."""
