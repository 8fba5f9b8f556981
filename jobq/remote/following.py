"""Server-sent events, read on and on: who is cut off comes back with ``Last-Event-ID``, and misses nothing."""

from __future__ import annotations

import random
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from jobq.errors import NotFound, Unavailable
from jobq.models import Change, Job, LogLine, Workflow
from jobq.remote.wire import Wire, read

SILENCE = 45.0
"""Seconds: a stream says every 15 that it lives; one that says nothing for so long is dead."""
_PATIENCE = 60.0
"""Seconds without any answer after which whoever follows is told."""
_LONGEST_PAUSE = 2.0


@dataclass(frozen=True, slots=True)
class Told:
    """One event."""

    name: str
    place: str | None
    data: str


def events(lines: Iterable[str]) -> Iterator[Told]:
    """The events of a stream (WHATWG HTML, 9.2.6); comments are passed over, and what was cut off in the middle."""
    name, place, data = "message", None, list[str]()
    for line in lines:
        if not line:
            if data:
                yield Told(name, place, "\n".join(data))
            name, data = "message", []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            name = value
        elif field == "data":
            data.append(value)
        elif field == "id":
            place = value


def follow(wire: Wire, path: str, query: Mapping[str, Any], last: str | None) -> Generator[Told]:
    """The events from there on, over any number of connections. Raises Unavailable when the API stays away.

    An error that a pause cannot mend ends it, too.
    """
    since, pause = time.monotonic(), 0.1
    while True:
        try:
            with wire.stream(path, query=query, last=last, silence=SILENCE) as lines:
                for told in events(lines):
                    since, pause = time.monotonic(), 0.1
                    last = told.place or last
                    yield told
        except Unavailable:
            if time.monotonic() - since > _PATIENCE:
                raise
        time.sleep(pause * random.uniform(0.7, 1.3))
        pause = min(2 * pause, _LONGEST_PAUSE)


def follow_log(wire: Wire, job: str, after: int) -> Iterator[LogLine]:
    """The lines of a job's log behind ``after``, until it has ended; without gap or repeat."""
    opened = False
    with closing(follow(wire, f"{job}/logs/stream", {"after": after}, str(after) if after else None)) as told:
        try:
            for event in told:
                opened = True
                if event.name == "end":
                    return
                if event.name == "log":
                    yield read(LogLine, event.data)
        except NotFound:
            if not opened:
                raise  # else it was pruned meanwhile


def follow_changes(wire: Wire, query: Mapping[str, Any]) -> Iterator[Change]:
    """See ``JobQ.changes``. Connected when this returns."""
    told = follow(wire, "/v1/events", query, None)
    next(told)  # "open"
    return (change for event in told if (change := _change(event)) is not None)


def _change(event: Told) -> Change | None:
    place = event.place or ""
    if event.name == "job":
        return Change("job", place, job=read(Job, event.data))
    if event.name == "workflow":
        return Change("workflow", place, workflow=read(Workflow, event.data))
    return Change("gap", place) if event.name == "gap" else None
