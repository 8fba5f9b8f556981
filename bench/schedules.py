"""One scheduler with very many active workflows: is every slot's job made in time?"""

from __future__ import annotations

import time
from typing import Any

from bench.lateness import fill, lateness
from bench.stack import Servers, Stack


def measure(where: Servers, *, workflows: int, interval: float, seconds: float) -> dict[str, Any]:
    with Stack(where) as stack:
        began = time.time()
        fill(stack.client(), workflows, interval)
        filled = time.time() - began
        first = time.time() + interval  # by then each workflow has had a slot of its own
        time.sleep(interval + seconds + 3.0)
        found = lateness(stack, first, first + seconds)
    late = found["until_the_row_ms"]["max"]
    return {"workflows": workflows, "interval_s": interval, "created_per_second": round(workflows / filled), **found,
            "every_slot_within_1_s": late < 1000}  # fmt: skip
