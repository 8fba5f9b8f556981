"""How late schedule slots are: from the slot to its job's row, and to its start. The peer is celery beat."""

from __future__ import annotations

import itertools
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from bench.figures import distribution
from bench.peer import TICKED
from bench.stack import Peer, Servers, Stack
from jobq.client import JobQ
from jobq.definition import Definition

_AT_ONCE = 500


def measure(where: Servers, *, workflows: int, interval: float, slots: int, beat_interval: float) -> dict[str, Any]:
    """``slots`` schedule slots of each of ``workflows`` workflows; beat gets as many entries at its own interval."""
    with Stack(where) as stack:
        fill(stack.client(), workflows, interval)
        first = _now(stack) + 1.0
        time.sleep(1.0 + slots * interval + 2.0)
        ours = lateness(stack, first, first + slots * interval)
    return {
        "workflows": workflows,
        "interval_s": interval,
        "jobq": ours,
        "celery beat": _beat(where, workflows, beat_interval, slots * interval),
    }


def fill(jobq: JobQ, count: int, interval: float) -> None:
    """Make workflows whose slots spread evenly over their interval."""
    began = datetime.now(UTC)
    for start in range(0, count, _AT_ONCE):
        jobq.apply(
            Definition(
                name=f"w{number}", kind="NOOP", spec={}, interval=timedelta(seconds=interval),
                start_at=began + timedelta(seconds=interval * number / count),
            )
            for number in range(start, min(start + _AT_ONCE, count))
        )  # fmt: skip


def _now(stack: Stack) -> float:
    return float(stack.query("SELECT extract(epoch FROM clock_timestamp())")[0][0])


def lateness(stack: Stack, since: float, until: float) -> dict[str, Any]:
    """Of all slots in [since, until): milliseconds until the row and until the start, and slots without either."""
    rows = stack.query(
        "SELECT extract(epoch FROM created_at - slot_at) * 1000, extract(epoch FROM started_at - slot_at) * 1000 "
        f"FROM jobq_jobs WHERE slot_at >= to_timestamp({since}) AND slot_at < to_timestamp({until})"
    )
    started = [float(start) for _, start in rows if start is not None]
    return {
        "until_the_row_ms": distribution([float(row) for row, _ in rows]),
        "until_the_start_ms": distribution(started) if started else None,
        "not_started": len(rows) - len(started),
        "slots_per_second": round(len(rows) / (until - since)),
    }


def _beat(where: Servers, entries: int, interval: float, seconds: float) -> dict[str, Any]:
    with Peer(where, "threads", broker_db=4, beat=(entries, interval)) as peer:
        time.sleep(interval + 2.0)
        peer.redis.delete(TICKED)
        time.sleep(seconds)
        ticks = [line.decode().split(":") for line in peer.redis.lrange(TICKED, 0, -1)]
    times: dict[str, list[float]] = {}
    for number, moment in ticks:
        times.setdefault(number, []).append(float(moment))
    gaps = [
        (later - earlier - interval) * 1000
        for each in times.values() for earlier, later in itertools.pairwise(each)
    ]  # fmt: skip
    asked = entries / interval
    return {
        "interval_s": interval,
        "asked_per_second": round(asked),
        "sent_per_second": round(len(ticks) / seconds),
        # beat promises no instants: what can be measured is how far its gaps differ from the interval.
        "gap_error_ms": distribution(gaps) if gaps else None,
    }
