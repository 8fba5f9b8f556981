"""RELIABILITY.md section 5: bad input gets the same stable code from Python and from the CLI, and exit code 2."""

import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from jobq import Container, Cron, Every, Heartbeat, JobQ, JobQError, Settings
from jobq.validation import parse_json
from tests.command import Command

POLICY = {
    "images": ["alpine*", "registry.example/*"],
    "max_cpus": 2,
    "max_memory": 512 * 1024 * 1024,
    "max_container_timeout": "PT10M",
}
GOOD = {"endpoint": "https://example.org/"}
PROBE = Heartbeat(endpoint="https://example.org/")


@pytest.fixture
def jobq(command: Command) -> Iterator[JobQ]:
    """The Python API with the very settings of the command."""
    settings = Settings(database_url=command.environment["JOBQ_DATABASE_URL"], policy=POLICY)
    with JobQ(settings=settings) as jobq:
        yield jobq


@pytest.fixture
def command(sqlite_url: str, tmp_path: Path) -> Command:
    return Command(tmp_path, is_warm=True, JOBQ_DATABASE_URL=sqlite_url, JOBQ_POLICY=json.dumps(POLICY))


@dataclass(frozen=True)
class Row:
    """An input, its code, and how each door says it."""

    code: str
    cli: list[str]
    python: Callable[[JobQ], object]
    stdin: str = field(default="")


def container(code: str, cli: list[str] | None = None, **spec: Any) -> Row:
    """A container job that is refused; without ``cli`` the spec goes in as JSON."""
    whole = {"image": "alpine", **spec}
    said = ["container", *cli] if cli is not None else ["CONTAINER", "--spec", "@-"]
    return Row(code, ["enqueue", *said], lambda jobq: jobq.enqueue(whole, kind="CONTAINER"), json.dumps(whole))


def heartbeat(code: str, endpoint: str, *more: str, **spec: Any) -> Row:
    cli = ["enqueue", "HEARTBEAT", "--spec", "@-"] if "\r" in endpoint else ["enqueue", "heartbeat", endpoint, *more]
    whole = {"endpoint": endpoint, **spec}
    return Row(code, cli, lambda jobq: jobq.enqueue(whole, kind="HEARTBEAT"), json.dumps(whole))


def text(code: str, json_text: str) -> Row:
    """What is no JSON never reaches a JobQ: its Python counterpart is the reader of JSON."""
    return Row(code, ["enqueue", "HEARTBEAT", "--spec", "@-"], lambda _: parse_json(json_text), json_text)


def schedule(*cli: str, **fields: Any) -> Row:
    create = ["workflow", "create", "w", "--kind", "HEARTBEAT", "--spec", json.dumps(GOOD), *cli]
    return Row("invalid_schedule", create, lambda jobq: jobq.create_workflow(PROBE, **fields))


def asked(code: str, *cli: str, **fields: Any) -> Row:
    """A good spec, asked for in a bad way."""
    return Row(code, ["enqueue", "heartbeat", "https://example.org/", *cli], lambda jobq: jobq.enqueue(PROBE, **fields))


JSON_TEXT = {
    "no JSON": text("invalid_json", "{"),
    "NaN": text("invalid_json", '{"endpoint": NaN}'),
    "a key that comes twice": text(
        "invalid_json", '{"endpoint": "https://a.example", "endpoint": "https://b.example"}'
    ),
    "too deep": text("invalid_json", "[" * 33 + "]" * 33),
    "too large": text("payload_too_large", json.dumps({"endpoint": "x" * 300_000})),
}
SHAPES = {
    "an unknown field": container("validation_error", imagee="alpine"),
    "a wrong type": container("validation_error", command="echo"),
    "a spec that is no object": Row(
        "validation_error",
        ["enqueue", "HEARTBEAT", "--spec", "[]"],
        lambda jobq: jobq.enqueue([], kind="HEARTBEAT"),  # type: ignore[arg-type]
    ),
    "an unknown kind": Row(
        "validation_error", ["enqueue", "NOPE", "--spec", "{}"], lambda jobq: jobq.enqueue({}, kind="NOPE")
    ),
    "a priority of ten": asked("validation_error", "--priority", "10", priority=10),
    "a queue with a space": asked("validation_error", "--queue", "a b", queue="a b"),
    "status 99": heartbeat("validation_error", "https://example.org", "--expect", "99", expected_status_code=99),
    "status 600": heartbeat("validation_error", "https://example.org", "--expect", "600", expected_status_code=600),
    "limit 0": Row("validation_error", ["job", "list", "--limit", "0"], lambda jobq: jobq.list(limit=0)),
    "limit 201": Row("validation_error", ["job", "list", "--limit", "201"], lambda jobq: jobq.list(limit=201)),
    "a cursor that nobody made": Row(
        "invalid_cursor", ["job", "list", "--cursor", "Zm9v"], lambda jobq: jobq.list(cursor="Zm9v")
    ),
}
SCHEDULES = {
    "interval 0": schedule("--interval", "0", interval=0),
    "a negative interval": schedule("--interval=-5", interval=-5),
    "an interval below a second": schedule("--interval", "0.5", interval=0.5),
    "an interval over a year": schedule("--interval", "P366D", interval="P366D"),
    "months": schedule("--interval", "P1M", interval="P1M"),
    "a bad cron expression": schedule("--cron", "61 * * * *", cron="61 * * * *"),
    "an unknown zone": schedule(
        "--cron", "0 0 * * *", "--timezone", "Mars/Base", cron="0 0 * * *", timezone="Mars/Base"
    ),
    "a naive instant": asked("invalid_schedule", "--at", "2027-01-01T00:00:00", scheduled_at="2027-01-01T00:00:00"),
    "an instant in ten years": asked(
        "invalid_schedule", "--at", "2099-01-01T00:00:00Z", scheduled_at="2099-01-01T00:00:00Z"
    ),
    "timeout 0": asked("invalid_timeout", "--timeout", "0", timeout=0),
    "a negative timeout": asked("invalid_timeout", "--timeout=-1", timeout=-1),
    "a timeout above the kind's maximum": asked("invalid_timeout", "--timeout", "PT1H", timeout="PT1H"),
    "a timeout above the operator's maximum": Row(
        "invalid_timeout",
        ["enqueue", "container", "alpine", "--timeout", "PT11M"],
        lambda jobq: jobq.enqueue(Container(image="alpine"), timeout="PT11M"),
    ),
}
CONTAINERS = {
    "an empty image": container("invalid_image", [""], image=""),
    "a malformed image": container("invalid_image", ["Alpine:"], image="Alpine:"),
    "an image that is not allowed": container("image_not_allowed", ["debian"], image="debian"),
    "privileged": container("forbidden_option", privileged=True),
    "mounts": container("forbidden_option", mounts=[]),
    "devices": container("forbidden_option", devices=["/dev/sda"]),
    "cap_add": container("forbidden_option", cap_add=["SYS_ADMIN"]),
    "the host's network": container("forbidden_option", ["alpine", "--network", "host"], network="host"),
    "another network": container("forbidden_option", ["alpine", "--network", "lan"], network="lan"),
    "a variable named A=B": container("invalid_env", env={"A=B": "1"}),
    "a variable with NUL": container("invalid_env", env={"A\x00": "1"}),
    "a variable without a name": container("invalid_env", ["alpine", "-e", "=1"], env={"": "1"}),
    "an environment of 65 KiB": container("invalid_env", env={"A": "x" * 33_000, "B": "x" * 33_000}),
    "5 MB of memory": container("invalid_resources", ["alpine", "--memory", "5MB"], memory="5MB"),
    "memory above the operator's maximum": container("invalid_resources", ["alpine", "--memory", "1GB"], memory="1GB"),
    "no processes": container("invalid_resources", ["alpine", "--pids", "0"], pids=0),
    "-5 processes": container("invalid_resources", ["alpine", "--pids=-5"], pids=-5),
    "more cpus than allowed": container("invalid_resources", ["alpine", "--cpus", "3"], cpus=3),
    "cpus that are no number": container("invalid_resources", ["alpine", "--cpus", "nan"], cpus=float("nan")),
}
URLS = {
    "ftp": heartbeat("invalid_url", "ftp://example.org/"),
    "userinfo": heartbeat("invalid_url", "https://user:secret@example.org/"),
    "CRLF": heartbeat("invalid_url", "https://example.org/\r\nX: y"),
    "hexadecimal": heartbeat("invalid_url", "http://0x7f.1/"),
    "short dotted": heartbeat("invalid_url", "http://127.1/"),
    "mapped IPv6": heartbeat("target_blocked", "http://[::ffff:127.0.0.1]/"),
    "metadata": heartbeat("target_blocked", "http://169.254.169.254/latest/meta-data/"),
}
ROWS = JSON_TEXT | SHAPES | SCHEDULES | CONTAINERS | URLS


@pytest.mark.parametrize("what", ROWS)
def test_bad_input_gets_the_same_code_from_python_and_from_the_cli(what: str, command: Command, jobq: JobQ) -> None:
    row = ROWS[what]
    command.refused(row.code, *row.cli, stdin=row.stdin)
    with pytest.raises(JobQError) as caught:
        row.python(jobq)
    assert caught.value.code == row.code
    assert not jobq.list().items
    assert not jobq.list_workflows().items


def test_a_message_points_to_the_place_in_the_input_and_never_repeats_a_secret(command: Command) -> None:
    done = command.refused("validation_error", "enqueue", "CONTAINER", "--spec", '{"image": "alpine", "cpu": 1}')
    assert ", at /spec/cpu " in done.err
    assert "Did you mean 'cpus'?" in done.err
    for option in ("--env", "--header"):
        kind = ["container", "alpine"] if option == "--env" else ["heartbeat", "https://example.org"]
        assert "s3cret" not in command("enqueue", *kind, option, "s3cret").err


def test_a_tampered_cursor_and_one_of_another_listing_are_refused(command: Command) -> None:
    for _ in range(2):
        command.job("enqueue", "heartbeat", "https://example.org")
    filters = ["--status", "PENDING", "--status", "FAILED", "--limit", "1"]
    cursor = command.ok("job", "list", "--json", *filters).document["next_cursor"]
    # The order of the filters does not matter, in any process.
    reordered = ["--status", "FAILED", "--status", "PENDING", "--limit", "1"]
    assert len(command.ok("job", "list", "--json", "--cursor", cursor, *reordered).items) == 1
    command.refused("invalid_cursor", "job", "list", "--cursor", cursor)
    command.refused("invalid_cursor", "workflow", "list", "--cursor", cursor)
    turned = cursor[:-2] + ("A" if cursor[-2] != "A" else "B") + cursor[-1]
    command.refused("invalid_cursor", "job", "list", "--cursor", turned, *filters)


@pytest.mark.parametrize("what", ["NaN", "an unknown field", "interval 0", "privileged", "metadata"])
def test_the_executable_itself_answers_in_the_same_way(what: str, command: Command) -> None:
    command.is_warm = False
    command.refused(ROWS[what].code, *ROWS[what].cli, stdin=ROWS[what].stdin)


# --- the state that things are in ------------------------------------------------------------------------------------


@pytest.fixture
def either(database_url: str, tmp_path: Path) -> Command:
    """On SQLite and on PostgreSQL."""
    return Command(tmp_path, is_warm=True, JOBQ_DATABASE_URL=database_url)


def test_another_tenants_things_do_not_exist(either: Command) -> None:
    job = either.job("--tenant", "ours", "enqueue", "heartbeat", "https://example.org")
    either.ok("--tenant", "ours", "workflow", "create", "w", "--kind", "heartbeat", "--spec", json.dumps(GOOD))
    for verb in ("show", "why", "logs", "wait", "cancel", "pause", "resume", "retry", "artifacts"):
        either.refused("not_found", "--tenant", "theirs", "job", verb, job)
    either.refused("not_found", "--tenant", "theirs", "workflow", "trigger", "w")
    assert either.ok("--tenant", "theirs", "job", "list", "--json").items == []
    either.refused("not_found", "job", "show", str(uuid.uuid4()))
    assert either.ok("--tenant", "ours", "job", "show", job, "--json").document["tenant"] == "ours"


def test_what_has_ended_cannot_be_canceled_and_what_is_not_paused_can_be_resumed(either: Command) -> None:
    job = either.job("enqueue", "heartbeat", "https://example.org")
    either.ok("job", "resume", job)
    either.refused("not_finished", "job", "retry", job)
    assert "CANCELED·by_user" in either.ok("job", "cancel", job).out
    for verb in ("cancel", "pause", "resume"):
        either.refused("already_finished", "job", verb, job)


def test_an_idempotency_key_makes_one_job_and_refuses_another_body(either: Command) -> None:
    probe = ["enqueue", "heartbeat", "--idempotency-key", "k1"]
    job = either.job(*probe, "https://example.org/a")
    assert either.job(*probe, "https://example.org/a") == job
    either.refused("idempotency_conflict", *probe, "https://example.org/b")
    assert len(either.ok("job", "list", "--json").items) == 1


def test_names_are_unique_and_limits_are_positive(either: Command) -> None:
    create = ["workflow", "create", "w", "--kind", "heartbeat", "--spec", json.dumps(GOOD)]
    either.ok(*create)
    either.refused("name_taken", *create)
    either.refused("validation_error", "queue", "limit", "heartbeat", "0")
    either.refused("validation_error", "queue", "limit", "heartbeat", "many")
    either.refused("validation_error", "tenant", "limit", "ours", "0")
    either.refused("validation_error", "tenant", "weight", "ours", "0")
    either.refused("not_found", "worker", "drain", str(uuid.uuid4()))


# --- the set-up ------------------------------------------------------------------------------------------------------


def test_a_database_that_is_away_is_exit_code_3(tmp_path: Path) -> None:
    away = Command(tmp_path, is_warm=True, JOBQ_DATABASE_URL="postgresql://user:s3cret@127.0.0.1:1/jobq")
    for arguments in (["job", "list"], ["db", "upgrade"], ["enqueue", "heartbeat", "https://example.org"]):
        assert "s3cret" not in away.refused("database_unavailable", *arguments, exit_code=3).err
    (tmp_path / "text").write_text("this is no database " * 100)
    away.refused("database_unavailable", "--database-url", f"sqlite:///{tmp_path}/text", "job", "list", exit_code=3)


def test_a_database_without_tables_says_what_to_do(tmp_path: Path) -> None:
    fresh = Command(tmp_path, is_warm=True)
    for arguments in (["job", "list"], ["db", "check"], ["enqueue", "heartbeat", "https://example.org"]):
        assert "Run: jobq db upgrade" in fresh.refused("schema", *arguments).err
    redis = ["--broker-url", "redis://127.0.0.1:1/0"]
    fresh.refused("schema", *redis, "scheduler")
    fresh.refused("schema", *redis, "worker", "-Q", "heartbeat:1")


@pytest.mark.parametrize(
    ("variable", "value"),
    [("JOBQ_LEASE", "soon"), ("JOBQ_PLUGINS", "no list"), ("JOBQ_LOG_LEVEL", "LOUD"), ("JOBQ_CONFIG", "/nope.toml"),
     ("JOBQ_POLICY__PROBE_NETWORKS", '["everywhere"]')],
)  # fmt: skip
def test_a_wrong_setting_is_named(variable: str, value: str, tmp_path: Path) -> None:
    command = Command(tmp_path, is_warm=True, **{variable: value})
    done = command.refused("bad_setting", "job", "list")
    assert variable in done.err or value in done.err


@pytest.mark.parametrize("url", ["nonsense", "mysql://u@h/d", "oracle+cx://u@h/d", ""])
def test_an_address_of_no_database_that_jobq_knows_is_refused(url: str, tmp_path: Path) -> None:
    Command(tmp_path, is_warm=True).refused("misconfigured", "--database-url", url, "job", "list")


def test_services_refuse_a_broker_that_lives_in_one_process(command: Command) -> None:
    for arguments in (["scheduler"], ["worker", "-Q", "heartbeat:1"]):
        done = command.refused("broker_missing", *arguments)
        assert "JOBQ_BROKER_URL" in done.err
        assert "jobq dev" in done.err


def test_services_refuse_a_package_that_shadows_their_own(sqlite_url: str, tmp_path: Path) -> None:
    command = Command(tmp_path, JOBQ_DATABASE_URL=sqlite_url)
    (tmp_path / "foreign" / "workers").mkdir(parents=True)
    (tmp_path / "foreign" / "workers" / "__init__.py").touch()
    foreign = {"PYTHONPATH": str(tmp_path / "foreign")}
    for arguments in (["scheduler"], ["worker", "-Q", "heartbeat:1"]):
        done = command.refused("package_shadowed", "--broker-url", "redis://127.0.0.1:1/0", *arguments, env=foreign)
        assert str(tmp_path / "foreign" / "workers") in done.err


@pytest.mark.parametrize(
    "arguments",
    [["jbo", "list"], ["job", "list", "--limit", "x"], ["job", "list", "--status", "odd"], ["job", "show"],
     ["job", "list", "--nope"], ["enqueue", "container", "alpine", "sh", "-c", "x"], ["worker", "-Q", "a:1", "list"]],
)  # fmt: skip
def test_wrong_usage_is_one_message_with_a_hint(arguments: list[str], command: Command) -> None:
    done = command.refused("usage", *arguments)
    assert len(done.err.splitlines()) == 2


def test_a_global_option_in_the_wrong_place_is_explained(command: Command) -> None:
    done = command.refused("usage", "job", "list", "--tenant", "ours")
    assert "--tenant comes before the command" in done.err
    assert "Write: jobq --tenant … job list" in done.err


@pytest.mark.parametrize("queues", ["", ",", "Conta;iner:1", "heartbeat:0", "heartbeat:x"])
def test_a_worker_needs_queues_that_exist_in_form(queues: str, command: Command) -> None:
    command.refused("validation_error", "--broker-url", "redis://127.0.0.1:1/0", "worker", "-Q", queues)


def test_an_id_is_given_whole(command: Command) -> None:
    job = command.job("enqueue", "heartbeat", "https://example.org")
    assert "give the whole id" in command.refused("validation_error", "job", "show", job[:13]).err


def test_a_schedule_in_python_is_refused_as_on_the_command_line() -> None:
    for build in (lambda: Every(0), lambda: Every("P1M"), lambda: Cron("61 * * * *")):
        with pytest.raises(JobQError) as caught:
            build()
        assert caught.value.code == "invalid_schedule"
