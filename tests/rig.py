"""A fleet under load whose broker a test spoils: what is accepted is counted, and who listens is asked."""

import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any, Self
from uuid import UUID

from jobq.broker import CeleryBroker, Hint
from jobq.errors import Unavailable
from jobq.settings import Settings
from jobq.store.jobs import new_id
from tests.fleet import Fleet
from tests.services import wait_until
from tests.tally import Executions

RETRY = {"max_attempts": 100, "initial": 0.1, "maximum": 1, "retry_lost": True}


class Rig:
    """Schedulers and workers of jobs that count their executions, behind ``broker_url``.

    ``direct_url`` leads to the same broker, past whatever is spoiled. Each worker serves a queue of its own beside the
    common one, so that it can be asked alone.
    """

    def __init__(self, folder: Path, database_url: str, broker_url: str, direct_url: str, **settings: Any) -> None:
        settings = {"plugins": ["tests.tally:TallyExecutor"], "drain_timeout": 5, **settings}
        self.fleet = Fleet(folder, database_url, broker_url, **settings)
        self.broker = CeleryBroker(Settings(broker_url=direct_url))
        self.file = folder / "tally"
        self.accepted: set[UUID] = set()
        self.ears: list[str] = []
        self._workers: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.broker.close()
        self.fleet.__exit__(*error)

    def start(self, workers: int = 2, slots: int = 20, schedulers: int = 1) -> None:
        """So many processes, listening."""
        for _ in range(schedulers):
            self.fleet.scheduler()
        for _ in range(workers):
            self.worker(slots)
        self.listen(60)

    def worker(self, slots: int = 20) -> subprocess.Popen[bytes]:
        """Another worker, once it is registered."""
        self.ears.append(f"ear{len(self.ears)}")
        self._workers.append(self.fleet.worker(f"tally:{slots},{self.ears[-1]}:1"))
        return self._workers[-1]

    def start_worker(self, slots: int = 20) -> subprocess.Popen[bytes]:
        """Another worker that nobody waits for and nobody asks."""
        return self.fleet.start(*self.fleet.worker_command(f"tally:{slots}"))

    def load(self, count: int, seconds: float = 0.0) -> list[UUID]:
        """Accept so many jobs of so many seconds."""
        request = {"kind": "TALLY", "spec": {"file": str(self.file), "seconds": seconds}, "retry": RETRY}
        ids = self.fleet.jobq.enqueue_many([request] * count)
        self.accepted |= set(ids)
        return ids

    def workers(self) -> list[subprocess.Popen[bytes]]:
        """Those that were started by ``worker`` and live."""
        return [process for process in self._workers if process.poll() is None]

    def count(self, where: str) -> int:
        """How many jobs are so."""
        return int(self.fleet.ask(f"SELECT count(*) FROM jobq_jobs WHERE {where}")[0][0])

    def ended(self) -> int:
        """How many jobs have ended."""
        return self.count("finished_at IS NOT NULL")

    def running_on(self, worker: subprocess.Popen[bytes]) -> int:
        """How many jobs this worker executes."""
        return self.count(f"worker_id IN (SELECT id FROM jobq_workers WHERE pid = {worker.pid})")

    def now(self) -> datetime:
        """The database's clock."""
        moment: datetime = self.fleet.ask("SELECT now()")[0][0]
        return moment

    def unfinished(self) -> int:
        """How many have not."""
        return self.fleet.unfinished()

    def listen(self, timeout: float) -> None:
        """Until every worker took a hint from the broker: none is deaf."""
        for ear in self.ears:
            wait_until(lambda: self._takes(ear), timeout=timeout, what=f"the worker of {ear} to take a hint")  # noqa: B023

    def _takes(self, queue: str) -> bool:
        """Whether hints at jobs that nobody knows leave the broker: only a consumer takes them.

        There are more than RabbitMQ hands to a connection that says nothing.
        """
        try:
            self.broker.publish([Hint(queue, [new_id()]) for _ in range(10)])
            wait_until(lambda: self.broker.depth(queue) == 0, timeout=2, interval=0.05)
        except (Unavailable, TimeoutError):
            return False
        return True

    def settle(self, timeout: float = 60) -> Executions:
        """Every accepted job has ended, once, by one owner at a time, and the ledger is right."""
        self.fleet.wait_until_done(timeout)
        self.fleet.check_ledger(self.accepted)
        executions = Executions(self.file)
        assert not executions.twice(), "two owners executed one attempt"
        assert not executions.overlaps(), "two attempts of a job ran at once"
        completed = {job for (job,) in self.fleet.ask("SELECT id FROM jobq_jobs WHERE status = 'COMPLETED'")}
        assert completed <= set(executions.ended), "a job is called completed that nobody executed"
        return executions

    def settle_each_once(self, timeout: float = 60) -> None:
        """The same, and nothing was executed twice: hints are no reason to."""
        executions = self.settle(timeout)
        doubled = {job: count for job, count in executions.ended.items() if count != 1}
        assert not doubled, "a job was executed more than once though nobody died"
        assert self.fleet.ends() == {"COMPLETED·succeeded": len(self.accepted)}
