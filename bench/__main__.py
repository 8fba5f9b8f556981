"""Measure, and print JSON. Servers are started for the run and end with it; nothing else on the machine is touched.

Machines drift: compare ratios within one run, never figures of two runs. Every repetition is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import analytics, fanout, latency, lateness, listings, schedules, throughput, web
from bench.stack import Servers, servers

BENCHES = ("throughput", "latency", "lateness", "schedules", "fanout", "web", "listings", "analytics")


def run(name: str, where: Servers, options: argparse.Namespace) -> dict[str, Any]:
    quick, against = options.quick, options.against
    measure: dict[str, Callable[[], dict[str, Any]]] = {
        "throughput": lambda: throughput.measure(
            where, jobs=5_000 if quick else options.jobs, peer_jobs=0 if options.no_peers else 500 if quick else 4_000,
            rounds=2 if quick else options.rounds, against=against,
        ),
        "latency": lambda: latency.measure(where, jobs=20 if quick else 200, against=against),
        "lateness": lambda: lateness.measure(
            where, workflows=200 if quick else 1_000, interval=1.0, slots=5 if quick else 100,
            beat_interval=1.0 if quick else 10.0,
        ),
        "schedules": lambda: schedules.measure(
            where, workflows=1_000 if quick else 100_000, interval=2.0 if quick else 60.0, seconds=4.0 if quick else 120.0,
        ),
        "fanout": lambda: fanout.measure(
            where, children=2_000 if quick else 100_000, peer_tasks=200 if quick else 10_000, rounds=1 if quick else 3,
            sizes=[500] if quick else [1_000, 10_000, 1_000_000],
        ),
        "web": lambda: web.measure(where, seconds=1.0 if quick else 10.0, clients=16, readers=20 if quick else 200),
        "analytics": lambda: analytics.measure(where, jobs=100_000 if quick else 10_000_000, flows=5 if quick else 100),
        "listings": lambda: listings.measure(where, sizes=[10_000] if quick else [10_000, 100_000, 1_000_000]),
    }  # fmt: skip
    return measure[name]()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("bench", nargs="?", choices=[*BENCHES, "all"], default="all")
    parser.add_argument("--quick", action="store_true", help="small numbers: about a minute for all")
    parser.add_argument("--jobs", type=int, default=20_000, help="of one repetition (throughput)")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions (throughput)")
    parser.add_argument("--against", type=Path, help="another checkout of jobq, measured in turn with this one")
    parser.add_argument("--no-peers", action="store_true", help="without Celery (throughput)")
    options = parser.parse_args()
    chosen = BENCHES if options.bench == "all" else (options.bench,)
    found: dict[str, Any] = {"cpus": os.cpu_count(), "python": platform.python_version(), "load": os.getloadavg()}
    with servers() as where:
        for name in chosen:
            found[name] = run(name, where, options)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
