"""Kinds of jobs, and the port through which a worker executes them.

A **kind** is what accepting a job needs: its spec model and its defaults. Application processes load kinds alone.
An **executor** is what a worker needs to run it. A plugin brings both in one class, registered under the entry
point group ``jobq.executors`` (the entry point's name is the kind)::

    class Greeting(Spec):
        name: str

    class GreetingExecutor:
        kind = Kind("GREETING", Greeting, timeout=timedelta(seconds=5))

        async def execute(self, spec: Greeting, ctx: Context) -> Outcome:
            ctx.log(f"hello {spec.name}")
            return Outcome.succeeded({"greeted": spec.name})

Executions are at least once where the job is retried: ``ctx.job.id`` is the idempotency key for side effects,
``ctx.job.attempt`` only a fence.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Protocol, runtime_checkable
from uuid import UUID

from jobq.errors import InvalidInput, Misconfigured
from jobq.models import Outcome, Step
from jobq.specs import Container, Heartbeat, Spec
from jobq.sync import Replication, Sync


@dataclass(frozen=True, slots=True)
class Kind:
    """What must be known of a kind to accept a job of it."""

    name: str
    spec: type[Spec]
    timeout: timedelta | None = timedelta(seconds=60)
    """Default; None: the kind has no total timeout."""
    max_timeout: timedelta = timedelta(hours=24)
    max_attempts: int = 3
    retry_lost: bool = True
    """Is a job whose worker died tried again (charged), or does it end FAILED·unresolved?"""

    @property
    def queue(self) -> str:
        """The queue of jobs that name none."""
        return self.name.lower()


BUILT_IN: dict[str, Kind] = {
    "CONTAINER": Kind(
        "CONTAINER", Container, timedelta(seconds=30), timedelta(hours=1), max_attempts=1, retry_lost=False
    ),
    "HEARTBEAT": Kind("HEARTBEAT", Heartbeat, timedelta(seconds=10), timedelta(minutes=5)),
    "SYNC": Kind("SYNC", Sync, timeout=None),
    "REPLICATION": Kind("REPLICATION", Replication, timedelta(seconds=60), timedelta(hours=1)),
}


class Stop(StrEnum):
    """Why a running job is told to stop."""

    CANCEL = "cancel"
    """Somebody wants it canceled: stop the work, report what was done."""
    DRAIN = "drain"
    """The worker goes away: leave the work where another worker can recover it, else stop it. Not charged."""
    PAUSE = "pause"
    """Somebody holds the job (a SYNC): stop where it can go on, and give the worker slot back."""
    FENCED = "fenced"
    """The worker no longer owns the job: stop the work; whatever is reported is refused."""


@dataclass(frozen=True, slots=True)
class JobRef:
    """The job as its executor sees it."""

    id: UUID
    attempt: int
    tenant: str
    kind: str
    name: str
    queue: str
    trigger: str
    timeout: float | None
    """Seconds; None: no total timeout."""
    scheduled_at: datetime | None = None
    workflow_id: UUID | None = None
    parent_id: UUID | None = None
    state: Any = None
    """JSON value that came with the trigger."""
    retry_of: UUID | None = None
    worker_id: UUID | None = None
    payload: Any = None
    """For built-in kinds: what of the store the job needs (see ``jobq.store.entities.Payload``)."""
    started_by: str | None = None
    """Who made a MANUAL job, if that was said; a child does not know."""


def _no_log(text: str | bytes, stream: str) -> None:
    """Where the log of a context goes that nobody reads."""


@dataclass(slots=True)
class Context:
    """What an executor may ask of its worker. One per attempt, used from the worker's event loop."""

    job: JobRef
    write_log: Callable[[str | bytes, str], None] = _no_log
    on_executing: Callable[[], None] = lambda: None
    secrets: Mapping[str, str] = field(default_factory=dict)
    """Values of the secrets that the spec names; never log them."""
    checkpoint: dict[str, Any] = field(default_factory=dict)
    """For ``recover``: what the last ``save`` of the previous owner of this attempt left."""
    save: Callable[[dict[str, Any]], None] = lambda _: None
    """Keep a small JSON document (a position in a log) with the job, within a second or so."""
    at_once: Callable[[], AbstractContextManager[Any]] = nullcontext
    """What is logged and saved inside ``with ctx.at_once():`` is stored together, or not at all. Do not wait inside."""
    save_artifact: Callable[[str, bytes], None] = lambda _name, _content: None
    """Keep a file of the job's output: its path below the output folder, and what is in it."""
    afterwards: list[Callable[[], Awaitable[None]]] | None = None
    """For built-in kinds: what is done once the outcome is recorded. None: nobody will, do it before the outcome."""
    steps: list[Step] = field(default_factory=list)
    stop: Stop | None = None
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _began: float = field(default_factory=time.monotonic)

    def log(self, text: str | bytes, stream: str = "system") -> None:
        """Append to the job's log. ``stream``: stdout, stderr or system. Never blocks; the log is capped per job.

        Text may hold several lines or a part of one: a line ends at its newline, or when the attempt ends.
        """
        self.write_log(text if isinstance(text, bytes) or stream != "system" else text + "\n", stream)

    def executing(self) -> None:
        """Preparation (pull, create) is over: the job is RUNNING·executing from now on."""
        self.on_executing()

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a part of the work; it appears in the job's waterfall, also when it raises."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.add_step(name, began, time.monotonic())

    def add_step(self, name: str, began: float, ended: float) -> None:
        """A step that was timed elsewhere, in seconds of ``time.monotonic``."""
        self.steps.append(Step(name, round(began - self._began, 6), round(ended - began, 6)))

    def request_stop(self, why: Stop) -> None:
        """Called by the worker: tell the executor to stop. A later, stronger reason replaces an earlier one."""
        self.stop = why
        self._stopping.set()

    async def stopped(self) -> Stop:
        """Wait until the job is told to stop, and why."""
        await self._stopping.wait()
        assert self.stop is not None
        return self.stop


@runtime_checkable
class Executor(Protocol):
    """Runs jobs of one kind. One instance per worker process, used concurrently; it holds no state of a job.

    ``execute`` is a coroutine (or a plain function, which runs in a thread and cannot be interrupted). It returns
    an ``Outcome``; an exception that escapes is a charged failure, recorded with its class and message.

    The worker cancels the coroutine at the job's timeout and when the job is told to stop, unless the class sets
    ``cooperative = True``: then the executor watches ``ctx.job.timeout`` and ``ctx.stopped()`` itself.
    Optional: ``own_deadline = True`` (it keeps to ``ctx.job.timeout`` itself; the worker's own comes 5 s later), and
    ``async def open(settings)`` and ``async def close()`` around the worker's life.
    """

    kind: Kind

    async def execute(self, spec: Any, ctx: Context) -> Outcome: ...


@runtime_checkable
class Recovers(Protocol):
    """A second, optional protocol: work that outlives its worker, on a host that has an identity.

    ``host`` names the place that the work lives on (for containers: which Docker engine), None if it cannot be
    reached. ``recover`` takes over an attempt that another worker began there: same job, same attempt, the
    checkpoint that was saved last. It returns the true outcome, or ``Outcome.lost()`` if the work is gone.
    """

    host: str | None

    async def recover(self, spec: Any, ctx: Context) -> Outcome: ...


@lru_cache(maxsize=64)
def executor_class(kind: str, extra: tuple[str, ...] = ()) -> type[Any]:
    """The executor of a kind: from ``extra`` (``module:Class``) first, else from the entry points.

    Raises InvalidInput (unknown kind) or Misconfigured (the plugin cannot be imported, or its kind has another name).
    """
    for reference in extra:
        found = _referred(reference)
        if found.kind.name == kind:
            return found
    for point in entry_points(group="jobq.executors", name=kind):
        found = _load(kind, point.load)
        if found.kind.name != kind:
            raise Misconfigured(f"The plugin {point.value!r} is registered as {kind} but runs {found.kind.name}.")
        return found
    known = sorted({*BUILT_IN, *(point.name for point in entry_points(group="jobq.executors"))})
    raise InvalidInput(f"There is no job kind {kind!r}.", hint=f"Known kinds: {', '.join(known)}.", pointer="/kind")


def installed_kinds(extra: tuple[str, ...] = ()) -> list[str]:
    """The names of all kinds that can be run here. Raises Misconfigured if one of ``extra`` cannot be imported."""
    found = {*BUILT_IN, *(point.name for point in entry_points(group="jobq.executors"))}
    return sorted({*found, *(_referred(reference).kind.name for reference in extra)})


def _referred(reference: str) -> type[Any]:
    """The class behind ``module:Class``."""
    module, _, name = reference.partition(":")
    return _load(reference, lambda: getattr(import_module(module), name))


def _load(kind: str, load: Callable[[], Any]) -> type[Any]:
    try:
        found: type[Any] = load()
    except (ImportError, AttributeError) as error:
        raise Misconfigured(
            f"The executor of {kind} cannot be imported: {error}.",
            hint="Install what it needs (for the built-in kinds: pip install 'jobq[worker]').",
        ) from error
    return found


def find_kind(name: str, extra: tuple[str, ...] = ()) -> Kind:
    """The kind of that name; built-in kinds load nothing else. Raises InvalidInput for an unknown one."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    kind: Kind = executor_class(name, extra).kind
    return kind
