"""How long a single job takes, on an idle system, from before it is sent until its code runs."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

from bench.figures import distribution, percentile, ratio
from bench.peer import WAITED
from bench.stack import Peer, Servers, Stack, together

_LONGEST_PAUSE = 0.12


def measure(where: Servers, *, jobs: int, against: Path | None = None) -> dict[str, Any]:
    parts: dict[str, Any] = {"jobq": Stack(where, broker_db=0)}
    if against is not None:
        parts["jobq of the other checkout"] = Stack(where, tree=against, broker_db=1)
    parts |= {
        "celery prefork 2": Peer(where, "prefork", broker_db=2),
        "celery threads, 2 processes": Peer(where, "threads", broker_db=3),
    }
    waited: dict[str, list[float]] = {name: [] for name in parts}
    with together(parts) as running:
        send = {name: _sender(part) for name, part in running.items()}
        for part in running.values():
            part.drain(200)
        time.sleep(2.0)
        for number in range(jobs + 3):
            for name in running:
                milliseconds = send[name]() * 1000
                if number >= 3:  # the first ones open connections
                    waited[name].append(milliseconds)
                time.sleep(random.uniform(0.03, _LONGEST_PAUSE))  # no beat in common with anybody's polling
    found: dict[str, Any] = {
        "ms": {name: distribution(values) for name, values in waited.items()},
        "times the peer": {
            f"{name}, {label}": ratio(percentile(waited["jobq"], percent), percentile(values, percent))
            for name, values in waited.items() if name != "jobq"
            for label, percent in (("p50", 50.0), ("p99", 99.0))
        },
        "slowest ms": {name: [round(value, 1) for value in sorted(values)[-10:]] for name, values in waited.items()},
    }  # fmt: skip
    return found


def _sender(part: Stack | Peer) -> Any:
    """A function that sends one job and returns the seconds until it ran."""
    if isinstance(part, Stack):
        return part.sender()

    def peer_once() -> float:
        part.app.send_task("bench.peer.waited", args=(time.time(),), queue=part.name.split()[1], ignore_result=True)
        found = part.redis.blpop([WAITED], 60)
        assert found, "the peer did not answer"
        return float(found[1])

    return peer_once
