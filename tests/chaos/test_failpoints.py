"""Every call of a scheduler and of a worker fails once: the process is killed at it, or it raises. The ledger is right.

A few of them are tried in each run of the suite, all of them by `make chaos`. `ONLY=text make chaos` tries those faults
whose description contains the text.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from tests import services
from tests.crm import Crm
from tests.failpoints import AFTER, BEFORE, KILL, RAISE, Fault
from tests.sweep import ROLES, Bench, Faults, Place, Point, Result, golden, sweep, wrong

PROCESSES = 2 + (os.cpu_count() or 1)
ONLY = os.environ.get("ONLY", "")


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with Bench(PROCESSES) as bench:
        yield bench


@pytest.fixture(scope="module")
def crm() -> Iterator[Crm]:
    with Crm() as crm:
        crm.reset([{"id": number, "first": f"Ada{number}"} for number in range(3)])
        yield crm


@pytest.fixture(scope="module")
def sqlite(
    tmp_path_factory: pytest.TempPathFactory, redis_session: services.Redis, crm: Crm, sqlite_template: Path
) -> Place:
    """Runs on SQLite."""
    folder, numbers = tmp_path_factory.mktemp("runs"), count()

    def database() -> tuple[str, Callable[[], None]]:
        file = Path(shutil.copy(sqlite_template, folder / f"{next(numbers)}.sqlite3"))
        return f"sqlite:///{file}", file.unlink

    return Place(folder, database, without_number(redis_session), crm.url)


@pytest.fixture(scope="module")
def postgres(
    tmp_path_factory: pytest.TempPathFactory, redis_session: services.Redis, crm: Crm,
    postgres_server: services.Postgres, postgres_template: str,
) -> Place:  # fmt: skip
    """Runs on PostgreSQL."""
    postgres_server.start()

    def database() -> tuple[str, Callable[[], None]]:
        name = postgres_server.create(postgres_template)
        return postgres_server.url(name), lambda: postgres_server.drop(name)

    return Place(tmp_path_factory.mktemp("runs"), database, without_number(redis_session), crm.url)


def without_number(server: services.Redis) -> str:
    server.start()
    return server.url.rpartition("/")[0]


# --- a few -----------------------------------------------------------------------------------------------------------

# What the scheduler's call and the worker's begin with, and the moment. The two of a line fail in one run.
PROMOTED, MADE = "COMMIT of UPDATE jobs by scheduler.service", "COMMIT of INSERT jobs by scheduler.materialize"
CLAIMED, RECORDED = "UPDATE jobs by workers.app", "COMMIT of UPDATE jobs by workers.recorder"
FEW = {
    "postgres": [
        (KILL, PROMOTED, AFTER, CLAIMED, AFTER),
        (KILL, MADE, AFTER, RECORDED, BEFORE),
        (KILL, "publish", BEFORE, "PUT http", AFTER),
        (RAISE, PROMOTED, AFTER, CLAIMED, AFTER),
        (RAISE, MADE, AFTER, "COMMIT of INSERT entities", AFTER),
        (RAISE, "publish", AFTER, RECORDED, AFTER),
        (RAISE, "SELECT workers", BEFORE, "PUT http", AFTER),
    ],
    "sqlite": [
        (KILL, "COMMIT of DELETE fanout_deltas", BEFORE, "COMMIT of INSERT entities", AFTER),
        (RAISE, "BEGIN IMMEDIATE by scheduler.service", BEFORE, "COMMIT of UPDATE jobs by workers.app", BEFORE),
    ],
}


@pytest.mark.timeout(400)
@pytest.mark.parametrize("database", list(FEW))
def test_a_few_calls_fail_one_by_one_and_the_ledger_is_right(
    database: str, bench: Bench, request: pytest.FixtureRequest
) -> None:
    place: Place = request.getfixturevalue(database)
    points = golden(bench, place, "mix", runs=1)
    chosen = [few(points, line) for line in FEW[database]]
    assert not wrong(bench.runs(place, "mix", chosen))


def few(points: list[Point], line: tuple[str, str, str, str, str]) -> Faults:
    """The faults of a line: each at the first point whose name begins so."""
    how, *calls = line
    return {
        role: next(
            Fault(point.name, 1, when, how) for point in points if point.role == role and point.name.startswith(begin)
        )
        for role, (begin, when) in zip(ROLES, (calls[:2], calls[2:]), strict=True)
    }


# --- all -------------------------------------------------------------------------------------------------------------


@pytest.mark.chaos
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_every_call_fails_once_and_the_ledger_is_right(
    database: str, bench: Bench, request: pytest.FixtureRequest
) -> None:
    place: Place = request.getfixturevalue(database)
    try_all(bench, place, "mix", golden(bench, place, "mix"), replies_get_lost=database == "postgres")


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_every_call_about_containers_fails_once_and_none_is_left(
    bench: Bench, postgres: Place, docker_engine: services.Docker
) -> None:
    place = replace(postgres, docker=docker_engine.url)
    known = {(point.role, point.name) for point in golden(bench, place, "mix")}
    points = [point for point in golden(bench, place, "containers") if (point.role, point.name) not in known]
    try_all(bench, place, "containers", points, replies_get_lost=True)


def try_all(bench: Bench, place: Place, mix: str, points: Sequence[Point], *, replies_get_lost: bool) -> None:
    """The sweep; prints what was tried as JSON."""
    began = time.monotonic()
    wanted = [faults for faults in sweep(points, replies_get_lost=replies_get_lost) if ONLY in describe(faults)]
    tried: list[tuple[Faults, Result]] = []
    for run in bench.runs(place, mix, wanted):
        tried.append(run)
        for line in wrong([run]):
            print(line, flush=True)  # at once: the whole takes minutes
    summary = {
        "mix": mix, "points": len(points), "faults": sum(map(len, wanted)), "runs": len(tried), "wrong": wrong(tried),
        "did_not_come": [str(faults[role]) for faults, result in tried for role in result.missed],
        "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip
    print("\n" + json.dumps(summary, indent=1))
    assert not summary["wrong"]


def describe(faults: Faults) -> str:
    return " and ".join(f"{role}: {fault}" for role, fault in faults.items())
