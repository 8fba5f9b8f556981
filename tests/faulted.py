"""One run with a failpoint: a scheduler and a worker, one call of one of them that fails, and the ledger afterwards.

Run as a module it is a Python that has loaded everything. It forks one process for each socket that it was given; each of
them takes requests, one a line, makes the run that is asked for, and answers with what is wrong about it. The run's
scheduler and worker are forks in turn: processes of their own, for a thirtieth of the time that starting two costs.
"""

import ctypes
import gc
import json
import os
import shutil
import signal
import socket
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import alembic.command
import alembic.migration  # noqa: F401
import psycopg  # noqa: F401
import redis
import sqlalchemy as sa

import scheduler.fanin
import workers.container.executor
import workers.service
from jobq import JobQ, Settings
from tests import failpoints
from tests.failpoints import KILL, Fault
from tests.mixes import MIXES, Mix
from tests.services import wait_until
from tests.sweep import ROLES, Request, Result

_WARM = (
    "alembic.command alembic.migration billiard.pool celery.app.amqp celery.app.control celery.app.events celery.app.log "
    "celery.backends.base celery.concurrency.thread celery.events.receiver celery.fixups.django celery.worker.autoscale "
    "celery.worker.components celery.worker.consumer.delayed_delivery celery.worker.control celery.worker.loops "
    "celery.worker.strategy encodings.unicode_escape getpass jobq.cli jobq.outbound.client "
    "jobq.store.migrations kombu.transport.redis psycopg rich.console rich.table rich.text rich.traceback "
    "scheduler.service sqlalchemy.dialects.postgresql.psycopg tests.kinds typer._adapters typer._click.decorators "
    "workers.app workers.connectors.http workers.direct workers.heartbeat workers.pool workers.preview "
    "workers.replication workers.sync _strptime"
)
"""What schedulers and workers load at their start: loaded before they fork, it costs once."""
_PATIENCE = 120.0
"""Seconds. A run takes three; on a machine that does ten things at once, many times as long."""
_ROUNDS = 4
"""So often is the mix repeated until the call that is to fail has come."""
_PR_SET_PDEATHSIG = 1


# --- the processes ---------------------------------------------------------------------------------------------------


class Role:
    """A scheduler or a worker, which its supervisor starts again when it dies."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str], folder: Path) -> None:
        self.name, self._command, self._environment, self._folder = name, command, environment, folder
        self._starts = 0
        self.pid = 0

    @property
    def report(self) -> Path:
        """Of the process that was started last."""
        return self._folder / f"{self.name}-{self._starts}.json"

    @property
    def is_up(self) -> bool:
        """Has it begun to work?"""
        return self.report.with_suffix(".up").exists()

    def start(self, fault: Fault | None) -> None:
        """Fork."""
        self._starts += 1
        self.pid = os.fork()
        if not self.pid:
            self._become(fault)

    def _become(self, fault: Fault | None) -> None:
        code = 70
        try:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            os.setsid()
            log = os.open(self._folder / f"{self.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for number in (1, 2):
                os.dup2(log, number)
            os.environ.update(self._environment)
            _hurry()
            code = failpoints.run(self._command, self.report, fault)
        except BaseException:  # noqa: BLE001 - whatever it is, it goes to the log
            traceback.print_exc()
        finally:
            with suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def died(self) -> int | None:
        """How the process ended; None: it lives."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None

    def end(self) -> int:
        """Tell it to end, and wait for that."""
        self.report.with_suffix(".ending").touch()
        os.kill(self.pid, signal.SIGTERM)
        return wait_until(lambda: ended if (ended := self.died()) is None else (ended,), _PATIENCE, what=self.name)[0]

    def kill(self) -> None:
        """It must be gone when this returns."""
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


def _hurry() -> None:
    """What happens every half minute happens every half second."""
    scheduler.fanin._LOOK_FOR_OVERDUE = 0.5
    workers.service._SWEEP_EVERY = 0.5
    workers.container.executor.FIND_HOST_EVERY = 0.5


# --- a run -----------------------------------------------------------------------------------------------------------


class Run:
    """One run, from an empty database to the ledger."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.folder = Path(request.folder)
        self.mix_class: type[Mix] = MIXES[request.mix]
        values: dict[str, Any] = {
            "database_url": request.database_url, "broker_url": request.broker_url, "env_id": self.folder.name,
            "plugins": ["tests.kinds:NapExecutor"], "secret_key": "a key for tests, long enough",
            "docker_host": request.docker_host or f"unix://{self.folder}/none", "lease": 30, "renew_every": 0.25,
            "drain_timeout": 5, **self.mix_class.settings,
        }  # fmt: skip
        self.jobq = JobQ(settings=Settings(**values))
        environment = {"JOBQ_CONFIG": str(self.folder / "jobq.toml")} | {
            f"JOBQ_{name.upper()}": value if isinstance(value, str) else json.dumps(value)
            for name, value in values.items()
        }
        (self.folder / "jobq.toml").touch()
        commands = {"scheduler": ["scheduler"], "worker": ["worker", "-Q", self.mix_class.queues]}
        self.roles = {name: Role(name, commands[name], environment, self.folder) for name in ROLES}
        self.broker = redis.Redis.from_url(request.broker_url)
        self.result = Result()
        self.mix = self.mix_class(self.jobq, self.folder, request.crm)

    def go(self) -> Result:
        """Make the run."""
        began = time.monotonic()
        try:
            self.broker.flushdb()
            self.mix.prepare()
            for name in ROLES:
                self._start(name, self.request.faults.get(name))
            self._until_all_has_ended()
            self._end()
            self.result.complaints += ledger(self)
        except Exception as error:  # noqa: BLE001 - that is what is wrong with the run
            self.result.complaints.append(f"{type(error).__name__}: {error}; {self._state()}")
        finally:
            for role in self.roles.values():
                role.kill()
            self.jobq.close()
            self.broker.close()
        self.result.seconds = time.monotonic() - began
        return self.result

    def _start(self, name: str, fault: Fault | None) -> None:
        self.jobq.close()  # a fork shares what is open
        self.broker.close()
        self.roles[name].start(fault)

    def _is_back(self, name: str) -> bool:
        """Does it run, and has it seen that its predecessor is gone?"""
        live = self.ask("SELECT name FROM jobq_workers WHERE dead_at IS NULL")
        pids = [row.name.rpartition(":")[2] for row in live]
        return self.roles[name].is_up and (name != "worker" or pids == [str(self.roles[name].pid)])

    def _missed(self, *, early: bool = False) -> list[str]:
        """Faults that have not happened yet; ``early``: those that come before the processes are told to end."""
        return [
            role for role, fault in self.request.faults.items()
            if not (self.folder / f"{role}-1.fired").exists() and not (early and fault.late)
        ]  # fmt: skip

    def _until_all_has_ended(self) -> None:
        """Round after round, until the fault has happened and no job is left."""
        for number in range(_ROUNDS):
            self.mix.enqueue(number)
            self._wait(lambda: not self.unfinished())
            if not self._missed(early=True):
                return

    def _wait(self, done: Callable[[], bool]) -> None:
        def look() -> bool:
            self._supervise()
            self.mix.act()
            return done()

        wait_until(look, _PATIENCE, interval=0.05, what="all jobs to end")

    def _supervise(self) -> None:
        for name, role in self.roles.items():
            if (code := role.died()) is not None:
                self._note_death(name, code)
                self._start(name, None)

    def _note_death(self, name: str, code: int) -> None:
        self.result.deaths.append(f"{name}: {code}")
        fault = self.request.faults.get(name)
        if fault is None or fault.how != KILL or code != -signal.SIGKILL:
            self.result.complaints.append(f"the {name} ended by itself: {code}")

    def unfinished(self) -> bool:
        """Is there a job, or a slot of a schedule, that has not ended?"""
        return bool(
            self.ask("SELECT 1 FROM jobq_jobs WHERE finished_at IS NULL")
            or len(self.ask("SELECT 1 FROM jobq_jobs WHERE slot_at IS NOT NULL")) < len(self.mix.workflows)
        )

    def _end(self) -> None:
        """First the scheduler, then the worker, which takes what is still in the broker."""
        for name, role in self.roles.items():
            if name == "worker":
                with suppress(TimeoutError):  # the ledger tells
                    wait_until(lambda: not self.messages(), 10, what="the worker to empty the broker")
            # It may have been started again just now.
            wait_until(lambda name=name: self._is_back(name), _PATIENCE, what=f"the {name} to be up")
            if code := role.end():
                self._note_death(name, code)
                self._start(name, None)
                wait_until(lambda name=name: self._is_back(name), _PATIENCE, what=f"the {name} to be back")
                if code := role.end():
                    self.result.complaints.append(f"the {name} ended with {code}")
            told = json.loads(role.report.read_text())
            if told["held"]:
                self.result.complaints.append(f"the {name} still held {told['held']}")
            self.result.reports[name] = told
        self.result.missed = self._missed()

    def _state(self) -> str:
        """Where a run stands that does not end."""
        with suppress(Exception):
            left = [job for job in self.jobq.list(limit=200).items if not job.finished]
            why = [f"{job.kind} {job.id} {job.status}·{job.reason}: {self.jobq.why(job.id)}" for job in left]
            return "\n".join([*why, *(file.read_text()[-3000:] for file in self.folder.glob("*.log"))])
        return "the database cannot be asked"

    def messages(self) -> dict[str, int]:
        """What lies in the broker. A worker that is killed may leave a hint between fetched and acknowledged."""
        keys = [key.decode() for key in self.broker.keys("*")]
        sizes = {"list": self.broker.llen, "hash": self.broker.hlen, "zset": self.broker.zcard}
        kinds = {key: self.broker.type(key).decode() for key in keys if not key.startswith("_kombu")}
        limbo = {"unacked", "unacked_index"} if any("worker" in death for death in self.result.deaths) else set()
        return {key: size(key) for key, kind in kinds.items() if (size := sizes.get(kind)) and key not in limbo}

    def ask(self, sql: str) -> list[Any]:
        """Rows of a query over jobq's own tables."""
        with self.jobq.database.read() as conn:
            return list(conn.execute(sa.text(sql)))


# --- the ledger ------------------------------------------------------------------------------------------------------


def ledger(run: Run) -> Iterator[str]:
    """Everything that is wrong after a run; nothing, if the promises were kept."""
    jobs = {row.id: row for row in run.jobq.list(limit=200).items}
    for job_id, ends in run.mix.expected.items():
        job = jobs.get(job_id)
        if job is None or f"{job.status}·{job.reason}" not in ends:
            found = job and f"{job.status}·{job.reason} ({job.message})"
            yield f"{job and job.kind} {job_id} is {found}, not {ends}: {job and run.jobq.attempts(job_id)}"
    run.result.ends = dict(Counter(f"{job.kind} {job.status}·{job.reason}" for job in jobs.values()))
    yield from _attempts(run, jobs)
    yield from _rows(run)
    yield from run.mix.complaints()
    if left := run.messages():
        yield f"the broker still holds {left}"


def _attempts(run: Run, jobs: dict[Any, Any]) -> Iterator[str]:
    """As many as were counted, each once, and nothing after the one that completed; each executed at most once."""
    for job_id, job in jobs.items():
        attempts = run.jobq.attempts(job_id)
        if [each.attempt for each in attempts] != list(range(1, job.attempt + 1)):
            yield f"{job.kind} {job_id} is at attempt {job.attempt}, recorded are {attempts}"
        if any(each.outcome == "COMPLETED" for each in attempts[:-1]):
            yield f"{job.kind} {job_id} went on after it had completed: {attempts}"
        if job.failures != sum(each.charged for each in attempts):
            yield f"{job.kind} {job_id} counts {job.failures} failures: {attempts}"
    trace = run.folder / "trace"
    executed = Counter(trace.read_text().splitlines()) if trace.exists() else Counter[str]()
    if twice := {line: count for line, count in executed.items() if count > 1}:
        yield f"executed more than once (job, attempt): {twice}"


_NOTHING = {
    "a job is held": "SELECT id FROM jobq_jobs WHERE worker_id IS NOT NULL OR next_send_at IS NOT NULL",
    "a job waits for an ended one": "SELECT * FROM jobq_after",
}


def _rows(run: Run) -> Iterator[str]:
    for what, query in _NOTHING.items():
        if rows := run.ask(query):
            yield f"{what}: {rows}"
    if not run.request.is_unsigned and (rows := run.ask("SELECT name FROM jobq_workers WHERE dead_at IS NULL")):
        yield f"a worker did not sign off: {rows}"


# --- the process that runs -------------------------------------------------------------------------------------------


def serve(requests: socket.socket) -> None:
    """Make one run after another, until nobody asks for one."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with requests.makefile("rw") as lines:
        for line in lines:
            request = Request.read(line)
            shutil.rmtree(request.folder, ignore_errors=True)
            Path(request.folder).mkdir(parents=True)
            result = Run(request).go()
            print(json.dumps(asdict(result)), file=lines, flush=True)


if __name__ == "__main__":
    for module in _WARM.split():
        import_module(module)
    gc.freeze()  # or each collection in a fork would copy every page
    for number in map(int, sys.argv[1:]):
        if not os.fork():
            with socket.socket(fileno=number) as mine:
                serve(mine)
            os._exit(0)
    with suppress(ChildProcessError):
        while True:
            os.wait()
