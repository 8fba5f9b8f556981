"""The failure counter of workflows: how many jobs of the present generation failed in a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from jobq.states import Reason, Status
from jobq.store.sql import incoming, rows_json
from jobq.store.tables import workflows


@dataclass(slots=True)
class _Tally:
    """What a batch of ends means to one generation of a workflow: was there a success, and how many failures after."""

    id: UUID
    generation: int
    reset: int = 0
    fails: int = 0


_TALLY_COLUMNS: dict[str, Any] = {
    "id": sa.Uuid(), "generation": sa.Integer(), "reset": sa.Integer(), "fails": sa.Integer()
}  # fmt: skip


def _counts(tally: Any) -> Any:
    """Only the current generation counts, and a success of a healthy workflow writes nothing."""
    return sa.and_(
        workflows.c.id == tally.c.id,
        workflows.c.generation == tally.c.generation,
        sa.or_(tally.c.fails > 0, workflows.c.consecutive_failures > 0),
    )


@cache
def _lock_counted(dialect: str) -> Any:
    """The workflows whose counters will change, locked in the order of their ids: an UPDATE alone joins as it likes."""
    tally = incoming(dialect, "tallies", _TALLY_COLUMNS)
    return (
        sa.select(workflows.c.id)
        .select_from(workflows)
        .join(tally, _counts(tally))
        .order_by(workflows.c.id)
        .with_for_update(of=workflows)
    )


@cache
def _count(dialect: str) -> Any:
    tally = incoming(dialect, "tallies", _TALLY_COLUMNS)
    return (
        sa.update(workflows)
        .where(_counts(tally))
        .values(
            consecutive_failures=sa.case(
                (tally.c.reset > 0, tally.c.fails), else_=workflows.c.consecutive_failures + tally.c.fails
            )
        )
        .returning(
            workflows.c.id,
            workflows.c.status,
            workflows.c.consecutive_failures,
            workflows.c.max_consecutive_job_failures_allowed.label("allowed"),
        )
    )


def count_failures(conn: Connection, ended: Sequence[Row[Any]]) -> list[tuple[UUID, int]]:
    """COMPLETED·succeeded sets the counter to 0, FAILED adds 1; skipped, canceled and children leave it.

    ``ended`` is in the order in which the jobs ended. Returns the workflows that have reached their threshold, with
    their counts: terminating them is the caller's.
    """
    tallies: dict[tuple[UUID, int], _Tally] = {}
    for row in ended:
        if row.workflow_id is None or row.parent_id is not None:
            continue
        tally = tallies.setdefault((row.workflow_id, row.generation), _Tally(row.workflow_id, row.generation))
        if row.reason == Reason.SUCCEEDED:
            tally.reset, tally.fails = 1, 0
        elif row.status == Status.FAILED:
            tally.fails += 1
    rows = [asdict(tally) for key, tally in sorted(tallies.items()) if tally.reset or tally.fails]
    if not rows:
        return []
    dialect, parameters = conn.dialect.name, {"tallies": rows_json(rows)}
    if not conn.execute(_lock_counted(dialect), parameters).all():
        return []
    return [
        (row.id, row.consecutive_failures)
        for row in conn.execute(_count(dialect), parameters).all()
        if row.consecutive_failures >= row.allowed and row.status != "TERMINATED"
    ]
