"""One scheduler with very many active workflows: is every slot's job made in time?"""

from __future__ import annotations

import time
from typing import Any

from bench.lateness import fill, lateness
from bench.stack import Servers, Stack


def measure(where: Servers, *, workflows: int, interval: float, seconds: float) -> dict[str, Any]:
    with Stack(where) as stack:
        fill(stack.client(), 1, interval)
        copy(stack, workflows - 1, interval)
        first = time.time() + interval  # by then each workflow has had a slot of its own
        time.sleep(interval + seconds + 3.0)
        found = lateness(stack, first, first + seconds)
    late = found["until_the_row_ms"]["max"]
    return {"workflows": workflows, "interval_s": interval, **found, "every_slot_within_1_s": late < 1000}


def copy(stack: Stack, count: int, interval: float) -> None:
    """Copies of the one workflow, their slots spread over the interval: creating each as users do takes minutes."""
    own = {
        "id": "gen_random_uuid()", "name": "'copy-' || n",
        "anchor_at": f"anchor_at + n * {interval} / {count} * interval '1 second'",
        "next_fire_at": f"next_fire_at + n * {interval} / {count} * interval '1 second'",
    }  # fmt: skip
    names = [name for (name,) in stack.query(
        "SELECT column_name FROM information_schema.columns WHERE table_name = 'jobq_workflows'"
    )]  # fmt: skip
    values = ", ".join(own.get(name, f'"{name}"') for name in names)
    columns = ", ".join(f'"{name}"' for name in names)
    stack.query(
        f"INSERT INTO jobq_workflows ({columns}) SELECT {values} FROM jobq_workflows, generate_series(1, {count}) n RETURNING 1"
    )
