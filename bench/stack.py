"""Throwaway PostgreSQL and Redis, jobq's processes on them, and the peer's: what is measured, put together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import redis
from celery import group

from bench.peer import make_app
from jobq.client import JobQ
from jobq.settings import Settings
from tests.services import Postgres, Redis, descendants, spawn, wait_until

HERE = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Servers:
    """The database and the broker that everything here shares."""

    postgres: Postgres
    redis: Redis


@contextmanager
def servers() -> Iterator[Servers]:
    """A PostgreSQL that syncs each commit to disk, and a Redis that keeps nothing: as PEERS were measured."""
    os.environ["JOBQ_TEST_FSYNC"] = "on"
    with Postgres() as postgres, Redis() as broker:
        yield Servers(postgres, broker)


class Stack:
    """jobq of one checkout on a database of its own: one scheduler and some worker processes."""

    def __init__(
        self, where: Servers, *, tree: Path = HERE, broker_db: int = 0, workers: int = 2, queues: str = "noop:500",
        path: str = "", environment: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        """``path``: where else the processes find packages; ``environment``: more settings of theirs."""
        self.name = where.postgres.create()
        self.database_url = where.postgres.url(self.name)
        self.environment = {
            "PYTHONPATH": os.pathsep.join(filter(None, [str(tree), path])),
            "JOBQ_DATABASE_URL": self.database_url,
            "JOBQ_BROKER_URL": f"redis://127.0.0.1:{where.redis.port}/{broker_db}",
            **(environment or {}),
        }
        self.log = where.postgres.folder / f"{self.name}.log"
        self._where, self._workers, self._queues = where, workers, queues
        self._processes: list[subprocess.Popen[bytes]] = []
        self._clients: list[JobQ] = []
        self._senders: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Stack:
        self.call("upgrade")
        self._processes = [self._spawn("scheduler")]
        self._processes += [self._spawn("worker", self._queues) for _ in range(self._workers)]
        wait_until(self._registered, 30, what=f"the workers (log: {self.log})")
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            client.close()
        for sender in self._senders:
            sender.communicate(timeout=60)  # the end of its input ends it
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait(60)

    def call(self, *command: str) -> str:
        """Run a command of ``bench.process`` to its end and return what it printed."""
        return subprocess.run(
            [sys.executable, "-m", "bench.process", *command],
            env={**os.environ, **self.environment}, check=True, stdout=subprocess.PIPE, text=True, cwd="/",
        ).stdout  # fmt: skip

    def drain(self, jobs: int) -> dict[str, float]:
        """Enqueue and execute so many jobs: see ``bench.process.drain``."""
        found: dict[str, float] = json.loads(self.call("drain", str(jobs)))
        return found

    def client(self) -> JobQ:
        """A client in this process."""
        made = JobQ(settings=Settings(database_url=self.database_url, plugins=["bench.noop:NoopExecutor"]))
        self._clients.append(made)
        return made

    def sender(self) -> Callable[[], float]:
        """A process of this checkout that enqueues: each call sends one job and returns the seconds until it ran."""
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.process", "sender"], env={**os.environ, **self.environment},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, cwd="/",
        )  # fmt: skip
        self._senders.append(process)
        assert process.stdin is not None
        assert process.stdout is not None
        words, answers = process.stdin, process.stdout

        def once() -> float:
            words.write("\n")
            words.flush()
            return float(answers.readline())

        return once

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.database_url) as connection:
            return connection.execute(statement.encode()).fetchall()

    def cpu_seconds(self) -> float:
        """User and system time of the scheduler and the workers so far."""
        return sum(_cpu_seconds(process.pid) for process in self._processes)

    def worker_pids(self) -> list[int]:
        """The worker processes."""
        return [process.pid for process in self._processes[1:]]

    def _registered(self) -> bool:
        return self.query("SELECT count(*) FROM jobq_workers WHERE dead_at IS NULL")[0][0] >= self._workers

    def _spawn(self, *command: str) -> subprocess.Popen[bytes]:
        return spawn([sys.executable, "-m", "bench.process", *command], env=self.environment, log=self.log)


class Peer:
    """Plain Celery workers: ``prefork`` 2 in one process (the default on two cores) or ``threads`` in two."""

    def __init__(self, where: Servers, pool: str, *, broker_db: int, beat: tuple[int, float] | None = None) -> None:
        self.name = f"celery {pool}"
        self._url = f"redis://127.0.0.1:{where.redis.port}/{broker_db}"
        self._environment = {"PYTHONPATH": str(HERE), "PEER_BROKER_URL": self._url, "PEER_QUEUE": pool}
        if beat is not None:
            self._environment |= {"PEER_BEAT_ENTRIES": str(beat[0]), "PEER_BEAT_SECONDS": str(beat[1])}
        self._pool, self._beat, self._folder = pool, beat, where.redis.folder
        self.redis = redis.Redis.from_url(self._url)
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Peer:
        self.app = make_app(self._url, self._pool)
        count, concurrency = (1, 2) if self._pool == "prefork" else (2, 10)
        command = ["worker", "-P", self._pool, "-c", str(concurrency), "-l", "WARNING"]
        self._processes = [self._spawn([*command, "-n", f"{self._pool}{number}@bench"]) for number in range(count)]
        if self._beat is not None:
            schedule = self._folder / f"beat-{self._pool}"
            self._processes.append(self._spawn(["beat", "-l", "WARNING", "-s", str(schedule)]))
        self.send(count * 20)
        wait_until(self.is_empty, 60, what=f"{self.name} (log: {self._folder}/{self._pool}.log)")
        time.sleep(1.0)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait(60)
        self.redis.close()

    def _spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        start = [sys.executable, "-m", "celery", "-A", "bench.peer", *command]
        return spawn(start, env=self._environment, log=self._folder / f"{self._pool}.log")

    def send(self, tasks: int) -> None:
        """Publish no-ops one by one over one kept connection: the fastest of its documented ways for single tasks."""
        with self.app.producer_pool.acquire(block=True) as producer:
            for _ in range(tasks):
                self.app.send_task("bench.peer.noop", producer=producer, queue=self._pool, ignore_result=True)

    def is_empty(self) -> bool:
        return not self.redis.llen(self._pool) and not self.redis.hlen("unacked")

    def drain(self, tasks: int) -> dict[str, float]:
        """Publish while the workers stand still, then let them go: the seconds that the workers alone take."""
        with self.stopped():
            self.send(tasks)
        released = time.time()
        wait_until(self.is_empty, 300, interval=0.01, what=self.name)
        return {"seconds": time.time() - released}

    def whole_way(self, tasks: int) -> dict[str, float]:
        """Publish while the workers work: the seconds from the first message to the last execution."""
        began = time.time()
        self.send(tasks)
        wait_until(self.is_empty, 300, interval=0.01, what=self.name)
        return {"seconds": time.time() - began}

    def group(self, tasks: int) -> dict[str, float]:
        """Publish a ``celery.group`` while the workers work: the seconds to its last execution."""
        began = time.time()
        signature = self.app.signature("bench.peer.noop", queue=self._pool, ignore_result=True)
        group(signature.clone() for _ in range(tasks)).apply_async()
        wait_until(self.is_empty, 600, interval=0.01, what=self.name)
        return {"seconds": time.time() - began}

    @contextmanager
    def stopped(self) -> Iterator[None]:
        pids = [pid for process in self._processes for pid in descendants(process.pid)]
        _signal(pids, signal.SIGSTOP)
        try:
            yield
        finally:
            _signal(pids, signal.SIGCONT)


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def together(parts: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """All of these at once, each under its name."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(part) for name, part in parts.items()}
