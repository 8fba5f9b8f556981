"""Executors in tests: ``run_executor`` runs one attempt, ``ExecutorContract`` is what each of them must hold."""

from __future__ import annotations

import asyncio
import inspect
import json
import time
from collections.abc import Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest import SkipTest

from jobq.errors import Forbidden, InvalidInput, Misconfigured, NotFound
from jobq.models import Outcome, Step
from jobq.plugins import Context, JobRef, Kind, Stop
from jobq.settings import Settings
from jobq.specs import Spec
from jobq.states import REASONS, Reason, Status, Trigger
from jobq.store.jobs import new_id
from jobq.validation import parse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_STREAMS = frozenset({"stdout", "stderr", "system"})


@dataclass(slots=True)
class Ran:
    """What one attempt left behind."""

    outcome: Outcome
    log: list[str] = field(default_factory=list)
    """Its lines, of all streams, in the order in which they came."""
    steps: list[Step] = field(default_factory=list)
    artifacts: dict[str, bytes] = field(default_factory=dict)
    saved: dict[str, Any] = field(default_factory=dict)
    """The last checkpoint."""
    seconds: float = 0.0


def run_executor(
    executor: Any,
    spec: Spec | dict[str, Any],
    *,
    timeout: float | None = None,
    stop_after: float | None = None,
    state: Any = None,
    secrets: Mapping[str, str] | None = None,
    settings: Settings | None = None,
) -> Ran:
    """Execute one attempt as a worker does, without a database: open the executor, run it, close it.

    ``timeout``: seconds, default: the kind's. ``stop_after``: seconds after which the job is canceled. What the
    executor raises becomes the FAILED outcome that a worker would record. Not for use within a running event loop.
    """

    async def run() -> Ran:
        async with _opened(executor, settings or Settings.load()):
            return await _attempt(
                executor, spec, seconds=timeout, stop_after=stop_after, state=state, secrets=secrets
            )  # fmt: skip

    return asyncio.run(run())


@asynccontextmanager
async def _opened(executor: Any, settings: Settings) -> AsyncIterator[None]:
    if hasattr(executor, "open"):
        await executor.open(settings)
    try:
        yield
    finally:
        if hasattr(executor, "close"):
            await executor.close()


async def _attempt(
    executor: Any,
    spec: Spec | dict[str, Any],
    *,
    seconds: float | None = None,
    stop_after: float | None = None,
    state: Any = None,
    secrets: Mapping[str, str] | None = None,
) -> Ran:
    kind: Kind = executor.kind
    if seconds is None and kind.timeout is not None:
        seconds = kind.timeout.total_seconds()
    job = JobRef(
        new_id(), 1, "default", kind.name, "test", kind.queue, Trigger.MANUAL.value, seconds, state=state
    )  # fmt: skip
    log = _Log()
    ran = Ran(Outcome.lost())
    ctx = Context(
        job, write_log=log.write, secrets=secrets or {}, save=ran.saved.update, save_artifact=ran.artifacts.__setitem__
    )
    began = time.monotonic()
    try:
        checked = spec if isinstance(spec, Spec) else parse(kind.spec, spec, "/spec")
        ran.outcome = await _until_its_end(executor, checked, ctx, stop_after)
    except (InvalidInput, Forbidden, NotFound, Misconfigured) as error:
        ran.outcome = Outcome.invalid(str(error))
    except Exception as error:  # noqa: BLE001  what an executor raises is an outcome
        ran.outcome = Outcome.failed(f"{type(error).__name__}: {error}", error_class=type(error).__name__)
    ran.seconds, ran.log, ran.steps = time.monotonic() - began, log.lines(), ctx.steps
    return ran


async def _until_its_end(executor: Any, spec: Spec, ctx: Context, stop_after: float | None) -> Outcome:
    """The deadline and the requests to stop of a worker: it interrupts the work unless that is ``cooperative``."""
    execute = executor.execute
    if not inspect.iscoroutinefunction(execute):
        execute = partial(asyncio.to_thread, execute)
    work = asyncio.ensure_future(execute(spec, ctx))
    loop, cooperative = asyncio.get_running_loop(), getattr(executor, "cooperative", False)

    def stop() -> None:
        ctx.request_stop(Stop.CANCEL)
        if not cooperative:
            work.cancel()

    timers = [] if stop_after is None else [loop.call_later(stop_after, stop)]
    deadline = None if cooperative or ctx.job.timeout is None else ctx.job.timeout
    if deadline is not None and getattr(executor, "own_deadline", False):
        deadline += 5.0
    try:
        done, _ = await asyncio.wait({work}, timeout=deadline)
        if not done:
            work.cancel()
            await asyncio.wait({work})
        if work.cancelled():
            return Outcome.stopped() if done else Outcome.timed_out(f"timed out after {ctx.job.timeout:g} s")
        outcome: Outcome = work.result()
        return outcome
    finally:
        for timer in timers:
            timer.cancel()


class _Log:
    """Takes what an executor logs, and sees to it that a worker's journal would take it too."""

    def __init__(self) -> None:
        self._pieces: list[tuple[str, str]] = []

    def write(self, text: str | bytes, stream: str) -> None:
        if stream not in _STREAMS:
            raise InvalidInput(f"{stream!r} is no stream of a log.", hint=f"Use one of {', '.join(sorted(_STREAMS))}.")
        readable = text if isinstance(text, str) else bytes(text).decode(errors="backslashreplace")
        self._pieces.append((stream, readable))

    def lines(self) -> list[str]:
        """Whole lines; a last one without a newline is one too. Streams do not mix within a line."""
        done: list[str] = []
        begun: dict[str, str] = {}
        for stream, text in self._pieces:
            *whole, rest = (begun.get(stream, "") + text).split("\n")
            done += whole
            begun[stream] = rest
        return done + [rest for rest in begun.values() if rest]


# --- the contract ----------------------------------------------------------------------------------------------------


class ExecutorContract:
    """What every executor must hold: subclass it in your tests, and pytest runs the rest.

        class TestGreeting(ExecutorContract):
            def executor(self):
                return GreetingExecutor()

            def spec(self):
                return Greeting(name="Ada")

    ``endless_spec`` (work that goes on until it is stopped) and ``failing_spec`` bring further tests.
    """

    stops_within: float = 5.0
    """Seconds that it may take to stop."""

    def executor(self) -> Any:
        """A new executor."""
        raise NotImplementedError("a contract test says which executor it is about")

    def spec(self) -> Spec:
        """A job that is done quickly and well."""
        raise NotImplementedError("a contract test names a spec whose job succeeds")

    def endless_spec(self) -> Spec | None:
        """A job that runs until it is stopped."""
        return None

    def failing_spec(self) -> Spec | None:
        """A job that fails."""
        return None

    def settings(self) -> Settings:
        """What the executor is opened with."""
        return Settings()

    # --- helpers

    def _run(self, spec: Spec | dict[str, Any], **how: Any) -> Ran:
        return run_executor(self.executor(), spec, settings=self.settings(), **how)

    def _or_skip(self, spec: Spec | None, what: str) -> Spec:
        if spec is None:
            raise SkipTest(f"no {what} is given")
        return spec

    # --- accepting

    def test_the_kind_says_what_accepting_a_job_needs(self) -> None:
        kind = self.executor().kind
        assert isinstance(kind, Kind)
        assert kind.name == kind.name.upper()
        assert issubclass(kind.spec, Spec)
        assert kind.max_attempts >= 1
        assert kind.timeout is None or kind.timeout <= kind.max_timeout

    def test_a_spec_is_the_same_behind_the_database(self) -> None:
        model = self.executor().kind.spec
        for spec in filter(None, (self.spec(), self.endless_spec(), self.failing_spec())):
            assert parse(model, json.loads(spec.model_dump_json())) == spec

    def test_a_field_that_the_spec_does_not_have_is_refused(self) -> None:
        ran = self._run({**self.spec().model_dump(mode="json"), "no_such_field": 1})
        assert ran.outcome.reason is Reason.INVALID

    # --- executing

    def test_a_job_succeeds(self) -> None:
        ran = self._run(self.spec())
        assert ran.outcome.status is Status.COMPLETED, ran.outcome.message
        assert_recordable(ran)

    def test_jobs_run_side_by_side_in_one_executor(self) -> None:
        executor = self.executor()

        async def three() -> list[Ran]:
            async with _opened(executor, self.settings()):
                return await asyncio.gather(*(_attempt(executor, self.spec()) for _ in range(3)))

        assert [ran.outcome.status for ran in asyncio.run(three())] == [Status.COMPLETED] * 3

    def test_a_failure_says_what_went_wrong(self) -> None:
        ran = self._run(self._or_skip(self.failing_spec(), "failing_spec"))
        assert ran.outcome.status is Status.FAILED
        assert ran.outcome.message, "a person reads the message"
        assert ran.outcome.error_class, "retry rules name the error class"
        assert_recordable(ran)

    # --- stopping

    def test_it_stops_when_it_is_told_to(self) -> None:
        ran = self._run(self._or_skip(self.endless_spec(), "endless_spec"), timeout=60, stop_after=0.5)
        assert ran.seconds < 0.5 + self.stops_within
        assert ran.outcome.status is Status.CANCELED
        assert_recordable(ran)

    def test_it_stops_at_its_timeout(self) -> None:
        ran = self._run(self._or_skip(self.endless_spec(), "endless_spec"), timeout=0.5)
        assert ran.seconds < 0.5 + self.stops_within
        assert ran.outcome.reason is Reason.TIMED_OUT
        assert_recordable(ran)


def assert_recordable(ran: Ran) -> None:
    """The outcome, the steps and the checkpoint are what a worker can record."""
    outcome = ran.outcome
    assert isinstance(outcome, Outcome), f"an executor returns an Outcome, not {type(outcome).__name__}"
    assert outcome.reason in REASONS[outcome.status]
    assert outcome.status is not Status.PENDING or outcome.delay is not None
    json.dumps([outcome.result, outcome.usage, ran.saved], allow_nan=False)
    for step in ran.steps:
        assert step.at >= 0, step
        assert step.seconds >= 0, step
