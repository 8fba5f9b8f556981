"""Every command at least once, as a user without any process running, on SQLite or on PostgreSQL."""

import json
import os
import pty
import signal
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest

from jobq.models import Outcome, Step
from jobq.states import Reason
from jobq.store import logs
from jobq.store.database import Database
from tests import services
from tests.command import JOBQ, Command
from tests.services import wait_until
from tests.stores import Store

WORKFLOWS = """
workflows:
  - name: front-page
    kind: HEARTBEAT
    interval: PT5M
    spec: {endpoint: "https://example.org/"}
  - name: nightly
    kind: CONTAINER
    cron: "30 2 * * MON-FRI"
    timezone: Europe/Berlin
    spec: {image: "alpine:3", command: [sh, -c, "echo hi"]}
"""
NAMELY = {"front-page", "nightly"}


@pytest.fixture
def command(database_url: str, tmp_path: Path) -> Command:
    return Command(tmp_path, is_warm=True, JOBQ_DATABASE_URL=database_url)


@pytest.fixture
def on_sqlite(sqlite_url: str, tmp_path: Path) -> Command:
    return Command(tmp_path, JOBQ_DATABASE_URL=sqlite_url)


# --- jobs ------------------------------------------------------------------------------------------------------------


def test_all_options_of_a_container_job_reach_the_job(command: Command) -> None:
    job = command.job(
        "enqueue", "container", "alpine:3", "--name", "every option", "--queue", "batch", "--priority", "7",
        "--timeout", "PT2M", "--max-attempts", "4", "--retry-initial", "2", "--retry-factor", "3",
        "--retry-maximum", "PT1M", "--retry-jitter", "0.5", "--retry-lost", "--retry-exit-code", "75",
        "--no-retry-exit-code", "2", "--retry-on", "docker_unavailable", "--give-up-on", "invalid",
        "--stale-after", "never", "--dedupe-key", "d1", "--at", "2026-11-30T08:00:00+01:00", "--idempotency-key", "i1",
        "--state", '{"from": "cli"}', "-e", "A=1=2", "--env", "B=", "--memory", "64MB", "--cpus", "0.5", "--pids", "32",
        "--pull", "never", "--user", "1:1", "--workdir", "/w", "--entrypoint", "sh", "--output", "/out",
        "--registry-secret", "registry-login",
        "--", "-c", "echo $A --name",
    )  # fmt: skip
    found = command.ok("job", "show", job, "--json").document
    assert found["spec"] == {
        "image": "alpine:3", "command": ["-c", "echo $A --name"], "entrypoint": ["sh"], "env": {"A": "1=2", "B": ""},
        "memory": 64 * 1024 * 1024, "cpus": 0.5, "pids": 32, "pull": "never", "user": "1:1", "working_dir": "/w",
        "output": "/out", "network": None, "secrets": {}, "files": {}, "registry_secret": "registry-login",
    }  # fmt: skip
    expected = {
        "name": "every option", "queue": "batch", "priority": 7, "timeout": 120.0, "max_attempts": 4,
        "dedupe_key": "d1", "status": "PENDING", "kind": "CONTAINER", "trigger": "MANUAL", "attempts": [],
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected
    again = command.job("enqueue", "container", "alpine:3", "--dedupe-key", "d1")
    assert command.ok("job", "show", again, "--json").document["duplicate_of"] == job


def test_all_options_of_a_heartbeat_reach_the_job(command: Command) -> None:
    done = command.ok(
        "enqueue", "heartbeat", "https://example.org/", "--expect", "204", "--method", "HEAD",
        "-H", "Accept: text/html", "--header", "X-Trace:a:b", "--secret-header", "Authorization: page-token", "--json",
    )  # fmt: skip
    spec = command.ok("job", "show", done.document["id"], "--json").document["spec"]
    assert spec == {
        "endpoint": "https://example.org/", "method": "HEAD", "expected_status_code": 204, "body_contains": None,
        "headers": {"Accept": "text/html", "X-Trace": "a:b"}, "secret_headers": {"Authorization": "page-token"},
    }  # fmt: skip


def test_a_job_of_any_kind_is_enqueued_by_its_spec(command: Command, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text('{"endpoint": "https://example.org/file"}')
    by_file = command.job("enqueue", "heartbeat".upper(), "--spec", f"@{tmp_path}/spec.json")
    by_stdin = command.job("enqueue", "HEARTBEAT", "--spec", "@-", stdin='{"endpoint": "https://example.org/stdin"}')
    ends = [command.ok("job", "show", job, "--json").document["spec"]["endpoint"][-5:] for job in (by_file, by_stdin)]
    assert ends == ["/file", "stdin"]


def test_the_life_of_a_waiting_job(command: Command) -> None:
    job = command.job("enqueue", "heartbeat", "https://example.org/", "--name", "page")
    assert "no live worker for queue heartbeat" in command.ok("job", "why", job).out
    assert command.ok("job", "why", job, "--json").document["status"] == "PENDING"
    assert command.ok("job", "pause", job).out == f"{job} is PENDING·paused\n"
    assert "Paused by a person" in command.ok("job", "why", job).out
    assert command.ok("job", "resume", job).out == f"{job} is PENDING·ready\n"
    command.refused("wait_timeout", "job", "wait", job, "--timeout", "0.1", exit_code=3)
    command.refused(
        "wait_timeout", "enqueue", "heartbeat", "https://example.org/", "--wait", "--wait-timeout", "0.1", exit_code=3
    )
    assert command.ok("job", "cancel", job, "--json").document["reason"] == "by_user"
    assert command("job", "wait", job).code == 1
    assert command.ok("job", "logs", job).out == ""
    assert command.ok("job", "artifacts", job, "--json").items == []
    command.refused("not_found", "job", "artifacts", job, "report.txt")
    again = command.job("job", "retry", job)
    page = command.ok("job", "show", again).out
    assert page.startswith("page  PENDING·ready\n")
    assert ["retry", "of", job] in [line.split() for line in page.splitlines()]


def test_listings_are_filtered_and_paged(command: Command) -> None:
    probes = [command.job("enqueue", "heartbeat", "https://example.org/", "--name", f"n{n}") for n in range(3)]
    box = command.job("enqueue", "container", "alpine", "--name", "box", "--queue", "slow")
    command.ok("job", "cancel", probes[0])

    def ids(*filters: str) -> list[str]:
        return [job["id"] for job in command.ok("job", "list", "--json", *filters).items]

    assert ids() == [box, *reversed(probes)]
    assert ids("--status", "canceled") == ids("--reason", "BY_USER") == [probes[0]]
    assert ids("--kind", "container") == ids("--queue", "slow") == ids("--name", "bo") == [box]
    assert ids("--trigger", "AUTOMATIC") == ids("--until", "2020-01-01T00:00:00Z") == ids("--parent", box) == []
    assert len(ids("--since", "2020-01-01T00:00:00Z", "--trigger", "manual")) == 4
    first = command.ok("job", "list", "--limit", "3", "--json").document
    assert ids("--limit", "3", "--cursor", first["next_cursor"]) == [probes[0]]
    head, *rows = command.ok("job", "list").out.splitlines()
    assert head.split() == ["ID", "STATUS", "KIND", "NAME", "CREATED", "TOOK"]
    assert rows[0].split()[:4] == [box, "PENDING·ready", "CONTAINER", "box"]


def test_a_job_that_ran_is_shown_with_its_attempts_and_its_log(command: Command) -> None:
    """What a worker recorded; the whole way with real workers is in test_cli_services."""
    job = command.job("enqueue", "heartbeat", "https://example.org/", "--max-attempts", "1")
    run_by_hand(command.environment["JOBQ_DATABASE_URL"], UUID(job))
    page = command.ok("job", "show", job).out
    assert page.splitlines()[0].endswith("FAILED·unexpected_status")
    assert "cause        got 503" in page
    assert "connect  ████████████████████                      1 s" in page
    assert "answer                       ████████████████████  1 s" in page
    assert "usage        memory_bytes 2.0 MiB" in page
    assert "got 503" in command.ok("job", "why", job).out
    assert command.ok("job", "logs", job).out == "first\nsecond \\x1b[31m\n"
    assert command.ok("job", "logs", job, "--raw").out == "first\nsecond \x1b[31m\n"
    assert command.ok("job", "logs", job, "--stream", "stderr", "-f").out == "second \\x1b[31m\n"
    assert command.ok("job", "logs", job, "--after", "1", "--attempt", "1").out == "second \\x1b[31m\n"
    stamped = command.ok("job", "logs", job, "-t").out.splitlines()[0]
    assert stamped == "2026-03-01T08:00:00.000000Z first"
    lines = [json.loads(line) for line in command.ok("job", "logs", job, "--json").out.splitlines()]
    assert [line["text"] for line in lines] == ["first", "second \x1b[31m"]
    assert command("job", "wait", job).code == 1


def run_by_hand(url: str, job: UUID) -> None:
    """Claim the job, write its log and record a failure, as a worker does."""
    database = Database(url)
    store = Store(database)
    worker = store.worker({"heartbeat": 5})
    store.promote()
    (claimed,) = store.claim(worker, [job], "heartbeat")
    at = int(datetime(2026, 3, 1, 8, tzinfo=UTC).timestamp()) * 1_000_000
    lines = [(at, "stdout", "first"), (at + 1, "stderr", "second \x1b[31m")]
    store.do(logs.append, [logs.Chunk(job, 1, 1, 20, lines)])
    outcome = Outcome.failed(
        "got 503", error_class="unexpected_status", reason=Reason.UNEXPECTED_STATUS, usage={"memory_bytes": 2097152}
    )
    steps = [Step("connect", 0.0, 1.0), Step("answer", 1.0, 1.0)]
    assert store.end(worker, claimed, outcome, steps=steps) == {job}
    database.close()


# --- workflows -------------------------------------------------------------------------------------------------------


def test_applying_a_file_twice_changes_nothing(command: Command, tmp_path: Path) -> None:
    (tmp_path / "w.yaml").write_text(WORKFLOWS)
    first = command.ok("workflow", "apply", "-f", "w.yaml", "--json").items
    assert {(one["what"], one["workflow"]["name"]) for one in first} == {("created", name) for name in NAMELY}
    assert command.ok("workflow", "apply", "-f", "w.yaml").out == "unchanged front-page\nunchanged nightly\n"
    changed = WORKFLOWS.replace("PT5M", "PT6M")
    assert command.ok("workflow", "apply", "-f", "-", stdin=changed).out == "updated   front-page\nunchanged nightly\n"
    assert command.ok("workflow", "show", "front-page", "--json").document["interval"] == 360.0


def test_a_file_with_a_mistake_changes_nothing(command: Command) -> None:
    bad = WORKFLOWS.replace("alpine:3", "Alpine")
    done = command.refused("invalid_image", "workflow", "apply", "-f", "-", stdin=bad)
    assert "Workflow 2 ('nightly')" in done.err
    assert command.ok("workflow", "list", "--json").items == []
    command.refused("invalid_yaml", "workflow", "apply", "-f", "-", stdin="a: [")
    command.refused("invalid_yaml", "workflow", "apply", "-f", "-", stdin="a: &x [1]\nb: *x")
    command.refused("validation_error", "workflow", "apply", "-f", "nope.yaml")


def test_the_life_of_a_workflow(command: Command) -> None:
    spec = '{"endpoint": "https://example.org/"}'
    create = ["workflow", "create", "page", "--kind", "heartbeat", "--spec", spec, "--interval", "PT1M"]
    made = command.ok(
        *create, "--overlap", "skip", "--misfire", "catch_up", "--misfire-grace", "5", "--max-catch-up", "3",
        "--concurrency", "2", "--max-failures", "5", "--retention", "P1D", "--start-at", "2026-01-01T00:00:00Z", "--json",
    ).document  # fmt: skip
    assert (made["overlap"], made["misfire"], made["misfire_grace"], made["max_catch_up"]) == (
        "skip",
        "catch_up",
        5.0,
        3,
    )
    assert (made["concurrency"], made["max_consecutive_job_failures_allowed"], made["retention"]) == (2, 5, 86400.0)
    assert command.ok("workflow", "list").out.splitlines()[1].split()[:3] == ["page", "ACTIVE", "HEARTBEAT"]
    slots = command.ok("workflow", "preview", "page", "-n", "3", "--json").items
    assert [slot[16:] for slot in slots] == [":00.000000Z"] * 3
    assert len(command.ok("workflow", "preview", "page").out.splitlines()) == 6
    assert "is PAUSED" in command.ok("workflow", "pause", "page").out
    assert "is ACTIVE, next slot in" in command.ok("workflow", "resume", "page").out
    job = command.job(
        "workflow", "trigger", made["id"], "--at", "2026-11-30T08:00:00Z", "--state", "[1]", "--name", "x"
    )
    found = command.ok("job", "show", job, "--json").document
    assert (found["workflow_id"], found["trigger"], found["name"]) == (made["id"], "MANUAL", "x")
    assert [one["id"] for one in command.ok("job", "list", "--workflow", "page", "--json").items] == [job]
    assert "is TERMINATED" in command.ok("workflow", "terminate", "page").out
    assert command.ok("workflow", "list", "--status", "terminated", "--json").items[0]["name"] == "page"
    assert "TERMINATED" in command.ok("workflow", "show", "page").out
    command.refused("has_live_jobs", "workflow", "delete", "page")
    command.ok("job", "cancel", job)
    assert command.ok("workflow", "delete", "page").out == "deleted page\n"
    command.refused("not_found", "workflow", "show", "page")


# --- operating -------------------------------------------------------------------------------------------------------


def test_queues_and_tenants_are_limited_and_listed(command: Command) -> None:
    job = command.job("enqueue", "heartbeat", "https://example.org/")
    command.ok("queue", "pause", "heartbeat")
    assert "jobq queue resume heartbeat" in command.ok("job", "why", job).out
    command.ok("queue", "limit", "heartbeat", "5")
    queue = {"name": "heartbeat", "ready": 1, "in_flight": 0, "slots": 0, "limit": 5, "paused": True}
    assert command.ok("queue", "list", "--json").items == [queue]
    assert command.ok("queue", "list").out.splitlines()[1].split() == ["heartbeat", "1", "0", "0", "5", "paused"]
    command.ok("queue", "resume", "heartbeat")
    command.ok("queue", "limit", "heartbeat", "none")
    assert command.ok("queue", "list", "--json").items == [{**queue, "limit": None, "paused": False}]
    command.ok("tenant", "weight", "ours", "2.5")
    command.ok("tenant", "limit", "ours", "7")
    quota = dict.fromkeys(("waiting", "running", "schedules", "rate", "burst"))
    ours = {"name": "ours", "weight": 2.5, "limit": 7, "in_flight": 0, "quota": quota}
    assert command.ok("tenant", "list", "--json").items == [ours]
    assert command.ok("tenant", "list").out.splitlines()[1].split() == ["ours", "2.5", "7", "0"]
    assert command.ok("worker", "list", "--json").items == []


def test_secrets_come_from_stdin_or_a_file_and_are_never_shown(command: Command, tmp_path: Path) -> None:
    command.refused("secret_key_missing", "secret", "set", "token", stdin="s3cret")
    key = {"JOBQ_SECRET_KEY": "k" * 32}
    command.ok("secret", "set", "token", stdin="s3cret\n", env=key)
    (tmp_path / "value").write_text("line 1\nline 2\n")
    command.ok("secret", "set", "file", "-f", "value", env=key)
    listed = command.ok("secret", "list", "--json", env=key)
    assert {one["name"] for one in listed.items} == {"token", "file"}
    assert "s3cret" not in listed.out + command.ok("secret", "list", env=key).out
    command.ok("secret", "rm", "token", env=key)
    command.refused("not_found", "secret", "rm", "token", env=key)


def test_an_empty_database_is_upgraded_once(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    urls = [f"sqlite:///{tmp_path}/new/jobq.db"]
    if not services.missing(*services.Postgres.programs):
        server: services.Postgres = request.getfixturevalue("postgres_server")
        urls.append(server.url(server.create()))
    for url in urls:
        fresh = Command(tmp_path, is_warm=True, JOBQ_DATABASE_URL=url)
        fresh.refused("schema", "db", "check")
        assert fresh.ok("db", "upgrade").out.startswith("schema none → ")
        assert fresh.ok("db", "upgrade").out.endswith(": nothing to do\n")
        fresh.ok("db", "check")
        fresh.job("enqueue", "heartbeat", "https://example.org/")


def test_prune_deletes_what_ended_and_only_that(command: Command) -> None:
    ended, waits = (command.job("enqueue", "heartbeat", "https://example.org/") for _ in range(2))
    command.ok("job", "cancel", ended)
    assert command.ok("prune").out == "deleted 0 jobs\n"
    assert command.ok("prune", "--older-than", "0").out == "deleted 1 job\n"
    assert [job["id"] for job in command.ok("job", "list", "--json").items] == [waits]
    command.refused("validation_error", "prune", "--older-than", "long")


def test_analytics_tell_what_ended_also_when_it_is_deleted(command: Command) -> None:
    ended = command.job("enqueue", "heartbeat", "https://example.org/")
    command.ok("job", "cancel", ended)
    for _ in range(2):
        (point,) = command.ok("analytics", "--json").document["items"]
        assert (point["jobs"], point["reasons"], point["success_rate"]) == (1, {"by_user": 1}, None)
        row = command.ok("analytics", "--by", "kind", "--last", "PT2H").out.splitlines()[1].split()
        assert row[:5] == ["HEARTBEAT", "1", "0", "0", "1"]
        command.ok("prune", "--older-than", "0")
    assert len(command.ok("analytics", "--bucket", "hour", "--last", "P1D", "--json").document["items"]) in {24, 25}
    command.refused("invalid_range", "analytics", "--last", "P90D", "--bucket", "hour")
    command.refused("validation_error", "analytics", "--last", "long")


def test_a_listing_tells_how_many_there_are(command: Command) -> None:
    for _ in range(3):
        command.job("enqueue", "heartbeat", "https://example.org/")
    assert command.ok("job", "list", "--limit", "1", "--total").err == "3 match.\n"
    assert command.ok("job", "list", "--total", "--json").document["total"] == {"count": 3, "exact": True}


def test_flags_win_over_the_environment_which_wins_over_the_file(on_sqlite: Command, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(
        'tenant = "file"\nenv_id = "file"\nlog_level = "debug"\n[policy]\nimages = ["a"]\n'
    )
    env = {"JOBQ_CONFIG": str(tmp_path / "own.toml"), "JOBQ_ENV_ID": "environment"}
    secret = {"JOBQ_BROKER_URL": "redis://:pa55@h/0", "JOBQ_SECRET_KEY": "s3cret" * 5}
    found = on_sqlite.ok("--tenant", "flag", "config", "--json", env=env | secret)
    values, sources = found.document["values"], found.document["sources"]
    assert (values["tenant"], sources["tenant"]) == ("flag", "flag")
    assert (values["env_id"], sources["env_id"]) == ("environment", "environment")
    assert (values["policy.images"], sources["policy.images"]) == (["a"], "file")
    assert (values["lease"], sources["lease"]) == ("PT30S", "default")
    for text in (found.out, on_sqlite.ok("config", env=env | secret).out):
        assert "pa55" not in text
        assert "s3cret" not in text
    by_flag = on_sqlite.ok("--config", str(tmp_path / "own.toml"), "config", "--json").document
    assert by_flag["values"]["tenant"] == "file"


# --- how it behaves as a program -------------------------------------------------------------------------------------


def test_a_reader_that_goes_away_is_no_error(on_sqlite: Command) -> None:
    for _ in range(3):
        on_sqlite.job("enqueue", "heartbeat", "https://example.org/")
    for arguments in ("job list", "job list --json", "config", "doctor"):
        line = f"set -o pipefail; {JOBQ} {arguments} | head -n 0; echo $?"
        done = subprocess.run(
            ["bash", "-c", line], env=on_sqlite.environment, capture_output=True, text=True, check=True
        )
        assert (done.stdout, done.stderr) == ("141\n", "")


def test_colors_are_for_terminals_that_want_them(on_sqlite: Command) -> None:
    job = on_sqlite.job("enqueue", "heartbeat", "https://example.org/")
    on_sqlite.ok("job", "cancel", job)
    environment = {key: value for key, value in on_sqlite.environment.items() if key != "NO_COLOR"} | {"TERM": "xterm"}
    assert "\x1b[" in on_a_terminal(["job", "list"], environment)
    assert "\x1b[" not in on_a_terminal(["job", "list"], {**environment, "NO_COLOR": "1"})
    piped = subprocess.run([JOBQ, "job", "list"], env=environment, capture_output=True, text=True, check=True)
    assert "\x1b[" not in piped.stdout
    assert "No job matches." in on_a_terminal(["job", "list", "--queue", "none"], environment)


def on_a_terminal(arguments: list[str], environment: dict[str, str]) -> str:
    """What the command prints where stdout and stderr are a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen([JOBQ, *arguments], env=environment, stdout=theirs, stderr=theirs)
    os.close(theirs)
    printed = b""
    try:
        while part := os.read(ours, 65536):
            printed += part
    except OSError:  # the other side is closed
        pass
    os.close(ours)
    assert process.wait(30) == 0
    return printed.decode()


def test_control_c_is_exit_code_130_and_the_job_goes_on(on_sqlite: Command) -> None:
    job = on_sqlite.job("enqueue", "heartbeat", "https://example.org/")
    waiting = on_sqlite.start("job", "wait", job)
    # Ctrl-C before Python is up would not be ours to answer.
    wait_until(lambda: "sqlite3" in Path(f"/proc/{waiting.pid}/maps").read_text(), timeout=30, what="the wait to begin")
    wait_until(lambda: _asks(waiting.pid), timeout=30, what="its first question to the database")
    waiting.send_signal(signal.SIGINT)
    assert waiting.wait(10) == 130
    assert on_sqlite.printed(waiting, "err") == ""
    assert on_sqlite.ok("job", "show", job, "--json").document["status"] == "PENDING"


def _asks(pid: int) -> bool:
    """Has the process its database open?"""
    return any("jobq.sqlite3" in os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink())


def test_help_and_version_need_nothing(tmp_path: Path) -> None:
    bare = Command(tmp_path, JOBQ_DATABASE_URL="nonsense")
    assert bare.ok("--version").out.startswith("jobq ")
    for arguments in (["--help"], ["job", "--help"], ["worker", "-h"], ["enqueue", "container", "--help"]):
        assert bare.ok(*arguments).out.startswith("Usage: jobq ")
    assert bare("job").code == 2
    assert bare("worker").code == 2
