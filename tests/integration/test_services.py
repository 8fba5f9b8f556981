"""The servers that all other integration tests stand on: each answers, survives its faults and leaves nothing."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import kombu
import psycopg
import pytest
import redis
from sqlalchemy import create_engine, text

from tests import services
from tests.services import running, wait_until


def test_postgres_gives_each_test_a_database_of_its_own(
    postgres_url: str, postgres_server: services.Postgres, postgres_template: str
) -> None:
    other = postgres_server.create(postgres_template)
    with psycopg.connect(postgres_url) as connection:
        connection.execute("CREATE TABLE mine (id int)")
    with psycopg.connect(postgres_server.url(other)) as connection:
        assert connection.execute("SELECT to_regclass('mine')").fetchone() == (None,)
    postgres_server.drop(other)


def test_postgres_keeps_committed_rows_over_a_crash(postgres_url: str, postgres_server: services.Postgres) -> None:
    with psycopg.connect(postgres_url) as connection:
        connection.execute("CREATE TABLE kept (id int)")
    postgres_server.kill()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(postgres_url)
    postgres_server.start()
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute("SELECT count(*) FROM kept").fetchone() == (0,)


def test_a_frozen_postgres_answers_nobody(postgres_url: str, postgres_server: services.Postgres) -> None:
    postgres_server.freeze()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(postgres_url, connect_timeout=2)
    postgres_server.thaw()
    psycopg.connect(postgres_url).close()


def test_a_database_url_opens_with_sqlalchemy(database_url: str, request: pytest.FixtureRequest) -> None:
    engine = create_engine(database_url)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar() == 1
    engine.dispose()
    assert request.node.callspec.id == engine.dialect.name


def test_redis_is_empty_for_each_test(redis_url: str) -> None:
    client = redis.Redis.from_url(redis_url)
    assert client.dbsize() == 0
    client.set("left", "behind")
    assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    client.close()


def test_redis_is_empty_although_another_test_left_a_key(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0


@pytest.mark.parametrize("fault", ["stop", "kill"])
def test_redis_comes_back_empty_on_its_port(redis_server: services.Redis, fault: str) -> None:
    with redis.Redis.from_url(redis_server.url) as client:
        client.set("key", "value")
        getattr(redis_server, fault)()
        with pytest.raises(redis.ConnectionError):
            client.ping()
        redis_server.start()
        assert client.dbsize() == 0


def test_a_frozen_redis_holds_its_connections(redis_server: services.Redis) -> None:
    with redis.Redis.from_url(redis_server.url, socket_timeout=2, retry=None) as client:
        client.ping()
        redis_server.freeze()
        with pytest.raises(redis.TimeoutError):
            client.ping()
        redis_server.thaw()
        assert client.ping()


def test_rabbitmq_gives_each_test_an_empty_virtual_host(rabbitmq_url: str) -> None:
    with kombu.Connection(rabbitmq_url) as connection:
        queue = connection.SimpleQueue("hints")
        assert queue.qsize() == 0
        queue.put({"ids": [1]})
        message = queue.get(timeout=20)
        assert message.payload == {"ids": [1]}
        message.ack()
        queue.close()


def test_rabbitmq_keeps_durable_messages_over_a_kill(rabbitmq_url: str, rabbitmq_server: services.RabbitMQ) -> None:
    with kombu.Connection(rabbitmq_url, transport_options={"confirm_publish": True}) as connection:
        queue = connection.SimpleQueue("hints")
        queue.put({"ids": [2]})
        queue.close()
    rabbitmq_server.kill()
    rabbitmq_server.start()
    with kombu.Connection(rabbitmq_url) as connection:
        queue = connection.SimpleQueue("hints")
        message = queue.get(timeout=10)
        assert message.payload == {"ids": [2]}
        message.ack()
        queue.close()


def test_docker_runs_the_test_image(docker_engine: services.Docker) -> None:
    container = start(docker_engine, ["sh", "-c", "echo hello; exit 3"])
    state = wait_until(lambda: ended(docker_engine, container), what="the container's end")
    assert state
    assert state["ExitCode"] == 3
    _, log = docker_engine.request("GET", f"/containers/{container}/logs?stdout=1")
    assert log.endswith(b"hello\n")


def test_a_container_outlives_its_engine_until_the_engine_is_back(docker_engine: services.Docker) -> None:
    """Docker's default: the next engine ends what the killed one left running (live-restore would adopt it)."""
    container = start(docker_engine, ["sleep", "1000"])
    process = docker_engine.host_pid(container)
    docker_engine.kill()
    assert not docker_engine.answers()
    assert running(process)
    docker_engine.start()
    assert docker_engine.containers() == [container]
    assert ended(docker_engine, container)
    assert not running(process)


@pytest.mark.parametrize("server", [services.Postgres, services.Redis, services.RabbitMQ, services.Docker])
def test_a_server_dies_with_the_process_that_started_it(server: type[services.Server], tmp_path: Path) -> None:
    """Also when that process is killed, and also the children: backends, epmd, containerd."""
    services.require(*server.programs)
    if server is services.Docker:
        services.require_root("a private dockerd")
    script = (
        f"from tests.services import {server.__name__} as Server\n"
        "server = Server().__enter__()\n"
        f"open({str(tmp_path / 'folder')!r}, 'w').write(str(server.folder))\n"
    )
    try:
        dies_with_its_children(script)
    finally:
        shutil.rmtree((tmp_path / "folder").read_text())


def test_a_fleet_dies_with_the_process_that_started_it(tmp_path: Path, sqlite_url: str) -> None:
    """Also with one whose thread has ended: the kernel sends the signal when the thread that forked ends."""
    script = (
        "import pathlib, threading\n"
        "from tests.fleet import Fleet\n"
        f"fleet = Fleet(pathlib.Path({str(tmp_path)!r}), {sqlite_url!r}, 'redis://127.0.0.1:1/0')\n"
        "starter = threading.Thread(target=fleet.scheduler)\n"
        "starter.start()\n"
        "starter.join()\n"
        "fleet.worker()\n"
        "assert fleet.processes[0].poll() is None\n"
    )
    assert len(dies_with_its_children(script)) == 2


def dies_with_its_children(script: str) -> list[int]:
    """Run it in a process that then kills itself, and wait until none of its children is left; their ids."""
    end = (
        "\nimport json, os, signal\n"
        "from tests.services import descendants\n"
        "print(json.dumps(list(descendants(os.getpid()))), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    victim = subprocess.run([sys.executable, "-c", script + end], env=environment, stdout=subprocess.PIPE, check=False)
    assert victim.returncode == -signal.SIGKILL
    _itself, *children = json.loads(victim.stdout)
    assert children
    wait_until(lambda: not any(map(running, children)), what="their end")
    return children


def test_waiting_in_vain_says_for_what() -> None:
    with pytest.raises(TimeoutError, match="for a miracle"):
        wait_until(lambda: False, timeout=0.05, what="a miracle")


@pytest.mark.parametrize(("ci", "outcome"), [("", pytest.skip.Exception), ("true", pytest.fail.Exception)])
def test_a_missing_program_is_a_skip_on_a_laptop_and_a_failure_in_ci(
    monkeypatch: pytest.MonkeyPatch, ci: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv("CI", ci)
    monkeypatch.setattr(services, "find", lambda program: None)
    with pytest.raises(outcome, match="sudo apt-get install -y redis-server"):
        services.require("redis-server")


def test_a_sqlite_url_names_a_file_of_the_tests_own(sqlite_url: str, tmp_path: Path) -> None:
    file = sqlite_url.removeprefix("sqlite:///")
    assert Path(file).parent == tmp_path
    connection = sqlite3.connect(file)
    connection.execute("CREATE TABLE t (id int)")
    connection.close()


def start(engine: services.Docker, command: list[str]) -> str:
    body = {"Image": engine.image, "Cmd": command, "NetworkDisabled": True, "StopTimeout": 1}
    status, answer = engine.request("POST", "/containers/create", json.dumps(body).encode())
    assert status == 201, answer
    container = str(json.loads(answer)["Id"])
    status, answer = engine.request("POST", f"/containers/{container}/start")
    assert status == 204, answer
    return container


def ended(engine: services.Docker, container: str) -> dict[str, int] | None:
    state = json.loads(engine.request("GET", f"/containers/{container}/json")[1])["State"]
    return state if state["Status"] == "exited" else None
