"""How long a job has waited for a worker: the pure part of what ends stale jobs.

``stale_after`` counts from the moment that the job became ready. While a person holds it (or its queue, its workflow,
the SYNC that it belongs to) the clock stands.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from jobq.duration import format_duration
from jobq.promotion import Load


@dataclass(frozen=True, slots=True)
class Hold:
    """A time during which a person held something. ``since`` None: from before anybody remembers; ``until`` None: still."""

    since: datetime | None
    until: datetime | None


def holds_of(acts: Iterable[tuple[str, datetime]]) -> list[Hold]:
    """The holds that a person's acts on one subject make, oldest first: (action, when). Other actions change nothing."""
    found: list[Hold] = []
    first, since = True, None
    for action, at in acts:
        if action == "pause" and since is None:
            since, first = at, False
        elif action == "resume" and (since is not None or first):
            found.append(Hold(since, at))
            since, first = None, False
    return [*found, Hold(since, None)] if since is not None else found


def waited(since: datetime, now: datetime, holds: Iterable[Hold]) -> timedelta:
    """From ``since`` to ``now``, less the time of the holds; where they overlap it is counted once."""
    total, counted = now - since, since
    for begin, end in sorted((hold.since or since, hold.until or now) for hold in holds):
        begins, ends = max(begin, counted), min(end, now)
        if ends > begins:
            total -= ends - begins
            counted = ends
    return total


def message(since: datetime, limit: timedelta, held: timedelta, cause: str) -> str:
    """What the job says at its end: since when it waited, and for what."""
    text = f"it was ready since {since:%Y-%m-%d %H:%M:%S UTC} and not started within its stale_after of {_days(limit)}"
    if held:
        text += f" (without the {_days(held)} for which it was paused)"
    return f"{text}: {cause}"


def _days(duration: timedelta) -> str:
    """Nobody counts the microseconds of a wait."""
    return format_duration(max(timedelta(seconds=round(duration.total_seconds())), timedelta(seconds=1)))


def cause(load: Load, queue: str, tenant: str, lane: str) -> str:
    """What such a job waits for, from what is in flight and allowed now; ``load`` knows the limit of its lane."""
    slots, limit, of_tenant = load.slots.get(queue, 0), load.queue_limits.get(queue), load.tenant_limits.get(tenant)
    of_lane = load.lane_limits.get(lane) if lane else None
    if not slots:
        return f"no live worker serves queue {queue}"
    if limit is not None and load.queues[queue] >= limit:
        return f"queue {queue} is at its limit of {limit}"
    if of_tenant is not None and load.tenants[tenant] >= of_tenant:
        return f"tenant {tenant} is at its limit of {of_tenant}"
    if of_lane == 0:
        return "its target takes no jobs at the moment"
    if of_lane is not None and load.lanes[lane] >= of_lane:
        return f"its workflow or target is at its limit of {of_lane}"
    if not load.room(queue, 0):
        return f"all {slots} worker slots of queue {queue} are taken by other jobs"
    return "other jobs went before it"
