"""`jobq dev`, as somebody meets it: what it prints, that it ends when told to, what it says when it cannot start."""

import os
import pty
import re
import select
import signal
import sqlite3
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ

import pytest

from jobq import JobQ, Reason, Settings, Status
from tests import services
from tests.command import JOBQ, Command
from tests.services import wait_until

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return somebody(tmp_path)


def somebody(tmp_path: Path) -> dict[str, str]:
    """A user without settings, with a folder of their own, and without a Docker engine."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("JOBQ_", "DOCKER_"))}
    return clean | {
        "XDG_DATA_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path),
        "JOBQ_DOCKER_HOST": f"unix://{tmp_path}/docker.sock",
    }  # fmt: skip


class Dev:
    """A running `jobq dev` that writes lines."""

    def __init__(self, environment: dict[str, str], output: Path, *arguments: str) -> None:
        self.output = output
        with output.open("wb") as stream:
            self.process = services.child(
                [JOBQ, "dev", *arguments], env=environment, stdout=stream, stderr=subprocess.STDOUT
            )

    @property
    def text(self) -> str:
        return self.output.read_text()

    def wait_for(self, pattern: str, timeout: float = 40) -> re.Match[str]:
        """Wait until it has printed a line like this."""

        def found() -> re.Match[str] | None:
            assert self.process.poll() is None, self.text
            return re.search(pattern, self.text, re.MULTILINE)

        try:
            match = wait_until(found, timeout=timeout, what=pattern)
        except TimeoutError as error:
            raise AssertionError(self.text) from error
        assert match is not None
        return match

    def stop(self, number: int) -> int:
        """Send a signal; the exit code, which takes a few seconds, of which a busy machine makes more."""
        self.process.send_signal(number)
        return self.process.wait(30)


@pytest.fixture
def start(environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Dev]]:
    started: list[Dev] = []

    def start(*arguments: str, **more: str) -> Dev:
        started.append(Dev(environment | more, tmp_path / f"output-{len(started)}", *arguments))
        return started[-1]

    yield start
    for dev in started:
        dev.process.kill()
        dev.process.wait()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    """One demo for the tests that only watch: its story takes a quarter of a minute."""
    folder = tmp_path_factory.mktemp("demo")
    dev = Dev(somebody(folder), folder / "output", "--demo")
    yield dev
    dev.process.kill()
    dev.process.wait()


def test_what_the_header_says_to_try_works(demo: Dev) -> None:
    url = demo.wait_for(r"^  export JOBQ_DATABASE_URL=(\S+)$")[1]
    commands = [line.split()[1:] for line in demo.text.splitlines() if re.match(r"  \S*jobq ", line)]
    command = Command(demo.output.parent, is_warm=True, JOBQ_DATABASE_URL=url)

    with JobQ(url) as jobq:
        wait_until(lambda: jobq.list().items, timeout=30, what="a job")
        job = str(jobq.list().items[0].id)
    assert len(commands) == 3
    for words in commands:
        command.ok(*[job if word == "ID" else word for word in words])


def test_the_demo_tells_its_story(demo: Dev) -> None:
    demo.wait_for(r"^jobq \S+: the demo, in one process\. Ctrl-C stops it\.$")
    demo.wait_for(
        r"^  containers  no Docker engine at unix:\S+ \(install docker\.io and start it, or set JOBQ_DOCKER_HOST"
    )
    demo.wait_for(r"^completed  demo-front-page +[\d.]+ ms  200 OK")
    demo.wait_for(r"^completed  demo-slow-page ")
    demo.wait_for(r"^failed     demo-customers .* 1 of 54 replications failed$")
    demo.wait_for(r"^completed  app-urgent ")
    demo.wait_for(r"^completed  demo-flaky-page .*\(attempt 2\)$")
    demo.wait_for(r"^failed     demo-page-down .* got 503 Service Unavailable$")
    demo.wait_for(r"^completed  app-scheduled-job ")
    demo.wait_for(r"^terminated demo-page-down +the workflow: 4 jobs in a row failed$")
    assert "Traceback" not in demo.text
    assert "warning" not in demo.text.lower()


def test_customers_of_the_demo_go_into_a_table_into_files_and_slowly_to_subscribers(demo: Dev) -> None:
    url = demo.wait_for(r"^  export JOBQ_DATABASE_URL=(\S+)$")[1]
    folder = Path(demo.wait_for(r"^  sync +http://127\.0\.0\.1:\d+/customers to (\S+)/$")[1])
    assert folder.is_relative_to(demo.output.parent)
    demo.wait_for(r"^failed     demo-customers ")
    with closing(sqlite3.connect(folder / "shop.db")) as shop:
        assert shop.execute("SELECT count(*), min(name) FROM customers").fetchone() == (18, "Ada C01")
    assert len(list((folder / "files").iterdir())) == 18
    with JobQ(url) as jobq:
        first = jobq.list(kinds=frozenset({"SYNC"})).items[-1]
        [refused] = [one for one in jobq.exports(first.id, limit=200).items if one.status == "fail"]
        assert (refused.key, refused.target, refused.error_class) == ("C07", "subscribers", "InvalidPayload")
        assert jobq.fanout(first.id).targets["subscribers"].success == 17
        assert sum(child.requeues for child in jobq.children(first.id, limit=200).items) > 0, "none had to wait"


def test_the_api_is_part_of_it(start: Callable[..., Dev], tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/own.db"
    dev = start("--port", "0", JOBQ_DATABASE_URL=url)
    api = dev.wait_for(r"^  api         (http://127\.0\.0\.1:\d+)/v1$")[1]
    with JobQ(api, settings=Settings()) as remote, JobQ(url) as jobq:
        job = remote.enqueue({"endpoint": "http://169.254.0.1.invalid/"}, kind="HEARTBEAT", retry={"max_attempts": 1})
        assert remote.wait(job.id, timeout=30).status is jobq.get(job.id).status is Status.FAILED

    second = start("--port", api.rpartition(":")[2], JOBQ_DATABASE_URL=f"sqlite:///{tmp_path}/other.db")
    second.wait_for(r"^  api         not served: port \d+ is taken \(--port names another one, 0 any\)$")
    assert [dev.stop(signal.SIGINT), second.stop(signal.SIGTERM)] == [0, 0]


def test_the_demo_starts_anew_each_time_and_is_alone(start: Callable[..., Dev]) -> None:
    first = start("--demo")
    url = first.wait_for(r"JOBQ_DATABASE_URL=(\S+)$")[1]
    first.wait_for(r"^completed ")

    second = start("--demo")
    assert second.process.wait(60) == 2
    assert "A demo runs already (process" in second.text
    began = time.monotonic()
    assert first.stop(signal.SIGINT) == 0
    assert time.monotonic() - began < 10
    assert first.text.splitlines()[-1].startswith("stopped; the database stays: sqlite:///")
    assert "Traceback" not in first.text

    third = start("--demo")
    assert third.wait_for(r"JOBQ_DATABASE_URL=(\S+)$")[1] == url
    third.wait_for(r"^completed ")
    assert third.stop(signal.SIGTERM) == 0


def test_a_running_container_does_not_hold_up_the_end(
    start: Callable[..., Dev], docker_engine: services.Docker, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/own.db"
    dev = start(JOBQ_DATABASE_URL=url, JOBQ_DOCKER_HOST=docker_engine.url)
    dev.wait_for(r"^  database    sqlite:")
    with JobQ(url) as jobq:
        script = ["sh", "-c", "echo begun; sleep 600"]
        job = jobq.enqueue({"image": docker_engine.image, "command": script}, kind="CONTAINER", timeout="PT15M")
        wait_until(lambda: jobq.get(job.id).reason is Reason.EXECUTING, timeout=20, what="the container")
        began = time.monotonic()
        assert dev.stop(signal.SIGINT) == 0
        assert time.monotonic() - began < 20  # the container has ten minutes to go

        # Started again, it takes the container over where it is: nothing is run twice.
        again = start(JOBQ_DATABASE_URL=url, JOBQ_DOCKER_HOST=docker_engine.url)
        again.wait_for(r"^  database    sqlite:")
        wait_until(lambda: jobq.get(job.id).worker_id is not None, timeout=20, what="a new owner")
        assert len(docker_engine.containers()) == 1
        jobq.cancel(job.id)
        again.wait_for(r"^canceled ")
        assert jobq.get(job.id).attempt == 1
        assert again.stop(signal.SIGINT) == 0


def test_containers_run_where_there_is_an_engine(start: Callable[..., Dev], docker_engine: services.Docker) -> None:
    services.require("busybox")
    dev = start("--demo", JOBQ_DOCKER_HOST=docker_engine.url)

    dev.wait_for(r"^  containers  \S+ on the Docker engine at ")
    dev.wait_for(r"^completed  demo-container ")
    assert dev.stop(signal.SIGINT) == 0
    assert docker_engine.containers() == []


@pytest.mark.parametrize(
    ("environment_of_it", "said"),
    [
        ({"XDG_DATA_HOME": "/dev/null"}, "The folder /dev/null/jobq cannot be used: Not a directory"),
        ({"JOBQ_DATABASE_URL": "sqlite:////dev/null/x.db"}, "The folder /dev/null cannot be used"),
        ({"JOBQ_DATABASE_URL": "mysql://here"}, "is no address of a database that jobq knows"),
        ({"JOBQ_DATABASE_URL": "sqlite://"}, "is no address of a database that jobq knows"),
    ],
)
def test_it_says_why_it_cannot_start(start: Callable[..., Dev], environment_of_it: dict[str, str], said: str) -> None:
    dev = start(**environment_of_it)

    assert dev.process.wait(60) == 2
    assert said in dev.text
    assert "Traceback" not in dev.text


# --- on a terminal -----------------------------------------------------------------------------------------------------


@contextmanager
def on_terminal(environment: dict[str, str], rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """`jobq dev --demo` on a terminal of that size: its pid, and the terminal's other end."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(JOBQ, [str(JOBQ), "dev", "--demo"], environment | {"TERM": "xterm-256color"})
    ioctl(terminal, TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    try:
        yield pid, terminal
    finally:
        os.close(terminal)


def read_until(terminal: int, *patterns: str, timeout: float = 90) -> str:
    """What was shown until each pattern had come, in any order, or until the other side ended."""
    shown, ends = "", time.monotonic() + timeout
    while not all(re.search(pattern, shown) for pattern in patterns):
        assert time.monotonic() < ends, shown[-3000:]
        if not select.select([terminal], [], [], 0.2)[0]:
            continue
        try:
            shown += ESCAPES.sub("", os.read(terminal, 65536).decode(errors="replace"))
        except OSError:
            return shown
    return shown


def test_on_a_terminal_tables_are_drawn_and_control_c_ends_them(environment: dict[str, str]) -> None:
    with on_terminal(environment, 80, 100) as (pid, terminal):  # a SYNC stays in sight until 40 newer jobs have come
        shown = read_until(
            terminal,
            r"completed +HEARTBEAT +demo-front-page",
            r"(failed|completed) +SYNC +demo-customers",
        )
        assert "REPLICATION" not in shown, "children are the progress of their SYNC"
        for heading in ("workflow", "schedule", "next in", "last job", "message"):
            assert heading in shown
        os.write(terminal, b"\x03")
        rest = read_until(terminal, r"stopped; the database stays")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert "Traceback" not in shown + rest


def test_settings_do_not_reach_into_the_demo(start: Callable[..., Dev], tmp_path: Path) -> None:
    """A policy for production would refuse the demo's probes; its database is no place for a demo."""
    elsewhere = tmp_path / "production.db"
    dev = start(
        "--demo", JOBQ_DATABASE_URL=f"sqlite:///{elsewhere}", JOBQ_BROKER_URL="redis://nowhere.invalid",
        JOBQ_POLICY__MIN_INTERVAL="PT1H",
    )  # fmt: skip

    dev.wait_for(r"^completed  demo-front-page")
    assert not elsewhere.exists()
    assert dev.stop(signal.SIGTERM) == 0
