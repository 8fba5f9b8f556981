"""One run of everything that is told a secret, by peers and programs that repeat it; then it is looked for everywhere.

Real processes: PostgreSQL, Redis, a Docker engine, a scheduler, a worker at DEBUG, commands. What is found is told by
the place where it is.
"""

import base64
import hmac
import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest

from tests import services
from tests.command import warm
from tests.containers import IMAGE
from tests.fleet import JOBQ, Fleet
from tests.services import wait_until

CORE = "9b1fe4c07d"
SECRET = f'kanari/{CORE}+="zz'
"""Differs in text, in URLs, in JSON and in base64; its core survives every form but base64."""
OWN = {"database": "c0ffee91d3-db", "broker": "c0ffee91d3-mq", "key": "c0ffee91d3-key-of-the-vault"}
"""What the installation itself must keep: two passwords, and the key of the vault."""
SEALED = {("jobq_secrets", "sealed"), ("jobq_hooks", "sealed")}


def traces() -> list[str]:
    """What must not be found: the core, and what stays of it in base64, wherever in a text it began."""
    inside = []
    for offset in range(3):
        encoded = base64.b64encode(b"x" * offset + CORE.encode()).decode()
        inside.append(encoded[-(-offset * 8 // 6) : (len(CORE) + offset) // 3 * 4])
    return [CORE, CORE.encode().hex(), *inside, "c0ffee91d3"]


class _Echo(BaseHTTPRequestHandler):
    """Refuses everything, and repeats what it was told, in every way that a service may."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        told = self.headers.get("Authorization", "")
        if self.path.startswith("/moved"):
            return self._answer(302, "", {"Location": f"http://user:{quote(SECRET)}@b.example/?t={quote(SECRET)}"})
        if self.path.startswith("/items"):
            further = self.path.partition("page=")[2].partition("&")[0]
            number = int(further or 1)
            link = {"Link": f'</items?page={number + 1}&token={quote(SECRET, safe="")}>; rel="next"'}
            time.sleep(0.1)
            return self._answer(200, json.dumps([{"id": number}]), link if number < 3 else {})
        return self._answer(
            401, f"{told} {json.dumps({'you': told})} {quote(told)} {base64.b64encode(told.encode())!r}"
        )

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def _answer(self, status: int, text: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status, f"Refused {SECRET}")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        """Nothing: the test looks at jobq."""


@dataclass
class Run:
    """The fleet, and everything that was seen of it from outside."""

    fleet: Fleet
    docker: services.Docker
    peer: str
    commands: bytearray = field(default_factory=bytearray)
    seen: list[tuple[str, str]] = field(default_factory=list)
    """Where, and what."""

    def see(self, where: str, what: str) -> None:
        self.seen.append((where, what))

    def command(self, *arguments: str, stdin: str = "") -> str:
        """What a command prints, which is looked at too."""
        done = warm().run(list(arguments), self.fleet.environment, self.fleet.folder, stdin)
        self.see(f"jobq {' '.join(arguments)}", done.out + done.err)
        return done.out


@pytest.fixture
def peer() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Echo)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def run(tmp_path: Path, postgres_url: str, docker_engine: services.Docker, peer: str) -> Iterator[Run]:
    with services.Redis() as broker:  # of its own: it wants a password
        broker.ask(f"CONFIG SET requirepass {OWN['broker']}\r\n".encode())
        database_url = postgres_url.replace("postgres@", f"postgres:{OWN['database']}@")
        broker_url = broker.url.replace("://", f"://:{OWN['broker']}@")
        with (
            socket.create_connection(("127.0.0.1", broker.port)) as monitor,
            Fleet(
                tmp_path, database_url, broker_url, policy={"probe_networks": ["127.0.0.0/8"]},
                plugins=["tests.kinds:TellExecutor"], secret_key=OWN["key"], docker_host=docker_engine.url,
                log_level="DEBUG",
            ) as fleet,
        ):  # fmt: skip
            found = Run(fleet, docker_engine, peer)
            monitor.sendall(f"AUTH {OWN['broker']}\r\nMONITOR\r\n".encode())
            threading.Thread(target=_watch, args=(monitor, found), daemon=True).start()
            fleet.scheduler()
            fleet.worker("container:4,heartbeat:10,sync:4,replication:20,tell:10")
            yield found


def _watch(monitor: socket.socket, run: Run) -> None:
    """Every command that Redis gets, with all its arguments."""
    with suppress(OSError):
        while piece := monitor.recv(1 << 16):
            run.commands += piece


# --- what is told the secret ------------------------------------------------------------------------------------------

PRINTS = """
secret=$(cat /run/secrets/token)
echo "plain $secret"; echo "$secret" >&2
base64 /run/secrets/token
printf 'user:%s' "$secret" | base64
echo "$secret" | sed 's/"/\\\\"/g; s/^/{"json": "/; s/$/"}/'
od -An -v -tx1 /run/secrets/token | tr -d ' \\n'; echo
printf '%s' "$secret" | sed 's|/|%2F|g; s|+|%2B|g; s|=|%3D|g; s|"|%22|g'; echo
dd if=/dev/zero bs=16370 count=1 2>/dev/null | tr '\\0' x; echo "$secret behind the cut"
sleep 2
exit 3
"""


def work(run: Run) -> list[Any]:
    """A job of every kind, most of them failing."""
    jobq, peer = run.fleet.jobq, run.peer
    token = {"type": "http", "secrets": {"token": "canary"}}
    bearer = {"auth": {"type": "bearer", "secret": "token"}}
    basic = {"auth": {"type": "basic", "user": "jobq", "secret": "token"}}
    source = {**token, "config": {"url": f"{peer}/items", "pagination": {"type": "link"}, **bearer}}
    targets = [
        {"name": "bearer", **token, "config": {"url": f"{peer}/bearer/{{key}}", **bearer}},
        {"name": "basic", **token, "config": {"url": f"{peer}/basic/{{key}}", **basic}},
        {"name": "table", "type": "sql", "secrets": {"dsn": "dsn"}, "config": {"secret": "dsn", "table": "t", "key": "id"}},
    ]  # fmt: skip
    once = {"retry": {"max_attempts": 1}}
    confidential = {"secret_headers": {"Authorization": "canary", "X-Token": "canary"}}
    return [
        jobq.enqueue({"image": IMAGE, "command": ["sh", "-c", PRINTS], "memory": "32MB",
                      "secrets": {"token": "canary"}}, kind="CONTAINER"),
        jobq.enqueue({"image": IMAGE, "command": ["true"], "registry_secret": "canary"}, kind="CONTAINER"),
        *(jobq.enqueue({"endpoint": f"{peer}/{path}", **confidential, **more}, kind="HEARTBEAT", **once)
          for path, more in (("moved", {}), ("no", {}), ("no", {"expected_status_code": 401, "body_contains": "nothing"}))),
        *(jobq.enqueue({"secrets": {"it": "canary"}, "how": how}, kind="TELL", **once) for how in ("raise", "return")),
        jobq.enqueue({"domain": "things", "source": source, "targets": targets, "batch_size": 1}, kind="SYNC", **once),
        jobq.enqueue({"domain": "others", "source": {**source, "config": {"url": f"{peer}/no", **basic}}}, kind="SYNC",
                     **once),
        jobq.enqueue({"domain": "tables", "source": {"type": "sql", "secrets": {"dsn": "dsn"}, "config": {
            "secret": "dsn", "table": "t", "key": "id"}}}, kind="SYNC", **once),
    ]  # fmt: skip


@pytest.mark.timeout(300)
def test_a_secret_is_nowhere_but_sealed_in_its_own_table(run: Run) -> None:
    run.command("secret", "set", "canary", stdin=SECRET)
    server = run.fleet.jobq.settings.database_url.rpartition("@")[2].partition("/")[0]
    dsn = f"postgresql://nobody:{quote(SECRET, safe='')}@{server}/none?application_name={quote(SECRET)}"
    run.command("secret", "set", "dsn", stdin=dsn)
    jobs = work(run)
    wait_until(run.docker.containers, 30, what="a container")
    for container in run.docker.containers():
        run.see("docker inspect", run.docker.request("GET", f"/containers/{container}/json")[1].decode())
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            run.see("ps", process.read_bytes().decode(errors="replace"))
        except OSError:
            continue
    token = send_to_a_hook(run)
    run.fleet.wait_until_done(90)
    check_that_the_secret_came_through(run, jobs)
    look_with_commands(run)
    look_into_tables(run)
    assert b'"LPUSH" "jobq.tell"' in run.commands  # the monitor saw messages
    run.see("redis", run.commands.decode(errors="replace"))
    run.see("logs", "\n".join(file.read_text() for file in run.fleet.folder.glob("*.log")))

    looked_for = [*traces(), token]
    found = [(where, trace) for where, what in run.seen for trace in looked_for if trace in what]
    for where, what in run.seen:  # where it is, for whoever has to mend it
        for trace in looked_for:
            if trace in what:
                at = what.index(trace)
                print(f"{where}: …{what[max(0, at - 150) : at + 60]!r}…")
    assert not found
    places = {where.partition(" ")[0] for where, _ in run.seen}
    assert places >= {"redis", "docker", "ps", "logs", "jobq", "jobq_jobs", "jobq_attempts", "jobq_job_logs"}


def send_to_a_hook(run: Run) -> str:
    """Another system starts a job by a hook that is signed with the secret, and is refused, too. What the token ends in."""
    jobq = run.fleet.jobq
    flow = jobq.create_workflow(
        {"endpoint": f"{run.peer}/hooked"}, kind="HEARTBEAT", name="hooked", retry={"max_attempts": 1}
    )
    hook = jobq.hooks.create(flow.id, "canary", signature="hub", secret=SECRET, envelope=True)
    process = run.fleet.start(str(JOBQ), "api", "--port", "0")
    listens = re.compile(r"listens on http://127.0.0.1:(\d+)")
    port = wait_until(lambda: listens.search(run.fleet.logs()), 30, what="the API to listen")[1]
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=20)
    for signature, status in (
        (hmac.new(SECRET.encode(), b"{}", "sha256").hexdigest(), 202),
        (SECRET.encode().hex(), 401),
    ):
        headers = {"X-Hub-Signature-256": f"sha256={signature}", "Authorization": f"Bearer {SECRET.encode().hex()}"}
        connection.request("POST", hook.path, b"{}", headers)
        answer = connection.getresponse()
        run.see("the API's answer", f"{answer.headers} {answer.read().decode()}")
        assert answer.status == status
    connection.close()
    run.command("workflow", "hook", "list", "hooked")
    run.command("audit", "--all", "--json")
    process.terminate()
    process.wait(20)
    return hook.token[-28:]


def check_that_the_secret_came_through(run: Run, jobs: list[Any]) -> None:
    """It was there, and repeated: a run in which nobody knew it proves nothing."""
    container, login, *_ = (run.fleet.jobq.get(job.id) for job in jobs)
    assert container.error_class == "exit_3", container
    assert "holds no login" in (login.message or "")
    lines = [line.text for line in run.fleet.jobq.logs(container.id)]
    assert len(lines) == 8, lines
    assert sum("***" in line for line in lines) == 8, lines
    messages = {row[0] for row in run.fleet.ask("SELECT message FROM jobq_attempts WHERE message IS NOT NULL")}
    assert sum("***" in message for message in messages) >= 4, messages
    assert run.fleet.ask("SELECT count(*) FROM jobq_entities")[0][0] == 3  # its pages were found by URLs that hold it


def look_with_commands(run: Run) -> None:
    jobq, shown = run.fleet.jobq, set()
    for job_id, kind in run.fleet.ask("SELECT id, kind FROM jobq_jobs ORDER BY id"):
        run.see("jobq.details", json.dumps(jobq.details(job_id), default=str))
        if kind == "SYNC":
            run.see("jobq.exports", f"{jobq.exports(job_id).items} {jobq.problems(job_id)}")
        run.see("jobq.why", f"{jobq.get(job_id)} {jobq.why(job_id)} {[*jobq.attempts(job_id), *jobq.logs(job_id)]}")
        if kind not in shown:  # commands cost a second each: one of each kind is enough
            run.command("job", "show", str(job_id))
        shown.add(kind)
        if kind in {"CONTAINER", "SYNC"} and run.fleet.jobq.get(job_id).error_class in {"exit_3", "partial"}:
            run.command("job", "logs", str(job_id))
    for words in ("secret list", "doctor", "config"):
        run.command(*words.split())


def look_into_tables(run: Run) -> None:
    """Every column of every row, as the database's own reflection names them."""
    with psycopg.connect(run.fleet.jobq.settings.database_url) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        for (table,) in tables:
            for (row,) in connection.execute(f"SELECT to_jsonb(t) FROM {table} t".encode()):
                for column, value in row.items():
                    if (table, column) in SEALED:
                        assert SECRET not in (value or "")
                        continue
                    run.see(f"{table} {column}", _readable(value))


def _readable(value: Any) -> str:
    """Bytes, which PostgreSQL writes as hex in JSON, as text."""
    if isinstance(value, str) and value.startswith("\\x"):
        return bytes.fromhex(value[2:]).decode("latin-1")
    return json.dumps(value, ensure_ascii=False)
