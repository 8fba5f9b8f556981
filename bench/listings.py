"""Pages and totals of jobs by each filter, at several sizes of the table: they should cost the same."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from bench.figures import percentile
from bench.stack import Servers
from jobq.client import JobQ
from jobq.settings import Settings
from jobq.states import Reason, Status, Trigger
from jobq.store import migrations
from tests.crowd import PARENT, TENANT, fill

TRIES = 15


def filters() -> dict[str, dict[str, Any]]:
    """One of each; most lead to a few jobs among all."""
    hour = datetime.now(UTC) - timedelta(minutes=40)
    failed = frozenset({Status.FAILED})
    return {
        "nothing": {}, "status": {"statuses": failed}, "reason": {"reasons": frozenset({Reason.TIMED_OUT})},
        "kind": {"kinds": frozenset({"SYNC"})}, "queue": {"queues": frozenset({"rare"})},
        "trigger": {"trigger": Trigger.MANUAL}, "workflow": {"workflow_id": UUID(int=3)},
        "status of a workflow": {"workflow_id": UUID(int=3), "statuses": failed},
        "status of a parent": {"parent_id": PARENT, "statuses": failed}, "domain": {"domain": "orders"},
        "created": {"created_from": hour, "created_until": hour + timedelta(minutes=1)},
        "finished": {"finished_from": hour, "finished_until": hour + timedelta(minutes=1)},
        "scheduled": {"scheduled_from": hour}, "common text in name": {"name_contains": "job"},
        "rare text in name": {"name_contains": "needle"},
    }  # fmt: skip


def measure(where: Servers, *, sizes: list[int]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for size in sizes:
        name = where.postgres.create()
        with JobQ(settings=Settings(database_url=where.postgres.url(name), tenant=TENANT)) as jobq:
            migrations.upgrade(jobq.database)
            fill(where.postgres.url(name), size)
            found[f"{size:,} jobs"] = {
                each: {"page_ms": timed(lambda: jobq.list(**only)), "total_ms": timed(lambda: jobq.count(**only))}  # noqa: B023
                for each, only in filters().items()
            }
        where.postgres.drop(name)
    return found


def timed(call: Callable[[], object]) -> dict[str, float]:
    """Milliseconds: median, and the slowest but for the first two, which prepare what is used again."""
    took = []
    for _ in range(TRIES):
        began = time.perf_counter()
        call()
        took.append((time.perf_counter() - began) * 1000)
    return {"p50": round(percentile(took[2:], 50), 1), "max": round(max(took[2:]), 1)}
