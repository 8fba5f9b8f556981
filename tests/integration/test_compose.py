"""The production layout: what docker-compose makes of docker-compose.yml, and what must hold for it."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import services

ROOT = Path(__file__).parents[2]
POOLS = ["container", "heartbeat", "sync"]
OURS = ["migrate", "scheduler", "api", *POOLS]


def layout(**environment: str) -> dict[str, Any]:
    services.require("docker-compose")
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("JOBQ_", "COMPOSE_"))}
    done = subprocess.run(
        [str(services.find("docker-compose")), "--file", ROOT / "docker-compose.yml", "--profile", "api", "config"],
        env={**inherited, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "docker-compose warns"
    return dict(yaml.safe_load(done.stdout)["services"])


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return layout()


def test_the_layout_has_exactly_these_services(compose: dict[str, Any]) -> None:
    assert sorted(compose) == sorted(["postgres", "redis", *OURS])


def test_two_schedulers_run_so_that_one_may_die(compose: dict[str, Any]) -> None:
    assert compose["scheduler"]["command"] == ["scheduler"]
    assert compose["scheduler"]["deploy"]["replicas"] == 2


def test_each_kind_has_a_pool_of_workers_with_its_own_slots(compose: dict[str, Any]) -> None:
    assert compose["container"]["command"] == ["worker", "-Q", "container:8"]
    assert compose["heartbeat"]["command"] == ["worker", "-Q", "heartbeat:2000"]
    assert compose["sync"]["command"] == ["worker", "-Q", "sync:4,replication:200"]


def test_the_schema_is_upgraded_once_before_anything_of_ours_starts(compose: dict[str, Any]) -> None:
    migrate = compose["migrate"]
    assert migrate["command"] == ["db", "upgrade"]
    assert migrate["restart"] == "no"
    assert migrate["depends_on"]["postgres"]["condition"] == "service_healthy"
    for name in ["scheduler", "api", *POOLS]:
        assert compose[name]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"


@pytest.mark.parametrize("name", OURS)
def test_our_processes_have_no_privileges(compose: dict[str, Any], name: str) -> None:
    service = compose[name]
    uid, gid = map(int, service["user"].split(":"))
    assert uid > 0
    assert gid > 0
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert "privileged" not in service
    assert all("127.0.0.1" in str(port) for port in service.get("ports", []))
    assert ("ports" in service) is (name == "api")


def test_only_the_container_pool_holds_dockers_socket(compose: dict[str, Any]) -> None:
    holders = {name for name, service in compose.items() if "docker.sock" in str(service.get("volumes", ""))}
    assert holders == {"container"}
    assert {name for name, service in compose.items() if "group_add" in service} == {"container"}


def test_the_group_of_dockers_socket_comes_from_the_environment() -> None:
    assert layout(JOBQ_DOCKER_GID="117")["container"]["group_add"] == ["117"]


@pytest.mark.parametrize("name", ["postgres", "redis", "scheduler", "api", *POOLS])
def test_what_runs_for_ever_is_watched_and_started_again(compose: dict[str, Any], name: str) -> None:
    assert compose[name]["healthcheck"]["test"]
    assert compose[name]["restart"] == "unless-stopped"
    assert compose[name]["stop_grace_period"]


def test_each_process_is_asked_whether_it_is_ready_itself(compose: dict[str, Any]) -> None:
    for name, process in [("scheduler", "scheduler"), *((pool, "worker") for pool in POOLS)]:
        check = compose[name]["healthcheck"]
        assert check["test"] == ["CMD", "jobq", "doctor", "--ready", process]
        assert check["retries"] == 3


def test_the_api_is_started_by_who_has_made_a_key_and_is_asked_whether_it_is_ready(compose: dict[str, Any]) -> None:
    assert compose["api"]["profiles"] == ["api"]
    assert compose["api"]["command"] == ["api", "--host", "0.0.0.0"]
    assert "http://127.0.0.1:8321/readyz" in compose["api"]["healthcheck"]["test"][-1]


@pytest.mark.parametrize("name", OURS)
def test_all_of_us_share_one_database_and_one_broker(compose: dict[str, Any], name: str) -> None:
    environment = compose[name]["environment"]
    assert environment["JOBQ_DATABASE_URL"] == "postgresql+psycopg://jobq:jobq@postgres:5432/jobq"
    assert environment["JOBQ_BROKER_URL"] == "redis://redis:6379/0"


def test_a_password_reaches_the_database_and_everybody_who_asks_it() -> None:
    compose = layout(JOBQ_POSTGRES_PASSWORD="s3cret")
    assert compose["postgres"]["environment"]["POSTGRES_PASSWORD"] == "s3cret"
    for name in OURS:
        assert ":s3cret@" in compose[name]["environment"]["JOBQ_DATABASE_URL"]


def test_a_full_redis_refuses_hints_instead_of_evicting_them(compose: dict[str, Any]) -> None:
    command = " ".join(compose["redis"]["command"])
    assert "--maxmemory-policy noeviction" in command
    assert "--maxmemory 256mb" in command


def test_the_image_runs_as_nobody_and_installs_nothing_that_is_not_locked() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("USER")] == ["USER 10001:10001"]
    installs = [line for line in lines if "pip install" in line]
    assert installs
    assert all("--require-hashes" in line or "--no-deps" in line for line in installs)
