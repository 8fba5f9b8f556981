"""Jobs per second, the whole way: enqueue, promote, publish, claim, execute, record.

jobq's time runs from the first row to the last outcome, enqueuing included. Celery is measured in two ways: the same
(whole way), and its workers alone, with all messages published before (drain), which favours it.
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
    rates: dict[str, list[float]] = {}
    costs: dict[str, list[float]] = {}
    with together(parts) as running:
        for part in running.values():
            part.drain(peer_jobs // 4 if isinstance(part, Peer) else jobs // 10)  # warm up
        for _ in range(rounds):
            for name, part in running.items():
                if isinstance(part, Peer):
                    for way in (part.whole_way, part.drain):
                        label = f"{name}, {way.__name__.replace('_', ' ')}"
                        rates.setdefault(label, []).append(peer_jobs / way(peer_jobs)["seconds"])
                else:
                    before = part.cpu_seconds()
                    rates.setdefault(name, []).append(jobs / part.drain(jobs)["seconds"])
                    costs.setdefault(name, []).append((part.cpu_seconds() - before) / jobs * 1e6)
    ours = statistics.median(rates["jobq"])
    return {
        "jobs": jobs,
        "jobs_per_second": {name: summary(values, 0) for name, values in rates.items()},
        "cpu_us_per_job of scheduler and workers": {name: summary(values, 0) for name, values in costs.items()},
        "jobq is so many times (medians)": {
            name: ratio(ours, statistics.median(values)) for name, values in rates.items() if name != "jobq"
        },
    }
