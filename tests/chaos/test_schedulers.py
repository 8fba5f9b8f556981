"""Schedulers that are killed, and that were away: another goes on at once, and missed slots follow their policy exactly."""

import subprocess
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import get_args

import pytest

from jobq import Every, Workflow
from jobq.schedule import Misfire
from tests.rig import Rig
from tests.services import wait_until


@pytest.fixture
def rig(tmp_path: Path, postgres_url: str, redis_url: str) -> Iterator[Rig]:
    with Rig(tmp_path, postgres_url, redis_url, redis_url) as rig:
        yield rig


# --- killed ----------------------------------------------------------------------------------------------------------


def longest_gap(rig: Rig, since: float) -> float:
    """Seconds: the longest time in which no job was promoted."""
    rows = rig.fleet.ask(
        "SELECT extract(epoch FROM queued_at) FROM jobq_jobs WHERE extract(epoch FROM queued_at) > :since ORDER BY 1",
        since=since - 0.5,
    )
    instants = [since, *(float(at) for (at,) in rows)]
    return max(after - before for before, after in pairwise(instants))


def check_takeover(rig: Rig, kills: int) -> None:
    """Each of two schedulers is killed in turn, while a stream of jobs comes in."""
    schedulers = rig.fleet.processes[:2]
    gaps = []
    for kill in range(kills):
        rig.load(30)
        wait_until(lambda: seen(rig, schedulers), timeout=60, what="both schedulers to run")
        victim = schedulers[kill % 2]
        victim.kill()
        at = time.time()
        victim.wait()
        while time.time() - at < 3:
            ids = rig.load(5)
            wait_until(lambda: all(rig.fleet.jobq.get(job).finished for job in ids), timeout=30)  # noqa: B023
        gaps.append(longest_gap(rig, at))
        schedulers[kill % 2] = rig.fleet.scheduler()
    print(f"\nseconds without a promotion after each kill: {sorted(round(gap, 2) for gap in gaps)}")
    assert max(gaps) <= 5
    rig.settle_each_once()


def seen(rig: Rig, schedulers: list[subprocess.Popen[bytes]]) -> bool:
    names = {name.rpartition(":")[2] for (name,) in rig.fleet.ask("SELECT name FROM jobq_schedulers")}
    return {str(process.pid) for process in schedulers} <= names


@pytest.mark.timeout(180)
def test_another_scheduler_goes_on_within_seconds_when_one_is_killed(rig: Rig) -> None:
    rig.start(workers=1, schedulers=2)
    check_takeover(rig, kills=1)


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_schedulers_that_are_killed_in_turn_never_hold_promotion_up_for_long(rig: Rig) -> None:
    rig.start(workers=1, schedulers=2)
    check_takeover(rig, kills=8)


# --- away ------------------------------------------------------------------------------------------------------------

MADE_UP = {"coalesce": 1, "skip": 0, "catch_up": 4}
"""How many of the six slots that an hour holds each policy runs when a scheduler is back."""
EVERY = timedelta(minutes=10)


def away_for_an_hour(rig: Rig, flow: Workflow) -> list[datetime]:
    """Its instants move back, as if no scheduler had looked for an hour: the six slots that passed meanwhile.

    The newest is some minutes old, beyond every grace, and the next one some minutes ahead.
    """
    rig.fleet.execute(
        "UPDATE jobq_workflows SET next_fire_at = now() - interval '3200 s', anchor_at = now() - interval '3800 s' "
        "WHERE id = :id", id=flow.id,
    )  # fmt: skip
    (first,) = rig.fleet.ask("SELECT next_fire_at FROM jobq_workflows WHERE id = :id", id=flow.id)[0]
    return [first + number * EVERY for number in range(6)]


@pytest.mark.timeout(120)
def test_after_an_hour_without_schedulers_missed_slots_follow_the_policy_of_their_workflow(rig: Rig) -> None:
    policy: Misfire
    missed, flows = {}, {}
    for policy in get_args(Misfire):
        flows[policy] = rig.fleet.jobq.create_workflow(
            {"file": str(rig.file)}, kind="TALLY", name=policy, schedule=Every(EVERY), misfire=policy, max_catch_up=4,
            overlap="allow",
        )  # fmt: skip
        missed[policy] = away_for_an_hour(rig, flows[policy])
    rig.start(workers=1, schedulers=2)
    wait_until(lambda: not rig.fleet.ask("SELECT 1 FROM jobq_workflows WHERE next_fire_at < now()"), timeout=30)
    executions = rig.settle()

    assert len(executions) == sum(MADE_UP.values())
    for policy, flow in flows.items():
        rows = rig.fleet.ask("SELECT slot_at, status FROM jobq_jobs WHERE workflow_id = :id ORDER BY 1", id=flow.id)
        newest = missed[policy][len(missed[policy]) - MADE_UP[policy] :]
        assert rows == [(slot, "COMPLETED") for slot in newest], policy
        (upcoming,) = rig.fleet.ask("SELECT next_fire_at FROM jobq_workflows WHERE id = :id", id=flow.id)[0]
        assert upcoming == missed[policy][-1] + EVERY, "no drift"
