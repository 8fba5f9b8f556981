"""The processes of a measurement: ``python -m bench.process upgrade | scheduler | worker QUEUES | drain JOBS | sender``.

Each runs in the checkout that PYTHONPATH names, so that two checkouts can be measured in one run.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from uuid import UUID

import sqlalchemy as sa

from jobq.client import JobQ
from jobq.settings import Settings
from jobq.store import migrations
from jobq.store.database import Database

PLUGIN = "bench.noop:NoopExecutor"


def settings() -> Settings:
    return Settings(plugins=[PLUGIN], log_level=os.environ.get("JOBQ_LOG_LEVEL", "WARNING"))


def upgrade() -> None:
    database = Database(settings().database_url)
    migrations.upgrade(database)
    database.close()


def scheduler() -> None:
    from scheduler.service import Scheduler

    running = Scheduler(settings())
    running.start()
    told = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told.set())
    told.wait()
    running.stop()


def worker(queues: str) -> int:
    from workers.app import run_worker
    from workers.slots import parse_queues

    return run_worker(settings(), parse_queues(queues))


def drain(jobs: int) -> None:
    """Enqueue so many no-ops while the workers work, and print the seconds until the last one has ended."""
    with JobQ(settings=settings()) as jobq:
        requests = [{"kind": "NOOP", "spec": {}, "name": "bench"} for _ in range(jobs)]
        began = time.time()
        ids = jobq.enqueue_many(requests)
        enqueued = time.time()
        while not jobq.get(ids[-1]).finished:
            time.sleep(0.02)
        while (ended := last_end(jobq.database, ids[0], jobs)) is None:
            time.sleep(0.1)
    print(json.dumps({"enqueue_s": enqueued - began, "seconds": ended - began}), flush=True)


def sender() -> None:
    """For each line that comes in: enqueue one job, wait for its end, and print the seconds until it ran."""
    with JobQ(settings=settings()) as jobq:
        for _ in sys.stdin:
            job = jobq.enqueue({"sent_at": time.time()}, kind="NOOP", name="bench")
            time.sleep(0.025)  # asking meanwhile would take the processor from what is measured
            jobq.wait(job.id, 60)
            print(jobq.attempts(job.id)[0].result["waited"], flush=True)


def last_end(database: Database, first: UUID, jobs: int) -> float | None:
    """When the last of so many jobs ended, by the database's clock; None: some have not."""
    statement = sa.text(
        "SELECT count(*), extract(epoch FROM max(finished_at)) FROM jobq_jobs WHERE id >= :first AND status = 'COMPLETED'"
    )
    with database.read() as conn:
        ended, last = conn.execute(statement, {"first": first}).one()
    return float(last) if ended >= jobs else None


def main(command: str, *arguments: str) -> int:
    logging.basicConfig(level=os.environ.get("JOBQ_LOG_LEVEL", "WARNING"))
    if command == "upgrade":
        upgrade()
    elif command == "scheduler":
        scheduler()
    elif command == "worker":
        return worker(arguments[0])
    elif command == "drain":
        drain(int(arguments[0]))
    elif command == "sender":
        sender()
    else:
        raise SystemExit(__doc__)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
