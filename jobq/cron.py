"""Cron expressions on the clocks of a time zone. cronsim finds the matching wall times; this file, the instants.

What happens where clocks are changed:

- A schedule that names its hours (``30 2 * * *``, ``0 */2 * * *``) means times of day: one that is skipped runs once,
  at the first instant after the gap; one that comes twice runs once, the first time.
- A schedule of every hour (``0 * * * *``, ``*/5 0-23 * * *``) means a pulse: it runs at every instant that matches,
  so in each real hour, also in the one that comes twice; what is skipped is not made up for.

cronsim's own treatment of zones is not used (2.8): it decides by a leading star instead of by the hours, so that
``*/15 2 * * *`` is lost in a gap and runs twice in a repeated hour; it may return an instant before the one that it
was started from; and it leaps over matches where clocks change by half an hour (Australia/Lord_Howe).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

_SECOND = timedelta(seconds=1)
_ANY_DAY = datetime(2024, 1, 1)  # noqa: DTZ001  a wall time
_LONGEST = 512  # characters of an expression: every minute and hour written out takes less


@lru_cache(maxsize=4096)
def is_every_hour(expression: str) -> bool:
    """True for a pulse, False for times of day (see above).

    Raises ValueError for what is no cron expression of five fields, or for one that never matches.
    """
    if len(expression) > _LONGEST or len(expression.split()) != 5:
        raise ValueError("a cron expression has five fields: minute, hour, day of month, month, day of week")
    try:
        simulator = CronSim(expression, _ANY_DAY)
    except CronSimError as error:
        raise ValueError(str(error)[:1].lower() + str(error)[1:]) from None
    if next(simulator, None) is None:
        raise ValueError("no day ever matches")
    return len(simulator.hours) == 24


def instants(expression: str, zone: ZoneInfo, after: datetime) -> Iterator[datetime]:
    """The matching instants strictly after ``after`` (aware), ascending, each once, in UTC.

    Ends where nothing matches for 50 years.
    """
    wall, repeated = _wall(after, zone)
    if is_every_hour(expression):
        found = _pulses(_walls(expression, wall - repeated), zone, 0)
    else:
        found = (_first_valid(time, zone) for time in _walls(expression, wall))
    before = after
    for instant in found:
        if instant > before:
            yield instant
            before = instant


def instants_back(expression: str, zone: ZoneInfo, until: datetime) -> Iterator[datetime]:
    """The matching instants at or before ``until`` (aware), descending, each once, in UTC."""
    wall, repeated = _wall(until, zone)
    walls = _walls(expression, wall + repeated + _SECOND, reverse=True)
    found = _pulses(walls, zone, 1) if is_every_hour(expression) else (_first_valid(time, zone) for time in walls)
    before = None
    for instant in found:
        if instant <= until and (before is None or instant < before):
            yield instant
            before = instant


def _pulses(walls: Iterator[datetime], zone: ZoneInfo, fold: int) -> Iterator[datetime]:
    """The instants of wall times, in order: ascending walls for fold 0, descending ones for fold 1.

    While clocks show times twice, the instants of one pass are held back until those of the other are through.
    """
    held: deque[datetime] = deque()
    for wall in walls:
        instant = _instant(wall, zone, fold)
        if instant is None:
            continue
        while held and (held[0] < instant) == (fold == 0):
            yield held.popleft()
        yield instant
        other = _instant(wall, zone, 1 - fold)
        if other is not None and other != instant:
            held.append(other)
    yield from held


def shortest_distance(expression: str) -> timedelta:
    """The shortest time between two matches on a clock that is never changed, looked for over at least a day."""
    matches = _walls(expression, _ANY_DAY)
    before = next(matches)
    shortest = timedelta.max
    for _, match in zip(range(24 * 60), matches, strict=False):
        shortest, before = min(shortest, match - before), match
    return shortest


def _walls(expression: str, start: datetime, *, reverse: bool = False) -> Iterator[datetime]:
    """Matching wall times strictly after ``start`` (before it, if reversed), to the second; zones play no part."""
    simulator: Iterable[datetime] = CronSim(expression, start.replace(microsecond=0), reverse)
    yield from simulator


def _wall(instant: datetime, zone: ZoneInfo) -> tuple[datetime, timedelta]:
    """What clocks show at an instant, and how far they are set back if they show it twice (else zero)."""
    local = instant.astimezone(zone)
    earlier, later = local.replace(fold=0).utcoffset(), local.replace(fold=1).utcoffset()
    assert earlier is not None
    assert later is not None
    return local.replace(tzinfo=None, fold=0), earlier - later


def _instant(wall: datetime, zone: ZoneInfo, fold: int) -> datetime | None:
    """When clocks show ``wall`` (``fold`` 0: for the first time, 1: for the last); None: it is skipped."""
    instant = wall.replace(tzinfo=zone, fold=fold).astimezone(UTC)
    return instant if instant.astimezone(zone).replace(tzinfo=None, fold=0) == wall else None


def _first_valid(wall: datetime, zone: ZoneInfo) -> datetime:
    """When clocks first show ``wall`` or later: the end of the gap, if ``wall`` is skipped."""
    return _instant(wall, zone, 0) or _end_of_gap(wall, zone)


def _end_of_gap(wall: datetime, zone: ZoneInfo) -> datetime:
    """The instant at which clocks leap over ``wall``.

    In a gap, fold 0 reckons with the offset before it and fold 1 with the one after (PEP 495), so that the change
    lies after the instant of fold 1 and not after that of fold 0: it is found between them by bisection.
    """
    before = wall.replace(tzinfo=zone, fold=1).astimezone(UTC)
    after = wall.replace(tzinfo=zone, fold=0).astimezone(UTC)
    offset = after.astimezone(zone).utcoffset()
    while after - before > _SECOND:
        middle = before + (after - before) // 2 // _SECOND * _SECOND
        if middle.astimezone(zone).utcoffset() == offset:
            after = middle
        else:
            before = middle
    return after
