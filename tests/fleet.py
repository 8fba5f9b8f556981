"""A fleet of real processes: schedulers and workers as an operator starts them, to be killed by tests."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self
from uuid import UUID

import sqlalchemy as sa

from jobq import JobQ, Settings
from tests.services import child, wait_until

ROOT = Path(__file__).parent.parent
JOBQ = Path(sys.executable).parent / "jobq"


class Fleet:
    """Starts `jobq scheduler` and `jobq worker` processes and ends those it started, by their ids.

    ``acks`` ("late" or "early") makes Celery in the workers acknowledge so, whatever jobq's own choice is.
    """

    def __init__(
        self, folder: Path, database_url: str, broker_url: str, *, acks: str | None = None, **settings: Any
    ) -> None:
        self.folder = folder
        self.acks = acks
        values = {
            "database_url": database_url,
            "broker_url": broker_url,
            "plugins": ["tests.kinds:NapExecutor"],
            "env_id": folder.name,
            **settings,
        }
        (folder / "jobq.toml").touch()  # whatever the user's own file says does not count here
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("JOBQ_")},
            "PYTHONPATH": str(ROOT),
            "JOBQ_CONFIG": str(folder / "jobq.toml"),
            **{
                f"JOBQ_{name.upper()}": value if isinstance(value, str) else json.dumps(value)
                for name, value in values.items()
            },
        }
        self.jobq = JobQ(settings=Settings(**values))
        self.processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
        for process in self.processes:
            process.wait()
        self.jobq.close()

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """A process of the fleet, which dies with this one; what it prints goes to a file."""
        with (self.folder / f"{len(self.processes)}.log").open("wb") as log:
            process = child(command, env=self.environment, stdout=log, stderr=log)
        self.processes.append(process)
        return process

    def scheduler(self, *place: str) -> subprocess.Popen[bytes]:
        """Another scheduler; ``place``: the beginning of a command that puts it on another machine."""
        return self.start(*place, str(JOBQ), "scheduler")

    def worker_command(self, queues: str) -> list[str]:
        """What starts a worker."""
        program = [str(JOBQ)] if self.acks is None else [sys.executable, "-m", "tests.acks", self.acks]
        return [*program, "worker", "-Q", queues]

    def worker(self, queues: str = "nap:50", place: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        """Another worker, once it is registered."""
        before = {worker.id for worker in self.jobq.workers.list()}
        process = self.start(*place, *self.worker_command(queues))
        wait_until(
            lambda: {worker.id for worker in self.jobq.workers.list()} - before or process.poll() is not None,
            timeout=60,
            what="the worker to register",
        )
        assert process.poll() is None, self.logs()
        return process

    @staticmethod
    def freeze(process: subprocess.Popen[bytes]) -> None:
        """It stops, and nobody is told."""
        process.send_signal(signal.SIGSTOP)

    @staticmethod
    def thaw(process: subprocess.Popen[bytes]) -> None:
        process.send_signal(signal.SIGCONT)

    def logs(self) -> str:
        """What all processes printed: for the message of a failed assertion."""
        return "\n".join(f"--- {file.name}\n{file.read_text()[-4000:]}" for file in sorted(self.folder.glob("*.log")))

    # --- the ledger --------------------------------------------------------------------------------------------

    def ask(self, sql: str, **parameters: Any) -> list[Any]:
        """Rows of a query over jobq's own tables."""
        with self.jobq.database.read() as conn:
            return list(conn.execute(sa.text(sql), parameters))

    def execute(self, sql: str, **parameters: Any) -> None:
        """Plain SQL, as somebody at the database's console would type it."""
        with self.jobq.database.begin() as conn:
            conn.execute(sa.text(sql), parameters)

    def unfinished(self) -> int:
        """How many jobs have not ended."""
        return int(self.ask("SELECT count(*) FROM jobq_jobs WHERE finished_at IS NULL")[0][0])

    def wait_until_done(self, timeout: float = 60) -> None:
        """Until every job has ended."""
        try:
            wait_until(lambda: self.unfinished() == 0, timeout=timeout, interval=0.1, what="all jobs to end")
        except BaseException:
            print(self.ask("SELECT status, reason, count(*) FROM jobq_jobs GROUP BY 1, 2"), self.logs())
            raise

    def ends(self) -> Counter[str]:
        """How the jobs ended: STATUS·reason → count."""
        return Counter(
            {f"{status}·{reason}": count for status, reason, count in self.ask(
                "SELECT status, reason, count(*) FROM jobq_jobs GROUP BY status, reason"
            )}
        )  # fmt: skip

    def check_ledger(self, accepted: set[Any]) -> None:
        """Accepted = terminal, each attempt is recorded once, and nobody holds anything."""
        # SQLite keeps ids as text.
        terminal = {UUID(str(row[0])) for row in self.ask("SELECT id FROM jobq_jobs WHERE finished_at IS NOT NULL")}
        assert accepted <= terminal
        assert self.unfinished() == 0
        wrong = self.ask(
            "SELECT j.id, j.attempt, count(a.attempt) FROM jobq_jobs j LEFT JOIN jobq_attempts a ON a.job_id = j.id "
            "GROUP BY j.id, j.attempt HAVING count(a.attempt) <> j.attempt"
        )
        assert not wrong, f"attempts recorded differ from attempts counted: {wrong[:5]}"
        assert not self.ask("SELECT id FROM jobq_jobs WHERE worker_id IS NOT NULL OR next_send_at IS NOT NULL")
