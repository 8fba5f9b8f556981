"""Fixtures: real servers once a session, a fresh database, virtual host or empty Redis for each test."""

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobq.store.database import Database
from jobq.store.migrations import upgrade
from tests import services

# Where the suite itself runs in the background (nohup, some CI), interrupts are ignored, and whatever it starts would
# inherit that; a signal that has a handler here is at its default there.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler)

# Some machines keep no bytecode. Each of the thousand processes that the tests start would then compile all that it
# imports, which is most of what a short one does.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

NEEDS = {
    "postgres_server": "needs_postgres",
    "redis_server": "needs_redis",
    "rabbitmq_server": "needs_rabbitmq",
    "docker_engine": "needs_docker",
}


# What takes half a minute or more, the longest first: begun last, it would keep one core busy while all others wait.
LONG = (
    "test_main_job", "test_two_commands", "test_dev", "test_sync", "test_broker_redis", "test_services",
    "test_broker_rabbitmq", "test_cli_services", "test_examples", "test_readiness", "test_canary", "test_store_machine",
    "test_container_faults", "test_container", "test_sync_properties", "test_store_races", "test_deaf",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test by the servers it asks for: `-m "not needs_docker"` selects what runs without. Long ones first."""
    for item in items:
        for fixture in getattr(item, "fixturenames", []):
            if marker := NEEDS.get(fixture):
                item.add_marker(marker)
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONG)))


# --- databases -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def migrate() -> Callable[[str], None]:
    """Bring the empty database at this URL to the current schema; once a session for each dialect."""
    return upgrade_at


def upgrade_at(url: str) -> None:
    database = Database(url)
    try:
        upgrade(database)
    finally:
        database.close()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[services.Postgres]:
    services.require(*services.Postgres.programs)
    with services.Postgres() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_template(postgres_server: services.Postgres, migrate: Callable[[str], None]) -> str:
    name = postgres_server.create()
    migrate(postgres_server.url(name))
    postgres_server.disconnect(name)  # PostgreSQL copies only what nobody uses
    return name


@pytest.fixture
def postgres_url(postgres_server: services.Postgres, postgres_template: str) -> Iterator[str]:
    """A PostgreSQL database of the test's own, at the current schema."""
    postgres_server.start()  # an earlier test may have killed or frozen it
    name = postgres_server.create(postgres_template)
    yield postgres_server.url(name)
    postgres_server.start()
    postgres_server.drop(name)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory, migrate: Callable[[str], None]) -> Path:
    file = tmp_path_factory.mktemp("sqlite") / "template.sqlite3"
    file.touch()
    migrate(f"sqlite:///{file}")
    return file


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    """A SQLite database of the test's own, at the current schema."""
    return f"sqlite:///{shutil.copy(sqlite_template, tmp_path / 'jobq.sqlite3')}"


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.needs_postgres)])
def database_url(request: pytest.FixtureRequest) -> str:
    """Runs the test twice: on SQLite and on PostgreSQL."""
    fixture = {"sqlite": "sqlite_url", "postgresql": "postgres_url"}[request.param]
    return str(request.getfixturevalue(fixture))


# --- brokers ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def redis_session() -> Iterator[services.Redis]:
    services.require(*services.Redis.programs)
    with services.Redis() as server:
        yield server


@pytest.fixture
def redis_server(redis_session: services.Redis) -> services.Redis:
    """The Redis server itself, for tests that stop, kill, freeze or flush it; up and empty at the start."""
    redis_session.start()
    redis_session.flush()
    return redis_session


@pytest.fixture
def redis_url(redis_server: services.Redis) -> str:
    """An empty Redis."""
    return redis_server.url


@pytest.fixture(scope="session")
def rabbitmq_session() -> Iterator[services.RabbitMQ]:
    services.require(*services.RabbitMQ.programs)
    with services.RabbitMQ() as server:
        yield server


@pytest.fixture
def rabbitmq_server(rabbitmq_session: services.RabbitMQ) -> services.RabbitMQ:
    """The RabbitMQ node itself, for tests that stop, kill or freeze it; up at the start."""
    rabbitmq_session.start()
    return rabbitmq_session


@pytest.fixture
def rabbitmq_url(rabbitmq_server: services.RabbitMQ) -> str:
    """An empty virtual host of a RabbitMQ."""
    return rabbitmq_server.url(rabbitmq_server.create())


# --- containers ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def docker_session() -> Iterator[services.Docker]:
    services.require(*services.Docker.programs)
    services.require_root("a private dockerd")
    with services.Docker() as server:
        yield server


@pytest.fixture
def docker_engine(docker_session: services.Docker) -> Iterator[services.Docker]:
    """The private Docker engine itself, for tests that stop, kill or freeze it; no containers at the start."""
    docker_session.start()
    docker_session.clear()
    yield docker_session
    docker_session.start()
    docker_session.clear()


@pytest.fixture
def docker_host(docker_engine: services.Docker) -> str:
    """The address of a private Docker engine that has the image `jobq-test:busybox` and no containers."""
    return docker_engine.url
