"""Jobs per second, the whole way: enqueue, promote, publish, claim, execute, record.

jobq's time runs from the first row to the last outcome, enqueuing included. Celery's runs without publishing, which
favours it: its workers stand still until all messages are there.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from bench.figures import ratio, summary
from bench.stack import Peer, Servers, Stack, together


def measure(where: Servers, *, jobs: int, peer_jobs: int, rounds: int, against: Path | None = None) -> dict[str, Any]:
    parts: dict[str, Any] = {"jobq": Stack(where, broker_db=0)}
    if against is not None:
        parts["jobq of the other checkout"] = Stack(where, tree=against, broker_db=1)
    if peer_jobs:
        parts |= {
            "celery prefork 2": Peer(where, "prefork", broker_db=2),
            "celery threads, 2 processes": Peer(where, "threads", broker_db=3),
        }
    rates: dict[str, list[float]] = {name: [] for name in parts}
    cpu: dict[str, list[float]] = {name: [] for name, part in parts.items() if isinstance(part, Stack)}
    with together(parts) as running:
        for part in running.values():
            part.drain(peer_jobs // 4 if isinstance(part, Peer) else jobs // 10)  # warm up
        for _ in range(rounds):
            for name, part in running.items():
                count = peer_jobs if isinstance(part, Peer) else jobs
                before = part.cpu_seconds() if isinstance(part, Stack) else 0.0
                rates[name].append(count / part.drain(count)["seconds"])
                if isinstance(part, Stack):
                    cpu[name].append((part.cpu_seconds() - before) / count * 1e6)
    found: dict[str, Any] = {
        "jobs": jobs,
        "jobs_per_second": {name: summary(values, 0) for name, values in rates.items()},
        "cpu_us_per_job, scheduler and workers": {name: summary(values, 0) for name, values in cpu.items()},
        "times the peer (medians)": {
            name: ratio(statistics.median(rates["jobq"]), statistics.median(values))
            for name, values in rates.items() if name != "jobq"
        },
    }  # fmt: skip
    return found
