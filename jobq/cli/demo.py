"""The demo of ``jobq dev --demo``: a small site to probe, workflows that do so, and an application with work of its own."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import tarfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import ClassVar

from jobq import Container, Every, Heartbeat, JobQ, RetryPolicy
from jobq.errors import JobQError
from jobq.settings import Settings
from jobq.store.database import Database

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.0/8"
OWN_IMAGE = "jobq-demo:latest"
IMAGES = (OWN_IMAGE, "busybox:latest", "alpine:latest")
"""Any of them will do for an echo. Where there is none, the first is made of this machine's busybox, or one is pulled."""
_PULLED = IMAGES[1]
NO_ADDRESS = "C07"
"""The customer whom the newsletter refuses most of the time."""
_NAMES = (
    *("Ada", "Alan", "Barbara", "Donald", "Edsger", "Frances", "Grace", "Hedy", "Ivan", "Jean"),
    *("Ken", "Leslie", "Margaret", "Niklaus", "Olga", "Peter", "Radia", "Sophie", "Tony", "Ursula"),
)
_PULL_WITHIN = 60.0
_ENGINE_WITHIN = 3.0


# --- a site to probe -------------------------------------------------------------------------------------------------


class Site:
    """A free port of this machine. Pages: /ok, /slow, /flaky (fails every third time) and /down (503).

    And a service: /customers lists some, of which a few change from one time to the next; /subscribers takes them, but
    rests for a second at each fifth, and takes one of them every third time only.
    """

    def __init__(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Pages)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="demo-site", daemon=True)

    def start(self) -> None:
        """Serve until ``stop``."""
        self._thread.start()

    def stop(self) -> None:
        """Serve no more."""
        self._server.shutdown()
        self._server.server_close()


class _Pages(BaseHTTPRequestHandler):
    _asked: ClassVar[count[int]] = count(1)
    _listed: ClassVar[count[int]] = count()
    _refused: ClassVar[count[int]] = count(1)
    _put: ClassVar[count[int]] = count(1)
    _rests_until: ClassVar[float] = 0.0

    def do_GET(self) -> None:
        if self.path == "/customers":
            return self._send(200, json.dumps(_customers(next(self._listed))), "application/json")
        return self._send(*self._answer())

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if next(self._put) % 5 == 0:
            _Pages._rests_until = time.monotonic() + 1
        if time.monotonic() < self._rests_until:
            return self._send(429, "not so fast")
        if self.path == f"/subscribers/{NO_ADDRESS}" and next(self._refused) % 3:
            return self._send(422, "no such address")
        return self._send(201, "subscribed")

    def _send(self, status: int, text: str, kind: str = "text/plain; charset=utf-8") -> None:
        body = f"{text}\n".encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if status == 429:
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(body)

    def _answer(self) -> tuple[int, str]:
        match self.path:
            case "/ok":
                return 200, "all is well"
            case "/slow":
                time.sleep(0.8)
                return 200, "all is well, but it took a while"
            case "/flaky":
                return (500, "not this time") if next(self._asked) % 3 == 0 else (200, "all is well, for now")
            case "/down":
                return 503, "down until further notice"
            case _:
                return 404, "pages: /ok /slow /flaky /down"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the name that the base class gave it
        log.debug(format, *args)


def _customers(times: int) -> list[dict[str, object]]:
    """Twenty; each time, eight of them have visited the shop once more."""
    return [
        {"id": f"C{number:02}", "first": name, "active": number % 10 != 0, "visits": (2 * times + number) // 5}
        for number, name in enumerate(_NAMES, 1)
    ]


# --- workflows -------------------------------------------------------------------------------------------------------


def create_workflows(jobq: JobQ, site: str) -> None:
    """Probes of the site every few seconds, and one that runs by hand only."""
    never_again = RetryPolicy(max_attempts=1)
    soon_again = RetryPolicy(max_attempts=3, initial=timedelta(seconds=1))
    jobq.create_workflow(
        Heartbeat(endpoint=f"{site}/ok", body_contains="well"), name="demo-front-page", schedule=Every(seconds=2)
    )
    jobq.create_workflow(Heartbeat(endpoint=f"{site}/slow"), name="demo-slow-page", schedule=Every(seconds=5))
    jobq.create_workflow(
        Heartbeat(endpoint=f"{site}/flaky"), name="demo-flaky-page", schedule=Every(seconds=3), retry=soon_again
    )
    jobq.create_workflow(
        Heartbeat(endpoint=f"{site}/down"), name="demo-page-down", schedule=Every(seconds=4), retry=never_again,
        max_consecutive_job_failures_allowed=4,
    )  # fmt: skip
    jobq.create_workflow(Heartbeat(endpoint=f"{site}/ok"), name="demo-by-hand")


def create_sync_workflow(jobq: JobQ, site: str, folder: Path) -> None:
    """Customers of the site go into a table and into CSV files in the folder, and to the site's subscribers."""
    shop = f"sqlite:///{folder}/shop.db"
    with closing(Database(shop)) as database, database.begin() as conn:
        conn.exec_driver_sql("CREATE TABLE customers (id TEXT PRIMARY KEY, name TEXT, visits INTEGER)")
    spec = {
        "domain": "customers",
        "source": {"type": "http", "config": {"url": f"{site}/customers"}},
        "conditions": ["active"],
        "mapping": {"id": "id", "name": "join(' ', [first, id])", "visits": {"path": "visits", "type": "integer"}},
        "targets": [
            {"name": "table", "type": "sql", "config": {"url": shop, "table": "customers", "key": "id"}},
            {"name": "files", "type": "csv", "config": {"area": f"{folder}/files"}},
            {
                "name": "subscribers", "type": "http", "config": {"url": f"{site}/subscribers/{{key}}"},
                "mapping": {"name": "name"}, "after": ["table"],
            },
        ],
    }  # fmt: skip
    jobq.create_workflow(
        spec, kind="SYNC", name="demo-customers", schedule=Every(seconds=15), max_consecutive_job_failures_allowed=10
    )
    jobq.trigger("demo-customers")  # nobody likes to wait for the first one


def create_container_workflow(jobq: JobQ, image: str) -> None:
    """An echo in a container, every ten seconds."""
    greeting = Container(image=image, command=["echo", "hello from a container"], memory="32MB", pull="never")  # type: ignore[arg-type]
    jobq.create_workflow(greeting, name="demo-container", schedule=Every(seconds=10), overlap="skip")


# --- an application --------------------------------------------------------------------------------------------------


class Application:
    """Stands for the user's own program: every few seconds it enqueues jobs, some more urgent than others."""

    def __init__(self, jobq: JobQ, site: str) -> None:
        self._jobq, self._page = jobq, Heartbeat(endpoint=f"{site}/ok")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="demo-application", daemon=True)

    def start(self) -> None:
        """Enqueue until ``stop``."""
        self._thread.start()

    def stop(self) -> None:
        """Enqueue no more."""
        self._stopping.set()
        self._thread.join(2.0)

    def _run(self) -> None:
        in_a_while = datetime.now(UTC) + timedelta(seconds=15)
        self._try(lambda: self._jobq.enqueue(self._page, name="app-scheduled-job", scheduled_at=in_a_while))
        while not self._stopping.wait(6.0):
            for name, priority in (("app-low-priority", 0), ("app-normal", 4), ("app-urgent", 9)):
                self._try(lambda name=name, priority=priority: self._enqueue(name, priority))  # type: ignore[misc]

    def _enqueue(self, name: str, priority: int) -> None:
        self._jobq.enqueue(self._page, name=name, priority=priority)

    @staticmethod
    def _try(work: Callable[[], object]) -> None:
        try:
            work()
        except JobQError as error:
            log.warning("the demo's application could not enqueue: %s", error)


# --- containers, where there is a Docker engine ------------------------------------------------------------------------


def find_image(settings: Settings, *, pull: bool) -> str:
    """An image that the Docker engine has or can be given, or (``pull``) gets. Raises NoContainers, which says why not."""
    return asyncio.run(_find_image(settings, pull=pull))


class NoContainers(Exception):
    """The demo goes on without containers; the text says why, and what would help."""


class ImageMissing(NoContainers):
    """There is an engine, but no image yet: it has to be pulled."""


async def _find_image(settings: Settings, *, pull: bool) -> str:
    from workers.container.engine import DockerEngine, EngineAway, EngineError

    engine = DockerEngine(settings.docker_host, patience=_ENGINE_WITHIN)
    try:
        for image in IMAGES:
            if await engine.has_image(image):
                return image
        if tar := _root_of_busybox():
            await engine.import_image(OWN_IMAGE, tar)
            return OWN_IMAGE
        if pull:
            await engine.pull(_PULLED, deadline=_PULL_WITHIN)
            return _PULLED
    except EngineAway as error:
        raise NoContainers(_absence(settings.docker_host)) from error
    except EngineError as error:
        what = f"{_PULLED} cannot be pulled" if pull else f"the Docker engine at {settings.docker_host} is of no use"
        raise NoContainers(f"{what}: {error}") from error
    finally:
        await engine.close()
    raise ImageMissing(f"{_PULLED} is being pulled; the workflow follows")


def _root_of_busybox() -> bytes | None:
    """A root file system that can echo, where this machine has a busybox that needs no libraries."""
    found = shutil.which("busybox")
    binary = Path(found).read_bytes() if found else b""
    if not binary or b"/ld-linux" in binary or b"/ld-musl" in binary:
        return None
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        program = tarfile.TarInfo("bin/busybox")
        program.size, program.mode = len(binary), 0o755
        tar.addfile(program, BytesIO(binary))
        for name in ("echo", "sh"):
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    return buffer.getvalue()


def _absence(where: str) -> str:
    return f"no Docker engine at {where} (install docker.io and start it, or set JOBQ_DOCKER_HOST)"
