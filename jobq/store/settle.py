"""The scheduler's part of a fan-out: what becomes of a SYNC that lives on beside its children.

``settle`` may run in any number of schedulers: each SYNC is decided by whoever has its row locked, by the pure
``jobq.states.settling``. Counts are folded first, in the same transaction, so a SYNC never ends too early; a child
whose end is not folded yet only makes it end a moment later.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from jobq.states import REASONS, Desired, Reason, Settling, Status, Transition, canceled, fanned_in, settling
from jobq.store import after, fanin, siblings
from jobq.store.fanout import TOO_LARGE
from jobq.store.finish import Change, EndedAttempt, finish, free_dependents, put_back
from jobq.store.sql import id_list, is_one_of, now
from jobq.store.tables import fanouts, jobs

_SYNCS = 100
_CHILDREN = 2000
_UPSTREAMS = 2000


@dataclass(slots=True)
class Sweeps:
    """How far the children of a canceled SYNC were swept: kept by a scheduler from tick to tick."""

    behind: dict[UUID, UUID] = field(default_factory=dict)
    last: UUID | None = None
    """The SYNC that the last tick ended with: the next one goes on behind it."""


class Settled(NamedTuple):
    """What a round did. ``more``: there is more to do at once; ``moved``: something happened, ends were added up."""

    more: bool
    moved: bool


def settle(conn: Connection, sweeps: Sweeps) -> Settled:
    """One round over the fan-outs that no worker reads for."""
    folded = fanin.fold(conn)
    rows = fanin.unsettled(conn, sweeps.last, _SYNCS)
    sweeps.last = rows[-1].id if len(rows) == _SYNCS else None
    if not rows:
        return Settled(more=False, moved=folded)
    live = fanin.live_children(conn, [row.id for row in rows])
    awaits = siblings.awaiting(conn, [row.id for row in rows if not live.get(row.id)])
    held = [row.id for row in rows if row.desired != Desired.RUN or _gave_up(row)]
    flying = fanin.in_flight(conn, held) if held else {}
    todo: defaultdict[Settling, list[Row[Any]]] = defaultdict(list)
    for row in rows:
        step = settling(
            Status(row.status), Reason(row.reason), Desired(row.desired), reading=row.reading,
            live=live.get(row.id, 0), running=flying.get(row.id, (0, 0))[1], gave_up=_gave_up(row),
            awaits=row.id in awaits,
        )  # fmt: skip
        todo[step].append(row)
    for row in todo[Settling.PAUSED]:
        conn.execute(sa.update(jobs).where(jobs.c.id == row.id).values(reason=Reason.PAUSED.value))
    put_back(conn, (_read_on(row) for row in todo[Settling.READ_ON]))
    # Where all that live are executed there is nothing to take back, and no need to look through the children for it.
    waiting = [row for row in todo[Settling.DEQUEUE] if live[row.id] > flying.get(row.id, (0, 0))[1]]
    swept = sum(_dequeue(conn, row.id, sweeps) for row in waiting)
    endings = [_ending(conn, row) for row in todo[Settling.END]]
    _close(conn, [*todo[Settling.END], *todo[Settling.OVER]])  # first: an open fan-out would keep its SYNC from ending
    finish(conn, endings)
    more = swept > 0 or bool(todo[Settling.END] or todo[Settling.READ_ON] or sweeps.last)
    return Settled(more, more or folded)


def _gave_up(row: Row[Any]) -> bool:
    """Its fan-out was too large, or it was canceled: what waits is not to start any more."""
    verdict = row.verdict or {}
    return verdict.get("error_class") == TOO_LARGE or verdict.get("to") in REASONS[Status.CANCELED]


def _read_on(row: Row[Any]) -> Change:
    to = Transition(Status.PENDING, Reason.READY)
    return Change(row.id, Status.RUNNING, row.attempt, to, ended=_attempt(row, to, "PAUSED"))


def _attempt(row: Row[Any], to: Transition, outcome: str) -> EndedAttempt | None:
    """The record of the attempt that the SYNC's worker left when it gave its slot back."""
    kept = dict((row.verdict or {}).get("ended") or {})
    if not kept:
        return None
    worker = kept.pop("worker_id", None)
    return EndedAttempt(
        **{**kept, "started_at": row.started_at or datetime.fromisoformat(kept["started_at"])}
        | {"outcome": outcome, "reason": to.reason.value, "charged": to.charged}
        | {"worker_id": UUID(worker) if worker else None}
    )


def _dequeue(conn: Connection, parent_id: UUID, sweeps: Sweeps) -> int:
    """Cancel some children that nobody executes. From the start again at the end: a retry may have come back."""
    waiting = fanin.waiting_children(conn, parent_id, sweeps.behind.get(parent_id), _CHILDREN)
    if len(waiting) == _CHILDREN:
        sweeps.behind[parent_id] = waiting[-1].id
    else:
        sweeps.behind.pop(parent_id, None)
    to = canceled(Reason.PARENT_CANCELED)
    return len(finish(conn, (Change(row.id, Status(row.status), row.attempt, to) for row in waiting)))


def _ending(conn: Connection, row: Row[Any]) -> Change:
    """The end of a SYNC whose children have all ended: what was asked of it, what it came to, or what they did."""
    verdict = row.verdict or {}
    totals = fanin.counts(conn, row.id)
    elsewhere = siblings.stand_ins(conn, row.id) if any(each.duplicate for each in totals) else siblings.StandIns()
    failed = sum(each.failed for each in totals)
    lost = sum(each.canceled - each.duplicate for each in totals)
    message, error_class = None, None
    if row.desired == Desired.CANCEL:
        to = canceled(Reason(row.cancel_reason) if row.cancel_reason else Reason.BY_USER)
        message = "canceled"
    elif "to" in verdict:
        ended_as = Reason(verdict["to"])
        stopped = ended_as in REASONS[Status.CANCELED]
        to = canceled(ended_as) if stopped else Transition(Status.FAILED, ended_as, charged=True)
        message, error_class = verdict["message"], verdict["error_class"]
    else:
        to = fanned_in(failed=failed + elsewhere.failed, canceled=lost + elsewhere.canceled, invalid=row.invalid)
        if to.status is Status.FAILED:
            total = sum(each.total for each in totals)
            message, error_class = _partly(row, total, failed, lost, elsewhere), "partial"
    change = Change(row.id, Status.RUNNING, row.attempt, to, message=message, error_class=error_class)
    change.ended = _attempt(row, to, to.status.value)
    if change.ended is not None:
        change.ended.message, change.ended.error_class = message, error_class
    return change


def _partly(row: Row[Any], total: int, failed: int, lost: int, elsewhere: siblings.StandIns) -> str:
    parts = []
    if row.invalid:
        parts.append(f"{row.invalid} of {row.read} entities could not be used")
    if failed:
        parts.append(f"{failed} of {total} replications failed")
    if lost:
        parts.append(f"{lost} of {total} replications were canceled")
    if gone := elsewhere.failed + elsewhere.canceled:
        parts.append(f"{gone} of {total} replications failed in another SYNC, which did them for this one")
    return ", ".join(parts)


def _close(conn: Connection, rows: Sequence[Row[Any]]) -> None:
    """Nothing will change in these fan-outs any more."""
    if rows:
        dialect = conn.dialect.name
        conn.execute(
            sa.update(fanouts).where(is_one_of(dialect, fanouts.c.job_id, "ids")).values(settled_at=now()),
            {"ids": id_list(dialect, [row.id for row in rows])},
        )


def free_overdue(conn: Connection, behind: UUID | None) -> UUID | None:
    """Free jobs that still wait for jobs that have ended: a second line of defence behind every end.

    Looks at one page of the jobs that somebody waits for; returns where the next one begins, None: these were the last.
    """
    page = after.upstreams(conn, behind, _UPSTREAMS)
    if late := [row for row in page if row.finished_at is not None]:
        free_dependents(conn, late)
    return page[-1].id if len(page) == _UPSTREAMS else None
