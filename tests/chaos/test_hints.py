"""What hints may do to jobs, and what jobs do without any."""

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobq import Every
from jobq.broker import Hint
from tests.rig import Rig
from tests.services import Redis, wait_until

AWAY = float(os.environ.get("AWAY") or 60)
"""Seconds for which the broker is away; the design says 600, which AWAY=600 tries."""


@pytest.fixture
def rig(tmp_path: Path, postgres_url: str, redis_url: str) -> Iterator[Rig]:
    with Rig(tmp_path, postgres_url, redis_url, redis_url) as rig:
        rig.start(slots=50)
        yield rig


@pytest.mark.chaos
@pytest.mark.timeout(180)
def test_hints_that_come_five_times_and_out_of_order_make_no_second_owner(rig: Rig) -> None:
    for _ in range(4):
        ids = rig.load(100)
        hints = [Hint("tally", random.sample(ids, 10)) for _ in range(50)]  # each id five times, about
        hints += [Hint("tally", ids[::-1])] * 5
        random.shuffle(hints)
        rig.broker.publish(hints)
    rig.settle_each_once()


def rate(rig: Rig, seconds: float) -> float:
    """Jobs a second, while there are always some to do."""
    began, before = time.monotonic(), rig.ended()
    while time.monotonic() - began < seconds:
        if rig.unfinished() < 1000:
            rig.load(1000)
        wait_until(lambda: rig.unfinished() < 1000, timeout=60, interval=0.1)
    return (rig.ended() - before) / (time.monotonic() - began)


def check_life_without_a_broker(rig: Rig, server: Redis, *, normal_for: float, away_for: float) -> float:
    """The share of the normal throughput of jobs that do nothing while the broker is away."""
    rate(rig, 1)
    normal = rate(rig, normal_for)
    server.kill()
    rig.fleet.jobq.create_workflow(
        {"file": str(rig.file)}, kind="TALLY", name="ticking", schedule=Every(1), priority=9, overlap="allow",
        misfire="catch_up",
    )  # fmt: skip
    away = rate(rig, away_for)
    rig.fleet.jobq.terminate_workflow("ticking")
    rig.fleet.wait_until_done(60)
    slots, seconds = rig.fleet.ask(
        "SELECT count(*), extract(epoch FROM max(slot_at) - min(slot_at)) FROM jobq_jobs WHERE slot_at IS NOT NULL"
    )[0]
    server.start()
    rig.listen(60)
    rig.settle()
    print(f"\nnormal: {normal:.0f} jobs/s; without the broker for {away_for:.0f} s: {away:.0f} jobs/s")
    assert slots == seconds + 1 >= away_for - 2, "each second has its job"
    return away / normal


@pytest.mark.timeout(180)
def test_a_broker_that_is_away_leaves_at_least_a_fifth_of_the_throughput(rig: Rig, redis_server: Redis) -> None:
    assert check_life_without_a_broker(rig, redis_server, normal_for=2, away_for=4) >= 0.2


@pytest.mark.chaos
@pytest.mark.timeout(1500)
def test_a_broker_that_is_away_for_long_leaves_at_least_a_fifth_of_the_throughput(
    rig: Rig, redis_server: Redis
) -> None:
    assert check_life_without_a_broker(rig, redis_server, normal_for=15, away_for=AWAY) >= 0.2


@pytest.mark.chaos
@pytest.mark.timeout(300)
def test_without_faults_no_job_is_executed_twice(rig: Rig) -> None:
    for _ in range(5):
        rig.load(1000, random.choice([0.0, 0.01, 0.1]))
    rig.settle_each_once(200)
