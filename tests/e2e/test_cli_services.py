"""The whole way with real processes: `jobq scheduler` and `jobq worker` on Redis, and what a user sees meanwhile."""

import json
import signal
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.command import Command
from tests.services import wait_until

pytestmark = pytest.mark.timeout(300)
SOON = 60  # seconds: other tests may share the machine


class Site:
    """A web server: `/` answers at once, `/missing` with 404, `/slow` when the test lets it go."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        site = self

        class Page(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/slow":
                    site.let_go.wait(SOON)
                self.send_response(404 if self.path == "/missing" else 200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"ok")

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        class Quiet(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                """A canceled probe leaves while it is answered."""

        self.server = Quiet(("127.0.0.1", 0), Page)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def __getitem__(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/{path}"

    def close(self) -> None:
        self.let_go.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.close()


@pytest.fixture
def command(database_url: str, redis_url: str, tmp_path: Path) -> Iterator[Command]:
    command = Command(
        tmp_path, is_warm=True, JOBQ_DATABASE_URL=database_url, JOBQ_BROKER_URL=redis_url,
        JOBQ_POLICY__PROBE_NETWORKS='["127.0.0.0/8"]', JOBQ_DOCKER_HOST="unix:///nonexistent.sock",
        JOBQ_DRAIN_TIMEOUT="1",
    )  # fmt: skip
    yield command
    command.close()


def start_worker(command: Command, queues: str = "heartbeat:10") -> subprocess.Popen[bytes]:
    """A worker, once it is listed."""
    process = command.start("worker", "-Q", queues)
    wait_until(lambda: live(command), SOON, 0.5, "the worker to be listed")
    return process


def live(command: Command) -> list[str]:
    return [worker["id"] for worker in command.ok("worker", "list", "--json").items]


def status(command: Command, job: str) -> str:
    found = command.ok("job", "show", job, "--json").document
    return f"{found['status']}·{found['reason']}"


def end(command: Command, *processes: subprocess.Popen[bytes], number: signal.Signals = signal.SIGTERM) -> None:
    """Tell services to end: they exit 0, and all that they said is one JSON document a line."""
    for process in processes:
        process.send_signal(number)
    for process in processes:
        assert process.wait(SOON) == 0, command.printed(process, "err")
        lines = [json.loads(line) for line in command.printed(process, "err").splitlines()]
        assert all({"event", "level", "timestamp"} <= line.keys() for line in lines)
        assert not [line for line in lines if "exception" in line]


def test_a_user_watches_probes_from_the_start_of_the_services_to_their_end(command: Command, site: Site) -> None:
    scheduler, worker = command.start("scheduler"), start_worker(command)

    good = command.ok("enqueue", "heartbeat", site[""], "--name", "good", "--wait", "--wait-timeout", str(SOON))
    job, ended = good.out.splitlines()
    assert ended.startswith("COMPLETED·succeeded in ")
    page = command.ok("job", "show", job).out
    assert page.startswith("good  COMPLETED·succeeded\n")
    assert "attempt 1  COMPLETED·succeeded after " in page
    assert "  first_byte  " in page
    assert command.ok("job", "logs", job).out
    assert "Ended COMPLETED·succeeded" in command.ok("job", "why", job).out

    bad = command("enqueue", "heartbeat", site["missing"], "--max-attempts", "1", "--wait", "--wait-timeout", str(SOON))
    assert (bad.code, bad.err) == (1, "")
    assert "FAILED·unexpected_status" in bad.out
    assert "404" in bad.out
    expected = command.job("enqueue", "heartbeat", site["missing"], "--expect", "404")
    assert command.ok("job", "wait", expected, "--json").document["status"] == "COMPLETED"

    slow = command.job("enqueue", "heartbeat", site["slow"], "--timeout", "120")
    wait_until(lambda: status(command, slow) == "RUNNING·executing", SOON, 0.5, "the slow probe to run")
    assert "is executing on" in command.ok("job", "why", slow).out
    command.refused("not_pausable", "job", "pause", slow)
    following = command.start("job", "logs", "-f", slow)
    assert "asked to end" in command.ok("job", "cancel", slow).out
    canceled = command("job", "wait", slow, "--timeout", str(SOON))
    assert canceled.code == 1
    assert canceled.out.startswith("CANCELED·by_user")
    assert following.wait(SOON) == 0

    assert command.ok("queue", "list").out.splitlines()[1].split() == ["heartbeat", "0", "0", "10", "-", "open"]
    assert command.ok("worker", "list").out.splitlines()[1].split()[1] == "live"
    checks = {check["part"]: check for check in command.ok("doctor", "--json").document["checks"]}
    assert {checks[part]["state"] for part in ("database", "migrations", "broker", "scheduler", "workers")} == {"ok"}
    assert checks["docker"]["state"] == "warning"
    assert "CONTAINER" in checks["docker"]["text"]

    end(command, scheduler, worker)
    assert live(command) == []
    assert command.ok("worker", "list", "--all", "--json").items[0]["state"] == "stopped"


def test_a_job_that_a_schedule_made_cannot_be_paused(command: Command, site: Site) -> None:
    spec = json.dumps({"endpoint": site[""]})
    command.ok("workflow", "create", "often", "--kind", "heartbeat", "--spec", spec, "--interval", "1")
    scheduler = command.start("scheduler")
    made = wait_until(
        lambda: command.ok("job", "list", "--trigger", "automatic", "--json").items, SOON, 0.5, "a job of the schedule"
    )
    done = command.refused("not_pausable", "job", "pause", made[-1]["id"])
    assert "Pause its workflow instead" in done.err
    worker = start_worker(command)
    completed = ["job", "list", "--workflow", "often", "--status", "completed", "--json"]
    wait_until(lambda: command.ok(*completed).items, SOON, 0.5, "a slot to be served")
    end(command, scheduler, worker, number=signal.SIGINT)


def test_a_worker_told_to_end_gives_its_job_back_at_no_charge(command: Command, site: Site) -> None:
    scheduler, worker = command.start("scheduler"), start_worker(command)
    slow = command.job("enqueue", "heartbeat", site["slow"], "--timeout", "120")
    wait_until(lambda: status(command, slow) == "RUNNING·executing", SOON, 0.5, "the slow probe to run")
    end(command, worker)
    found = command.ok("job", "show", slow, "--json").document
    assert (found["status"], found["failures"]) == ("PENDING", 0)
    assert [(one["outcome"], one["charged"]) for one in found["attempts"]] == [("DRAINED", False)]
    assert ", not charged" in command.ok("job", "show", slow).out
    site.let_go.set()
    second = start_worker(command)
    assert "COMPLETED·succeeded" in command.ok("job", "wait", slow, "--timeout", str(SOON)).out
    end(command, scheduler, second)


def test_an_operator_drains_a_worker(command: Command) -> None:
    worker = start_worker(command)
    (found,) = live(command)
    assert command.ok("worker", "drain", found).out == f"{found} is draining\n"
    assert worker.wait(SOON) == 0
    command.refused("not_found", "worker", "drain", found)


@pytest.mark.parametrize("service", [["scheduler"], ["worker", "-Q", "heartbeat:1"]])
def test_a_service_waits_for_a_database_that_is_away_and_can_be_ended_meanwhile(
    service: list[str], tmp_path: Path, redis_url: str
) -> None:
    away = "postgresql://nobody:s3cret@127.0.0.1:1/jobq"
    command = Command(tmp_path, JOBQ_DATABASE_URL=away, JOBQ_BROKER_URL=redis_url)
    try:
        waiting = command.start(*service)
        said = wait_until(lambda: command.printed(waiting, "err"), SOON, what="the service to say that it waits")
        assert "waiting for the database" in json.loads(said.splitlines()[0])["event"]
        assert "s3cret" not in said
        assert waiting.poll() is None
        end(command, waiting)
    finally:
        command.close()
