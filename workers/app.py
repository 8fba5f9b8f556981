"""The Celery side of a worker: one registered task, which only hands ids over.

``celery -A workers.app worker`` starts the same worker as ``jobq worker``: the queues and their worker slots come
from JOBQ_QUEUES (``container:8,heartbeat:2000``).
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import cache
from typing import Any

from celery import Celery
from celery.apps.worker import Worker as CeleryProcess
from celery.bootsteps import CLOSE  # type: ignore[attr-defined]  # the stubs lack it
from celery.exceptions import SecurityWarning
from celery.signals import (
    setup_logging,
    task_rejected,
    worker_init,
    worker_ready,
    worker_shutdown,
    worker_shutting_down,
)
from celery.worker import WorkController
from celery.worker import state as celery_state

from jobq import metrics
from jobq.broker import TASK, CeleryBroker, Hint, make_celery, message_queue, parse_hint, require_shared
from jobq.errors import Unavailable
from jobq.exposition import served
from jobq.logs import configure
from jobq.loop import Loop
from jobq.settings import Settings
from jobq.telemetry import configured
from workers.hearing import Ear, Listening
from workers.pool import turn
from workers.service import Worker
from workers.slots import DEFAULT_SLOTS, parse_queues

log = logging.getLogger(__name__)

_LASTING = ExitStack()
"""What is open to the end of a process that Celery's own command started."""
_FULL = 20.0
"""Seconds for which a thread that met no free slot takes no other hint: they lie at the broker, for all workers."""
DEAF = 1
"""The exit code of a worker that turned deaf."""
DEFAULT_QUEUES = ",".join(f"{queue}:{slots}" for queue, slots in DEFAULT_SLOTS.items())


# Celery warns of running as root because of pickle in messages; only JSON is accepted here (see jobq.broker).
warnings.filterwarnings("ignore", category=SecurityWarning)


class App:
    """A Celery app that feeds one ``Worker``; ``dropped`` counts messages that were no hints of ours."""

    def __init__(self, settings: Settings, queues: Mapping[str, int]) -> None:
        self.settings = settings
        self.queues = dict(queues)
        self.worker: Worker | None = None
        self.dropped = 0
        self.ear = Ear()
        self._broker = CeleryBroker(settings)
        self._publishing = threading.Lock()
        self._ending = threading.Lock()
        self.on_drain: Callable[[], None] = self.drain
        self.celery = make_celery(settings)
        self.celery.conf.update(
            task_queues=[message_queue(settings, queue) for queue in queues],
            # A hint waits for room on its thread: two for each queue, so that no queue starves the others.
            worker_concurrency=2 * len(queues),
            worker_pool="workers.pool:HintPool",
            worker_consumer="workers.consumer:HintConsumer",
        )
        if settings.broker_url.startswith(("redis:", "rediss:")):
            self.celery.conf.broker_transport = "workers.transport:Transport"
        self.celery.task(name=TASK, ignore_result=True, shared=False)(self._run)

    def _run(self, *args: Any, **_: Any) -> None:
        """The one task: "look at these job ids". What is no such hint is dropped and counted, never executed."""
        with self.ear.message():
            hint, worker = parse_hint(args), self.worker
            if hint is None or worker is None:
                self._drop()
                log.warning("a message was dropped: it is no hint of this version")
                return
            left = worker.hint(hint.queue, hint.ids)
            if left:
                self._pass_on(Hint(hint.queue, left))
                worker.slots.wait_for_room(hint.queue, _FULL)  # else this worker would be told the same again

    def _pass_on(self, hint: Hint) -> None:
        """Jobs found no room here: another worker may have some, and would look into the database seconds later."""
        try:
            with self._publishing:
                self._broker.publish([hint])
        except Unavailable as error:
            log.debug("not passed on: %s", error)
        else:
            metrics.PASSED_ON.add(len(hint.ids), hint.queue)

    def _refused(self, sender: Any = None, **_: Any) -> None:
        """The consumer dropped a message: a foreign task, a form that could carry code, or no form at all."""
        if getattr(sender, "app", None) is self.celery:
            with self.ear.message():
                self._drop()

    def _drop(self) -> None:
        self.dropped += 1
        metrics.DROPPED.add()

    # --- the life of the process -----------------------------------------------------------------------------

    def begin(self) -> None:
        """Start to work; Celery's consumer follows."""
        task_rejected.connect(self._refused, weak=False)
        self.worker = Worker(self.settings, self.queues)
        self.worker.lease.on_drain = self.on_drain
        self.worker.start()

    def drain(self) -> None:
        """Take no more jobs."""
        if self.worker is not None:
            self.worker.drain()

    def end(self) -> None:
        """Let running jobs end, then stop."""
        task_rejected.disconnect(self._refused)
        with self._ending:
            if self.worker is not None:
                self.worker.stop()
                self.worker = None
                self._broker.close()

    def bind_signals(self) -> None:
        """Follow the life of a Celery worker that runs this app in this process.

        An operator's ``jobq worker drain`` ends the process as SIGTERM does; a worker that turns deaf ends it, too.
        """
        self.on_drain = _end_this_process
        worker_init.connect(lambda **_: self._begin_here(), weak=False)
        worker_shutting_down.connect(lambda **_: threading.Thread(target=self.drain, daemon=True).start(), weak=False)
        worker_shutdown.connect(lambda **_: self.end(), weak=False)

    def _begin_here(self) -> None:
        self.begin()
        assert self.worker is not None
        after = self.settings.deaf_after.total_seconds()
        listening = Listening(
            self.ear, self._broker, self.worker.slots, self.worker.lease,
            after=after, on_deaf=self._end_deaf,
        )  # fmt: skip
        Loop("listen", listening.tick).start()

    def _end_deaf(self) -> None:
        """Drain, and exit 1 for the supervisor. Not by way of Celery: its consumer may wait for ever."""
        try:
            self.end()
        finally:
            logging.shutdown()
            os._exit(DEAF)


class EmbeddedWorker:
    """A worker inside another process (``jobq dev``, tests, benchmarks): Celery's consumer on a thread of its own."""

    def __init__(self, settings: Settings, queues: Mapping[str, int]) -> None:
        self._app = App(settings, queues)
        self._ready = threading.Event()
        self._celery: Any = None
        self._thread = threading.Thread(target=self._run, name="jobq-celery", daemon=True)

    def start(self, timeout: float = 30.0) -> None:
        """Start, and wait until the consumer listens (or, while the broker is away, ``timeout`` seconds)."""
        worker_ready.connect(self._on_ready, weak=False)
        self._app.begin()
        self._thread.start()
        self._ready.wait(timeout)

    def _on_ready(self, **_: Any) -> None:
        self._ready.set()

    def _run(self) -> None:
        warnings.filterwarnings("ignore", category=SecurityWarning)  # a test runner resets what the import set
        try:
            self._celery = self._app.celery.Worker(
                without_gossip=True,
                without_mingle=True,
                without_heartbeat=True,
                quiet=True,
                loglevel="WARNING",
            )
            # WorkController.start without the signal handlers and the exit that come with a process of its own.
            WorkController.start(self._celery)
        finally:
            self._ready.set()  # nobody waits for a consumer that could not start

    def stop(self) -> None:
        """Drain, let running jobs end, stop the consumer."""
        worker_ready.disconnect(self._on_ready)
        self._app.drain()
        consumer = getattr(self._celery, "consumer", None)
        if consumer is not None:
            # Its own thread leaves its loop (within 2 s where it polls) while jobs end: no other may use its connection.
            consumer.blueprint.state = CLOSE
            turn(getattr(self._celery, "hub", None))
        self._app.end()
        self._thread.join(5.0)
        if self._celery is not None:
            self._celery.stop()


class _Process(CeleryProcess):
    """A Celery worker that SIGTERM, Ctrl-C and the end of its terminal end alike: it drains and exits 0.

    With Celery's own handlers Ctrl-C exits 1, and both write on stdout. A second signal ends the process at once.
    """

    def install_platform_tweaks(self, worker: Any) -> None:
        """Celery calls this when it is about to start."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._end)

    def _end(self, number: int, _frame: Any) -> None:
        if celery_state.should_stop is not None:
            os._exit(128 + number)
        log.info("the worker drains")
        worker_shutting_down.send(sender=self, sig=signal.Signals(number).name, how="Warm", exitcode=0)
        celery_state.should_stop = 0  # type: ignore[assignment]  # an exit code, where there is one


def run_worker(settings: Settings, queues: Mapping[str, int]) -> int:
    """``jobq worker``: a Celery worker in this process until SIGTERM or Ctrl-C; returns the exit code."""
    require_shared(settings, "worker")
    own = App(settings, queues)
    own.bind_signals()
    worker = own.celery.subclass_with_self(_Process)(
        without_gossip=True, without_mingle=True, without_heartbeat=True, quiet=True, loglevel=settings.log_level,
        hostname=f"jobq-{os.getpid()}@{socket.gethostname()}",
    )  # fmt: skip
    with served(settings):
        worker.start()
    return int(worker.exitcode or 0)


def _end_this_process() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@cache
def _from_environment() -> Celery:
    """The app of ``celery -A workers.app worker``."""
    settings = Settings.load()
    require_shared(settings, "worker")
    own = App(settings, parse_queues(os.environ.get("JOBQ_QUEUES", DEFAULT_QUEUES)))
    own.bind_signals()
    configure(settings.log_level, settings.log_format)
    setup_logging.connect(lambda **_: None, weak=False)  # who listens there keeps Celery from doing it
    _LASTING.enter_context(served(settings))
    _LASTING.enter_context(configured(settings, "jobq-worker"))
    return own.celery


def __getattr__(name: str) -> Any:
    """``app`` is made when Celery asks for it, not when somebody imports this module."""
    if name in {"app", "celery"}:
        return _from_environment()
    raise AttributeError(name)
