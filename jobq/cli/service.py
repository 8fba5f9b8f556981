"""``jobq scheduler`` and ``jobq worker -Q``: processes that run until they are told to end.

They refuse what cannot work before they start: a broker that lives in one process, a foreign package in the place
of jobq's own, a schema of another version. A database that is away is waited for.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from jobq.cli.problems import load
from jobq.cli.session import session
from jobq.errors import Misconfigured, Unavailable
from jobq.telemetry import configured

if TYPE_CHECKING:
    from jobq.settings import Settings

log = logging.getLogger("jobq.cli")

LogFormat = Annotated[
    str | None,
    Option(metavar="auto|console|json", help="Of the log on stderr; auto: console on a terminal, else JSON lines."),
]
MetricsAddress = Annotated[
    str | None,
    Option("--metrics", metavar="ADDRESS", help="Serve Prometheus metrics, such as 127.0.0.1:9100; 9100: on loopback."),
]
_RETRY_EVERY = 2.0
_POLL = 0.05


def scheduler(context: typer.Context, log_format: LogFormat = None, metrics: MetricsAddress = None) -> None:
    """Run a scheduler until SIGTERM or Ctrl-C.

    Several may run: they share the work.
    """
    ending = _Ending()
    settings = _prepare(context, "scheduler", log_format, ending, metrics)
    if ending.came():
        return
    with load("jobq.exposition").served(settings), configured(settings, "jobq-scheduler"):
        running = load("scheduler.service").Scheduler(settings)
        running.start()
        ending.wait()
        log.info("the scheduler ends")
        running.stop()


def run_worker(context: typer.Context, queues: str, log_format: str | None, metrics: str | None) -> int:
    """Run a worker until SIGTERM or Ctrl-C; returns the exit code."""
    ending = _Ending()
    require_own("workers")
    wanted = load("workers.slots").parse_queues(queues)
    settings = _prepare(context, "worker", log_format, ending, metrics)
    if ending.came():
        return 0
    ending.hand_over()
    with configured(settings, "jobq-worker"):
        code: int = load("workers.app").run_worker(settings, wanted)
    return code


def api(
    context: typer.Context,
    *,
    host: Annotated[str, Option(help="Address to listen on. Beyond loopback an API key must exist.")] = "127.0.0.1",
    port: Annotated[int, Option(min=0, max=65535, help="0: any that is free.")] = 8321,
    tls_cert: Annotated[Path | None, Option(exists=True, help="PEM file: serve HTTPS.")] = None,
    tls_key: Annotated[Path | None, Option(exists=True, help="PEM file: the certificate's key.")] = None,
    log_format: LogFormat = None,
) -> None:
    """Serve the HTTP API until SIGTERM or Ctrl-C.

    Several may run, beside each other or behind a load balancer.
    """
    from jobq.logs import configure

    ending = _Ending()
    settings = session(context).settings
    server = load("jobq.api.server", "api")
    configure(settings.log_level, log_format or settings.log_format)
    _wait_for_schema(settings, ending)
    if ending.came():
        return
    server.check_access(settings, host)
    running = server.Server(settings, server.Address(host, port, tls_cert, tls_key))
    with configured(settings, "jobq-api"):
        running.start()
        log.info("the API listens on %s", running.address.url)
        ending.wait()
        log.info("the API ends")
        running.stop()


def dev(
    context: typer.Context,
    demo: Annotated[bool, Option("--demo", help="With workflows that show what jobq does.")] = False,
    plain: Annotated[bool, Option("--plain", help="One line an event, for logs and scripts.")] = False,
    port: Annotated[int, Option(min=0, max=65535, help="Of the HTTP API, on loopback; 0: any that is free.")] = 8321,
) -> None:
    """Everything in one process, on embedded parts: scheduler, worker and the HTTP API."""
    run = load("jobq.cli.dev").dev
    raise typer.Exit(run(session(context).settings, demo=demo, plain=plain, port=port))


def _prepare(
    context: typer.Context, what: str, log_format: str | None, ending: _Ending, metrics: str | None
) -> Settings:
    from jobq.logs import configure

    settings = session(context).settings
    if metrics is not None:
        settings = settings.model_copy(update={"metrics": metrics})
    load("jobq.broker").require_shared(settings, what)
    for package in ("workers", "scheduler"):
        require_own(package)
    configure(settings.log_level, log_format or settings.log_format)
    _wait_for_schema(settings, ending)
    return settings


def require_own(package: str) -> None:
    """Raise Misconfigured if Python would import another package of this name than the one beside ``jobq``."""
    import jobq

    own = Path(jobq.__file__).resolve().parent.parent / package
    found = find_spec(package)
    places = list(found.submodule_search_locations or ()) if found is not None else []
    if not places or Path(places[0]).resolve() != own:
        where = f"is {places[0]}" if places else "is missing"
        raise Misconfigured(
            f"The package {package!r} that Python imports {where}; jobq's own is {own}.", code="package_shadowed",
            hint="Look for a folder of that name in PYTHONPATH or in the current folder.",
        )  # fmt: skip


def _wait_for_schema(settings: Settings, ending: _Ending) -> None:
    """Return once the database has the right schema (or the end was asked for). Raises Misconfigured for another."""
    from jobq.store import migrations
    from jobq.store.database import Database

    database = Database(settings.database_url, application="jobq-start")
    told = False
    try:
        while not ending.came():
            try:
                migrations.check(database)
                return
            except Unavailable as error:
                if not told:
                    log.warning("waiting for the database: %s", error.message)
                told = True
                ending.wait(_RETRY_EVERY)
    finally:
        database.close()


class _Ending:
    """SIGTERM and SIGINT, from the first moment on; a second one ends the process at once."""

    def __init__(self) -> None:
        self._event = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on)

    def _on(self, number: int, _frame: Any) -> None:
        if self._event.is_set():
            sys.exit(128 + number)
        self._event.set()

    def came(self) -> bool:
        """Was the end asked for?"""
        return self._event.is_set()

    def wait(self, timeout: float | None = None) -> None:
        """Wait for it."""
        self._event.wait(timeout)

    def hand_over(self) -> None:
        """Leave the signals to who installs handlers next; what comes before that is passed on to them."""
        threading.Thread(target=self._pass_on, daemon=True).start()

    def _pass_on(self) -> None:
        self._event.wait()
        while signal.getsignal(signal.SIGTERM) == self._on:
            time.sleep(_POLL)
        os.kill(os.getpid(), signal.SIGTERM)
