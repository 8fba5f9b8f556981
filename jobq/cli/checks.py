"""The checks of ``jobq doctor``: each looks at one part and says what it found and what to do.

A check yields findings, or raises an error of the tree, which is its finding. What needs the database is skipped
where that cannot be used. Nothing is changed anywhere.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import cached_property, partial
from importlib import import_module
from importlib.metadata import entry_points, version
from statistics import median
from typing import Literal

from jobq.cli.configuration import flat, said_by_file
from jobq.cli.output import ago, count, duration
from jobq.cli.problems import load
from jobq.cli.readiness import PROCESSES
from jobq.cli.service import require_own
from jobq.errors import JobQError
from jobq.operations import Queue, Queues, Workers
from jobq.plugins import executor_class
from jobq.settings import EMBEDDED, Settings, config_file, mask_url
from jobq.store import migrations
from jobq.store.database import Database
from jobq.store.workers import database_now, live_schedulers

State = Literal["ok", "warning", "broken", "skipped"]
_SLOW = 0.1
_SKEW = 2.0
_PATIENCE = 5.0
_SHORTEST_KEY = 16


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found of one part, and what to do about it (empty: nothing)."""

    part: str
    state: State
    text: str
    advice: str = ""


class Examination:
    """One look at an installation."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.usable = True
        """Has nothing spoken against the database so far?"""

    @cached_property
    def database(self) -> Database:
        """Opened by the first check that needs it."""
        return Database(self.settings.database_url, pool_size=1, application="jobq-doctor")

    @cached_property
    def queues(self) -> list[Queue]:
        """The queues as they are now."""
        return Queues(self.database, "doctor").list()

    def findings(self, *, only_ready: bool, process: str | None = None, pid: int | None = None) -> Iterator[Finding]:
        """What the checks find, in the order in which jobs need the parts.

        ``process``: whether that one is ready, too; see ``jobq.cli.readiness``.
        """
        own: list[_Check] = [(process, partial(_process, process=process, pid=pid), True)] if process else []
        for part, check, needs_database in [*_READY, *own] if only_ready else _ALL:
            if needs_database and not self.usable:
                yield Finding(part, "skipped", "not looked at: it needs the database and its schema")
                continue
            for finding in self._of(part, check):
                self.usable &= not (part in {"database", "migrations"} and finding.state == "broken")
                yield finding

    def _of(self, part: str, check: Callable[[Examination], Iterator[Finding]]) -> Iterator[Finding]:
        try:
            yield from check(self)
        except JobQError as error:
            # An application's host needs no broker and no Docker: what is not installed there is not broken.
            state: State = "warning" if error.code == "extra_missing" else "broken"
            yield Finding(part, state, error.message, error.hint or "")


def _process(look: Examination, process: str, pid: int | None) -> Iterator[Finding]:
    for ready, text, advice in PROCESSES[process](look, pid):
        yield Finding(process, "ok" if ready else "broken", text, advice)


def _settings(look: Examination) -> Iterator[Finding]:
    known = {name for name, _ in flat(Settings.model_construct().model_dump(mode="json"))} | {"config", "queues"}
    file = config_file()
    unknown = [f"{name} in {file}" for name in said_by_file(file) if name not in known]
    for variable in os.environ:
        name = variable.removeprefix("JOBQ_").lower().replace("__", ".")
        if variable.startswith("JOBQ_") and name not in known and (close := get_close_matches(name, known, 1, 0.8)):
            unknown.append(f"{variable} (meant: JOBQ_{close[0].replace('.', '__').upper()}?)")
    if unknown:
        yield Finding("settings", "warning", f"not known, and ignored: {', '.join(unknown)}", "Correct the names.")
    else:
        yield Finding("settings", "ok", f"read from {file}" if file.is_file() else "from the environment; no file")


def _packages(_: Examination) -> Iterator[Finding]:
    for package in ("workers", "scheduler"):
        require_own(package)
    yield Finding("packages", "ok", f"jobq {version('jobq')}, with its own workers and scheduler")


def _database(look: Examination) -> Iterator[Finding]:
    times = []
    for _ in range(3):
        began = time.monotonic()
        with look.database.read() as conn:
            database_now(conn)
        times.append(time.monotonic() - began)
    took = median(times)
    text = f"{look.database.dialect} at {mask_url(look.settings.database_url)} answers in {duration(took)}"
    if took > _SLOW:
        advice = "Each job takes several round trips: run workers nearer to the database."
        yield Finding("database", "warning", text, advice)
    else:
        yield Finding("database", "ok", text)


def _migrations(look: Examination) -> Iterator[Finding]:
    migrations.check(look.database)
    yield Finding("migrations", "ok", f"schema {migrations.newest()} is what this release needs")


def _clock(look: Examination) -> Iterator[Finding]:
    before = datetime.now(UTC)
    with look.database.read() as conn:
        there = database_now(conn)
    here = before + (datetime.now(UTC) - before) / 2
    skew = abs((there - here).total_seconds())
    if skew > _SKEW:
        text = f"the database's clock and this machine's differ by {duration(skew)}"
        yield Finding("clock", "warning", text, "Synchronize both (NTP): schedules follow the database's clock.")
    else:
        yield Finding("clock", "ok", f"the database's clock and this machine's differ by {duration(skew)}")


def _broker(look: Examination) -> Iterator[Finding]:
    if look.settings.broker_url.startswith(EMBEDDED.partition("://")[0]):
        advice = "Set JOBQ_BROKER_URL, such as redis://host:6379/0, for separate workers and schedulers."
        yield Finding("broker", "warning", "embedded: it lives inside jobq dev only", advice)
        return
    broker = load("jobq.broker").CeleryBroker(look.settings)
    names = [queue.name for queue in look.queues] if look.usable else []
    depths = {name: broker.depth(name) for name in names or ["heartbeat"]}
    text = f"{mask_url(look.settings.broker_url)} answers; hints: "
    yield Finding("broker", "ok", text + ", ".join(f"{name} {depth}" for name, depth in depths.items()))
    policy = broker.eviction()
    if policy not in {None, "noeviction"}:
        advice = "Set maxmemory-policy noeviction: a full Redis must refuse hints, not drop them."
        yield Finding("broker", "warning", f"Redis evicts keys when it is full ({policy})", advice)
    broker.close()


def _docker(look: Examination) -> Iterator[Finding]:
    module = load("workers.container.engine")
    url = mask_url(look.settings.docker_host)

    async def ask() -> str:
        engine = module.DockerEngine(look.settings.docker_host, patience=_PATIENCE)
        try:
            return str(await engine.identity(patience=_PATIENCE))
        finally:
            await engine.close()

    try:
        identity = asyncio.run(ask())
    except module.EngineError as error:
        advice = "Start Docker or set JOBQ_DOCKER_HOST, if this machine shall run containers."
        yield Finding("docker", "warning", f"CONTAINER jobs cannot run on this machine: {error}", advice)
        return
    yield Finding("docker", "ok", f"the engine at {url} answers (id {identity})")


def _plugins(look: Examination) -> Iterator[Finding]:
    kinds = sorted({point.name for point in entry_points(group="jobq.executors")})
    loaders: dict[str, Callable[[], object]] = {kind: lambda kind=kind: executor_class(kind) for kind in kinds}  # type: ignore[misc]
    for reference in look.settings.plugins:
        loaders[reference] = lambda reference=reference: _import(reference)  # type: ignore[misc]
    loaded = []
    for name, loader in loaders.items():
        try:
            loader()
        except Exception as error:  # noqa: BLE001 - a plugin may raise anything when it is imported; this tells it
            text = error.message if isinstance(error, JobQError) else f"{type(error).__name__}: {error}"
            hint = (error.hint if isinstance(error, JobQError) else None) or "Mend or uninstall it."
            yield Finding("plugins", "broken", f"{name} cannot be loaded: {text}", hint)
        else:
            loaded.append(name)
    if loaded:
        yield Finding("plugins", "ok", f"executors of {', '.join(loaded)}")


def _import(reference: str) -> object:
    module, _, name = reference.partition(":")
    return getattr(import_module(module), name).kind


def _secret_key(look: Examination) -> Iterator[Finding]:
    length = len(look.settings.secret_key.get_secret_value())
    if length < _SHORTEST_KEY:
        text = "not set: secrets cannot be stored" if not length else f"shorter than {_SHORTEST_KEY} characters"
        advice = "Set JOBQ_SECRET_KEY to the output of: python3 -c 'import secrets; print(secrets.token_urlsafe(32))'"
        yield Finding("secret key", "warning", text, advice)
    else:
        yield Finding("secret key", "ok", "set")


def _schedulers(look: Examination) -> Iterator[Finding]:
    with look.database.read() as conn:
        living = live_schedulers(conn)
    if living:
        yield Finding("scheduler", "ok", f"{len(living)} running: {', '.join(sorted(row.name for row in living))}")
        return
    waiting = sum(queue.ready for queue in look.queues)
    state: State = "broken" if waiting else "warning"
    yield Finding("scheduler", state, f"none is running; {count(waiting, 'job')} ready", "Start one: jobq scheduler")


def _workers(look: Examination) -> Iterator[Finding]:
    living = Workers(look.database, "doctor").list()
    for queue in look.queues:
        if queue.ready and queue.paused:
            advice = f"Open it again: jobq queue resume {queue.name}"
            yield Finding(
                "workers", "warning", f"queue {queue.name} is paused; {count(queue.ready, 'job')} ready", advice
            )
        elif queue.ready and not queue.slots:
            advice = f"Start one: jobq worker -Q {queue.name}:4"
            yield Finding(
                "workers", "broken", f"queue {queue.name}: {count(queue.ready, 'job')} ready, and no worker", advice
            )
    for worker in living:
        if worker.state == "late":
            text = f"{worker.name} ({worker.id}) was last seen {ago(worker.renewed_at)}"
            yield Finding("workers", "warning", text, "Look at its log and its host; its jobs are taken over.")
        elif worker.version != version("jobq"):
            text = f"{worker.name} runs jobq {worker.version}, not {version('jobq')}"
            yield Finding("workers", "warning", text, "Restart it with this release.")
    if living:
        served = ", ".join(f"{queue.name}:{queue.slots}" for queue in look.queues if queue.slots) or "no queue"
        yield Finding("workers", "ok", f"{len(living)} running; worker slots: {served}")
    elif not any(queue.ready for queue in look.queues):
        yield Finding("workers", "warning", "none is running", "Start one: jobq worker -Q container:4,heartbeat:500")


_Check = tuple[str, Callable[[Examination], Iterator[Finding]], bool]
_READY: tuple[_Check, ...] = (("database", _database, False), ("migrations", _migrations, True))
_ALL: tuple[_Check, ...] = (
    ("settings", _settings, False),
    ("packages", _packages, False),
    *_READY,
    ("clock", _clock, True),
    ("broker", _broker, False),
    ("docker", _docker, False),
    ("plugins", _plugins, False),
    ("secret key", _secret_key, False),
    ("scheduler", _schedulers, True),
    ("workers", _workers, True),
)
