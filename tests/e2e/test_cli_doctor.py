"""`jobq doctor`: each part that can be wrong is named, with what to do; exit 1 if something is broken."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import redis

from tests import services
from tests.command import JOBQ, Command

PARTS = [
    "settings", "packages", "database", "migrations", "clock", "broker", "docker", "plugins", "secret key",
    "scheduler", "workers",
]  # fmt: skip
NO_DOCKER = "unix:///nonexistent.sock"


@pytest.fixture
def command(sqlite_url: str, tmp_path: Path) -> Command:
    return Command(tmp_path, is_warm=True, JOBQ_DATABASE_URL=sqlite_url, JOBQ_DOCKER_HOST=NO_DOCKER)


def examine(command: Command, *, exit_code: int, **env: str) -> dict[str, dict[str, Any]]:
    """What the doctor says, by part; where a part has several findings, the worst."""
    done = command("doctor", "--json", env=env)
    assert done.code == exit_code, done.out + done.err
    order = ["skipped", "ok", "warning", "broken"]
    checks = sorted(done.document["checks"], key=lambda check: order.index(check["state"]))
    assert done.document["healthy"] is (exit_code == 0)
    return {check["part"]: check for check in checks}


def test_an_installation_at_rest_is_healthy_and_hears_what_is_still_to_do(command: Command) -> None:
    done = command.ok("doctor")
    lines = done.out.splitlines()
    assert [line[2:12].strip() for line in lines] == PARTS
    assert all(line[0] in "✓!" for line in lines)
    assert all(" → " in line for line in lines if line[0] == "!")
    assert "Start one: jobq scheduler" in done.out
    assert "Start one: jobq worker -Q" in done.out


def test_jobs_that_nobody_runs_are_what_is_broken(command: Command) -> None:
    command.job("enqueue", "heartbeat", "https://example.org/", "--queue", "lonely")
    found = examine(command, exit_code=1)
    assert (found["scheduler"]["state"], found["workers"]["state"]) == ("broken", "broken")
    assert "queue lonely: 1 job ready, and no worker" in found["workers"]["text"]
    assert found["workers"]["advice"] == "Start one: jobq worker -Q lonely:4"
    command.ok("queue", "pause", "lonely")
    assert "jobq queue resume lonely" in examine(command, exit_code=1)["workers"]["advice"]


def test_a_database_that_is_away_hides_what_depends_on_it(command: Command) -> None:
    found = examine(command, exit_code=1, JOBQ_DATABASE_URL="postgresql://u:s3cret@127.0.0.1:1/d")
    assert found["database"]["state"] == "broken"
    assert {found[part]["state"] for part in ("migrations", "clock", "scheduler", "workers")} == {"skipped"}
    assert "s3cret" not in json.dumps(found)
    assert found["plugins"]["state"] == "ok"


def test_an_old_schema_is_broken(tmp_path: Path) -> None:
    fresh = Command(tmp_path, is_warm=True, JOBQ_DOCKER_HOST=NO_DOCKER)
    assert examine(fresh, exit_code=1)["migrations"]["advice"] == "Run: jobq db upgrade"
    done = fresh("doctor", "--ready")
    assert done.code == 1
    assert "Run: jobq db upgrade" in done.out


def test_the_broker_is_reached_and_its_eviction_policy_read(command: Command, redis_url: str) -> None:
    assert examine(command, exit_code=0, JOBQ_BROKER_URL=redis_url)["broker"]["state"] == "ok"
    with redis.Redis.from_url(redis_url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            found = examine(command, exit_code=0, JOBQ_BROKER_URL=redis_url)["broker"]
        finally:
            client.config_set("maxmemory-policy", "noeviction")
    assert (found["state"], "noeviction" in found["advice"]) == ("warning", True)


@pytest.mark.parametrize("url", ["redis://:s3cret@127.0.0.1:1/0", "amqp://u:s3cret@127.0.0.1:1//"])
def test_a_broker_that_is_away_is_broken(command: Command, url: str) -> None:
    found = examine(command, exit_code=1, JOBQ_BROKER_URL=url)["broker"]
    assert found["state"] == "broken"
    assert "s3cret" not in json.dumps(found)


def test_rabbitmq_is_reached(command: Command, rabbitmq_url: str) -> None:
    assert examine(command, exit_code=0, JOBQ_BROKER_URL=rabbitmq_url)["broker"]["state"] == "ok"


def test_docker_is_found_and_missed(command: Command, docker_host: str) -> None:
    missed = examine(command, exit_code=0)["docker"]
    assert (missed["state"], "CONTAINER jobs cannot run" in missed["text"]) == ("warning", True)
    assert examine(command, exit_code=0, JOBQ_DOCKER_HOST=docker_host)["docker"]["state"] == "ok"


def test_a_plugin_that_cannot_be_loaded_is_named(command: Command, tmp_path: Path) -> None:
    (tmp_path / "exploding.py").write_text("raise RuntimeError('boom')")
    command.is_warm = False  # it finds its plugins as any Python does, when it starts
    plugins = json.dumps(["exploding:Executor", "nowhere:Executor", "json:Missing"])
    found = command("doctor", env={"JOBQ_PLUGINS": plugins, "PYTHONPATH": str(tmp_path)})
    assert found.code == 1
    for text in ("exploding:Executor cannot be loaded: RuntimeError: boom", "nowhere:Executor", "json:Missing"):
        assert text in found.out
    assert "✓ plugins    executors of CONTAINER, HEARTBEAT" in found.out


def test_names_of_settings_that_do_not_exist_are_noticed(command: Command, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text('tenannt = "x"\n[policy]\nimages = ["*"]\n')
    found = examine(command, exit_code=0, JOBQ_CONFIG=str(tmp_path / "own.toml"), JOBQ_BROKER_ULR="redis://h")
    assert found["settings"]["state"] == "warning"
    assert "tenannt in " in found["settings"]["text"]
    assert "JOBQ_BROKER_ULR (meant: JOBQ_BROKER_URL?)" in found["settings"]["text"]
    assert examine(command, exit_code=0, JOBQ_QUEUES="a:1", JOBQ_POSTGRES_PASSWORD="x")["settings"]["state"] == "ok"


def test_the_secret_key_is_looked_at_and_not_shown(command: Command) -> None:
    for key, state in (("", "warning"), ("s3cret", "warning"), ("s3cret" * 6, "ok")):
        found = examine(command, exit_code=0, JOBQ_SECRET_KEY=key)["secret key"]
        assert (found["state"], "s3cret" in json.dumps(found)) == (state, False)


def test_a_package_that_shadows_ours_is_broken(command: Command, tmp_path: Path) -> None:
    (tmp_path / "foreign" / "scheduler").mkdir(parents=True)
    (tmp_path / "foreign" / "scheduler" / "__init__.py").touch()
    command.is_warm = False
    done = command("doctor", env={"PYTHONPATH": str(tmp_path / "foreign")})
    assert done.code == 1
    assert f"✗ packages   The package 'scheduler' that Python imports is {tmp_path}/foreign/scheduler" in done.out


def test_ready_asks_for_the_database_and_its_schema_only(database_url: str, tmp_path: Path) -> None:
    command = Command(tmp_path, JOBQ_DATABASE_URL=database_url, JOBQ_BROKER_URL="redis://127.0.0.1:1/0")
    assert [line[:12].split()[1] for line in command.ok("doctor", "--ready").out.splitlines()] == [
        "database",
        "migrations",
    ]


def test_ready_works_in_a_container_as_nobody_without_a_home(postgres_url: str) -> None:
    services.require_root("to become another user")
    kept = {key: value for key, value in os.environ.items() if key in {"PATH", "LANG"}}
    done = subprocess.run(
        ["setpriv", "--reuid=10001", "--regid=10001", "--clear-groups", JOBQ, "doctor", "--ready"],
        env={**kept, "JOBQ_DATABASE_URL": postgres_url, "PYTHONDONTWRITEBYTECODE": "1"},
        cwd="/", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done
