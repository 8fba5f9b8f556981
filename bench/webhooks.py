"""Deliveries per second: from events that wait, through one scheduler, to a receiver on this machine.

    python -m bench.webhooks [--events 10000] [--rounds 3]

Prints JSON: deliveries per second and microseconds of the scheduler's CPU per delivery, each round and the median, and
what it costs to enqueue jobs of a tenant with a webhook beside those of one without. The receiver is another process,
and answers at once. Machines drift: compare within one run only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any

from bench.figures import distribution, ratio, summary
from bench.heartbeats import SERVER
from bench.stack import Servers, Stack, servers
from jobq.client import JobQ
from jobq.settings import Settings
from jobq.store import migrations
from jobq.store.database import Database
from scheduler.deliver import Deliverer

SETTINGS: dict[str, Any] = {
    "secret_key": "thirty-two bytes of which nobody knows", "policy": {"probe_networks": ["127.0.0.0/8"]},
    "plugins": ["bench.noop:NoopExecutor"],
}  # fmt: skip
REQUEST = {"kind": "NOOP", "spec": {}, "name": "bench"}


def receiver() -> subprocess.Popen[str]:
    """A process that answers 200 to whatever comes; its port is the first line that it prints."""
    return subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)


class Sender:
    """A scheduler's deliveries without its other loops, on a database of its own."""

    def __init__(self, where: Servers, port: int) -> None:
        settings = Settings(database_url=where.postgres.url(where.postgres.create()), **SETTINGS)
        database = Database(settings.database_url)
        migrations.upgrade(database)
        self._jobq = JobQ(settings=settings, actor="bench")
        self._plain = JobQ(settings=settings, tenant="without")
        self._deliverer = Deliverer(database, settings)
        self._hook = self._jobq.webhooks.create(url=f"http://127.0.0.1:{port}/", events=["job.created"]).endpoint

    def close(self) -> None:
        self._deliverer.stop()
        self._jobq.close()
        self._plain.close()

    def enqueue(self, jobs: int) -> tuple[float, float]:
        """Seconds to enqueue so many jobs without and with a webhook that listens to it."""
        found = []
        for jobq in (self._plain, self._jobq):
            began = time.perf_counter()
            jobq.enqueue_many([REQUEST] * jobs)
            found.append(time.perf_counter() - began)
        return found[0], found[1]

    def drain(self) -> tuple[float, float]:
        """Deliver all that waits: seconds, and seconds of this process' CPU, of which all is the sender's."""
        began, cpu = time.perf_counter(), time.process_time()
        while self._jobq.webhooks.deliveries(self._hook.id, state="PENDING", limit=1).items:
            ends = time.perf_counter() + 0.5
            while time.perf_counter() < ends:
                time.sleep(min(self._deliverer.tick(), 0.002))
        return time.perf_counter() - began, time.process_time() - cpu


def measure(where: Servers, *, events: int, rounds: int, latencies: int = 0) -> dict[str, Any]:
    """Deliveries per second, and what an event costs where it is written."""
    rates, costs, plain, hooked = [], [], [], []
    with receiver() as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            sender = Sender(where, port)
            sender.enqueue(100)
            sender.drain()
            for _ in range(rounds):
                without, with_hook = sender.enqueue(events)
                plain.append(events / without)
                hooked.append(events / with_hook)
                seconds, cpu = sender.drain()
                rates.append(events / seconds)
                costs.append(cpu / events * 1e6)
            sender.close()
            waited = _latencies(where, port, latencies) if latencies else []
        finally:
            process.kill()
    found: dict[str, Any] = {
        "events": events,
        "deliveries_per_second": summary(rates, 0),
        "cpu_us_per_delivery of the sender": summary(costs, 0),
        "enqueued_per_second without a webhook": summary(plain, 0),
        "enqueued_per_second, each an event": summary(hooked, 0),
        "with events enqueuing takes so many times": ratio(sum(1 / rate for rate in hooked), sum(1 / r for r in plain)),
    }
    if waited:
        found["from the end of a job to its delivery, ms"] = distribution(waited)
    return found


def _latencies(where: Servers, port: int, jobs: int) -> list[float]:
    """Milliseconds from the end of a job to the record of its delivery, one job at a time, through a real scheduler."""
    waited = []
    environment = {f"JOBQ_{name.upper()}": _text(value) for name, value in SETTINGS.items()}
    with Stack(where, workers=1, broker_db=4, environment=environment) as stack:
        settings = Settings(database_url=stack.database_url, **SETTINGS)
        with JobQ(settings=settings) as jobq:
            hook = jobq.webhooks.create(url=f"http://127.0.0.1:{port}/", events=["job.completed"]).endpoint
            for _ in range(jobs):
                job = jobq.wait(jobq.enqueue({}, kind="NOOP", name="bench").id, 60)
                while not (done := jobq.webhooks.deliveries(hook.id, job_id=job.id, state="SUCCEEDED").items):
                    time.sleep(0.01)
                assert done[0].ended_at is not None
                assert job.finished_at is not None
                waited.append((done[0].ended_at - job.finished_at).total_seconds() * 1000)
    return waited


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--events", type=int, default=10_000, help="of one repetition")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--latencies", type=int, default=50, help="jobs whose way to the receiver is timed")
    options = parser.parse_args()
    with servers() as where:
        found = measure(where, events=options.events, rounds=options.rounds, latencies=options.latencies)
    print(json.dumps({"bench": "webhooks", "cpus": os.cpu_count(), **found}, indent=2))


if __name__ == "__main__":
    main()
