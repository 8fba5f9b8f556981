"""``jobq dev``: scheduler, worker and API in one process, and a view of what they do. With ``--demo``, something to do."""

from __future__ import annotations

import fcntl
import logging
import os
import shlex
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobq.cli import demo as demonstration
from jobq.cli import live
from jobq.cli.output import console, plain, write
from jobq.cli.served import served
from jobq.client import JobQ
from jobq.embedded import Embedded
from jobq.errors import JobQError, Misconfigured, Unavailable
from jobq.logs import formatter
from jobq.settings import EMBEDDED, Settings, data_folder, mask_url

if TYPE_CHECKING:
    from rich.console import Console

log = logging.getLogger(__name__)

_EVERY = 1.0
_GRACE = timedelta(seconds=2)
"""How long running jobs may go on after Ctrl-C."""
_LOG_BYTES = 5 * 1024 * 1024


def dev(settings: Settings, *, demo: bool = False, plain: bool = False, port: int = 0) -> int:
    """Run until Ctrl-C or SIGTERM; returns the exit code. Raises JobQError if it cannot start.

    ``demo``: on a database of its own, with pages to probe and an application that enqueues jobs. ``plain``: lines
    instead of tables, as where stdout is no terminal. ``port``: of the HTTP API; 0: any.
    """
    with ExitStack() as stack:
        stopping = stack.enter_context(_told_to_stop())
        place = stack.enter_context(_demo_place()) if demo else _place(settings)
        settings = _adapted(settings, place, demo=demo)
        screen = _Screen(console(), tables=sys.stdout.isatty() and not plain)
        stack.enter_context(_logging(place.log, settings, screen))
        with JobQ(settings=settings, actor="jobq dev") as jobq:
            _migrate(jobq)
            embedded = Embedded(settings)
            watch = live.Watch(jobq.database)
            watch.look()
            with embedded, served(jobq, port) as api:
                parts = stack.enter_context(_Demo(jobq, screen, place.files)) if demo else None
                header = _header(settings, place, embedded.queues, api, parts)
                screen.say(header)
                _watch(watch, screen, stopping, below=header.count("\n") + 1)
                if parts is not None:
                    parts.stop()
                screen.say("\nstopping: jobs that run may end within 2 s")
        screen.say(f"stopped; the database stays: {mask_url(settings.database_url)}")
    return 0


# --- where things are ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Place:
    """Where this run keeps its database and its log."""

    database_url: str
    log: Path

    @property
    def files(self) -> Path:
        """The folder that the demo's Syncs may write to."""
        return self.log.with_suffix("")


def _place(settings: Settings) -> _Place:
    """The log lies beside a SQLite database, else in the user's data folder."""
    kind, _, file = settings.database_url.partition(":///")
    path = Path(file).expanduser() if kind.startswith("sqlite") and file else data_folder() / "dev.db"
    _make_folder(path.parent)
    return _Place(settings.database_url, path.with_suffix(".log"))


@contextmanager
def _demo_place() -> Iterator[_Place]:
    """A new database at each start, in the user's data folder, or a temporary one where that cannot be written.

    Raises Misconfigured while another demo uses it.
    """
    folder = data_folder()
    try:
        _make_folder(folder)
    except Misconfigured:
        folder = Path(tempfile.mkdtemp(prefix="jobq-demo-"))
    with (folder / "demo.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise Misconfigured(
                f"A demo runs already (process {lock.read().strip() or 'unknown'}).", code="demo_running",
                hint="Stop that one first, or start this one with another XDG_DATA_HOME.",
            ) from None  # fmt: skip
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        for name in ("demo.db", "demo.db-wal", "demo.db-shm", "demo.log"):
            (folder / name).unlink(missing_ok=True)
        place = _Place(f"sqlite:///{folder / 'demo.db'}", folder / "demo.log")
        shutil.rmtree(place.files, ignore_errors=True)
        place.files.mkdir(exist_ok=True)
        yield place


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied", str(folder))
    except OSError as error:
        raise Misconfigured(
            f"The folder {folder} cannot be used: {error.strerror}.", code="folder_not_writable",
            hint="Set JOBQ_DATABASE_URL (sqlite:////some/where/jobq.db) or XDG_DATA_HOME to a place of your own.",
        ) from None  # fmt: skip


def _adapted(settings: Settings, place: _Place, *, demo: bool) -> Settings:
    """The settings of this run. The demo probes this machine, every few seconds, whatever the policy is elsewhere.

    Its files lie in its own folder, and it reaches no others.
    """
    changed: dict[str, Any] = {
        "database_url": place.database_url, "drain_timeout": min(settings.drain_timeout, _GRACE),
    }  # fmt: skip
    if demo:
        changed["broker_url"] = EMBEDDED
        changed["policy"] = settings.policy.model_copy(
            update={
                "probe_networks": [*settings.policy.probe_networks, demonstration.LOOPBACK],
                "min_interval": timedelta(seconds=1),
                "areas": [str(place.files)],
            }
        )
    return settings.model_copy(update=changed)


def _migrate(jobq: JobQ) -> None:
    from jobq.store.migrations import upgrade

    try:
        upgrade(jobq.database)
    except JobQError:
        raise
    except Exception as error:
        raise Misconfigured(
            f"The database {mask_url(jobq.settings.database_url)} cannot be prepared: {getattr(error, 'orig', error)}.",
            hint="Set JOBQ_DATABASE_URL to another one, or move this one away.",
        ) from error


# --- what is seen ----------------------------------------------------------------------------------------------------


class _Screen:
    """Where everything goes: tables that are drawn anew, or lines; messages above or between them."""

    def __init__(self, terminal: Console, *, tables: bool) -> None:
        self.terminal = terminal
        self.tables = tables

    def say(self, text: str) -> None:
        """A few lines for a person."""
        if self.tables:
            self.terminal.print(text, soft_wrap=True)
        else:
            write(f"{text}\n")


def _watch(watch: live.Watch, screen: _Screen, stopping: threading.Event, *, below: int) -> None:
    """Show what happens, once a second, until somebody stops it. ``below`` so many lines, which stay in sight."""
    if not screen.tables:
        while not stopping.wait(_EVERY):
            for line in _looked(lambda: live.lines(watch.look()), []):
                write(f"{line}\n")
        return
    from rich.live import Live

    def draw() -> None:
        view.update(live.tables(watch.look(), watch, height=screen.terminal.height - below), refresh=True)

    with Live(console=screen.terminal, auto_refresh=False, vertical_overflow="crop") as view:
        while not stopping.is_set():
            _looked(draw, None)
            stopping.wait(_EVERY)


def _looked(look: Callable[[], Any], otherwise: Any) -> Any:
    """A look at the database; while it is away, the loops of scheduler and worker say so in the log."""
    try:
        return look()
    except Unavailable as error:
        log.debug("nothing to show: %s", error)
        return otherwise


def _header(settings: Settings, place: _Place, queues: dict[str, int], api: str, parts: _Demo | None) -> str:
    """What runs where, and what to try next."""
    what = "the demo" if parts else "scheduler, worker and API"
    facts = [
        ("database", mask_url(settings.database_url) + ("  (new at each start)" if parts else "")),
        ("broker", "in this process" if settings.broker_url == EMBEDDED else mask_url(settings.broker_url)),
        ("api", api),
        ("queues", "  ".join(f"{queue}:{slots}" for queue, slots in sorted(queues.items()))),
        ("log", str(place.log)),
    ]
    if parts:
        facts += [
            ("pages", f"{parts.site.url}/ok /slow /flaky /down"),
            ("sync", f"{parts.site.url}/customers to {place.files}/"),
        ]
        facts += [("containers", parts.containers)]
    jobq = _program()
    tries = [
        "job list",
        "workflow trigger demo-customers" if parts else "enqueue heartbeat https://example.org",
        "job why ID",
    ]
    lines = [f"jobq {version('jobq')}: {what}, in one process. Ctrl-C stops it.", ""]
    lines += [f"  {name:<11} {plain(text)}" for name, text in facts]
    lines += ["", "In another terminal:", *_same_database(settings)]
    return "\n".join([*lines, *(f"  {jobq} {command}" for command in tries), ""])


def _same_database(settings: Settings) -> list[str]:
    """What another terminal has to set, so that jobq there means this database."""
    if settings.database_url == Settings.model_fields["database_url"].get_default(call_default_factory=True):
        return []
    return [f"  export JOBQ_DATABASE_URL={shlex.quote(mask_url(settings.database_url))}"]


def _program() -> str:
    """How this program is called from where the user is."""
    own = Path(sys.argv[0])
    found = shutil.which("jobq")
    if own.name != "jobq" or (found is not None and Path(found).resolve() == own.resolve()):
        return "jobq"
    return os.path.relpath(own) if own.is_absolute() else str(own)


# --- the demo's parts --------------------------------------------------------------------------------------------------


class _Demo:
    """The site, the workflows and the application, as long as the block lasts."""

    def __init__(self, jobq: JobQ, screen: _Screen, folder: Path) -> None:
        self._jobq, self._screen, self._folder = jobq, screen, folder
        self.site = demonstration.Site()
        self._application = demonstration.Application(jobq, self.site.url)
        self.containers = ""

    def __enter__(self) -> _Demo:
        self.site.start()
        demonstration.create_workflows(self._jobq, self.site.url)
        demonstration.create_sync_workflow(self._jobq, self.site.url, self._folder)
        self.containers = self._try_containers(pull=False)
        self._application.start()
        return self

    def _try_containers(self, *, pull: bool) -> str:
        """Create the container workflow; returns what came of it, in one line."""
        settings = self._jobq.settings
        try:
            image = demonstration.find_image(settings, pull=pull)
            demonstration.create_container_workflow(self._jobq, image)
        except demonstration.ImageMissing as error:
            threading.Thread(target=self._pull, name="demo-pull", daemon=True).start()
            return str(error)
        except (demonstration.NoContainers, JobQError) as error:
            return str(error)
        return f"{image} on the Docker engine at {settings.docker_host}"

    def _pull(self) -> None:
        self._screen.say(f"containers: {self._try_containers(pull=True)}")

    def stop(self) -> None:
        """No more work, and nothing more to probe."""
        self._application.stop()

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.site.stop()


# --- signals and logs ------------------------------------------------------------------------------------------------


@contextmanager
def _told_to_stop() -> Iterator[threading.Event]:
    """Set by Ctrl-C or SIGTERM. A second one ends the process on the spot."""
    stopping = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)

    def stop(number: int, _frame: object) -> None:
        stopping.set()
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Above(logging.Handler):
    """Warnings, in one line each, above the tables or between the lines."""

    def __init__(self, screen: _Screen) -> None:
        super().__init__(logging.WARNING)
        self._screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        self._screen.say(f"{record.levelname.lower():<10} {plain(record.getMessage().partition(chr(10))[0])}")


@contextmanager
def _logging(file: Path, settings: Settings, screen: _Screen) -> Iterator[None]:
    """Everything that is logged goes to the file, warnings to the screen too; neither disturbs the tables."""
    try:
        to_file = RotatingFileHandler(file, maxBytes=_LOG_BYTES, backupCount=1, delay=False)
    except OSError as error:
        raise Misconfigured(f"The log {file} cannot be written: {error.strerror}.") from None
    to_file.setFormatter(formatter(text=settings.log_format != "json"))
    handlers: tuple[logging.Handler, ...] = (to_file, _Above(screen))
    root = logging.getLogger()
    for handler in handlers:
        root.addHandler(handler)
    for name in ("jobq", "workers", "scheduler"):
        logging.getLogger(name).setLevel(settings.log_level)
    try:
        yield
    finally:
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()
