"""The reply to a COMMIT is lost, verb by verb: what was done is done once, whoever repeats it.

One scheduler and one worker reach their database through a proxy that knows where transactions end.
"""

import json
import os
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from jobq import Conflict, Every, JobQ, Reason, Status, TooMany
from tests.commits import Commits
from tests.crm import TOKEN, Crm
from tests.fleet import Fleet
from tests.services import Postgres, Redis, wait_until

QUICK = {"lease": 15, "renew_every": 0.5, "drain_timeout": 5, "secret_key": "a key for tests, long enough"}
AUTH = {"type": "bearer", "secret": "token"}
AGAIN = {"max_attempts": 5, "initial": 0.1, "maximum": 0.2, "retry_lost": True}
SEED = int(os.environ.get("SEED", "0")) or random.randrange(1 << 30)


@dataclass
class Stage:
    """The fleet, the proxy before its database, and a client that goes straight to that."""

    fleet: Fleet
    wire: Commits
    direct: JobQ
    crm: Crm
    files: Path

    def naps(self, count: int, **spec: Any) -> set[Any]:
        """So many jobs, enqueued past the proxy."""
        request = {"kind": "NAP", "spec": {"say": "hello", **spec}, "retry": AGAIN}
        return set(self.direct.enqueue_many([request] * count))

    def lost(self, count: int) -> None:
        """Wait until so many replies were lost."""
        wait_until(lambda: len(self.wire.swallowed) >= count, timeout=30, what=f"{count} lost replies")


@pytest.fixture(scope="module")
def theatre(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: Postgres, postgres_template: str, redis_session: Redis
) -> Iterator[Stage]:
    postgres_server.start()
    redis_session.start()
    redis_session.flush()
    name = postgres_server.create(postgres_template)
    folder = tmp_path_factory.mktemp("lost")
    (folder / "area").mkdir()
    policy = {"probe_networks": ["127.0.0.0/8"], "areas": [str(folder / "area")]}
    with ExitStack() as stack:
        wire, crm = stack.enter_context(Commits(postgres_server)), stack.enter_context(Crm())
        url = wire.url(postgres_server.url(name))
        fleet = stack.enter_context(Fleet(folder, url, redis_session.url, policy=policy, **QUICK))
        direct = stack.enter_context(
            JobQ(settings=fleet.jobq.settings.model_copy(update={"database_url": postgres_server.url(name)}))
        )
        direct.secrets.set("crm-token", TOKEN)
        fleet.scheduler()
        fleet.worker("nap:50,sync:2,replication:20")
        yield Stage(fleet, wire, direct, crm, folder / "area")
    postgres_server.drop(name)


@pytest.fixture
def stage(theatre: Stage) -> Stage:
    """The same for all tests of the module; nothing is under way, and no reply was lost yet."""
    theatre.fleet.wait_until_done()
    theatre.wire.swallowed.clear()
    return theatre


# --- the fleet -------------------------------------------------------------------------------------------------------


def completed(stage: Stage, jobs: set[Any]) -> dict[str, int]:
    """All of these have succeeded and said hello once for each attempt that ran; how their attempts ended."""
    wait_until(lambda: all(stage.direct.get(job).finished for job in jobs), timeout=30, what="the jobs")
    stage.fleet.wait_until_done()
    stage.fleet.check_ledger(jobs)
    assert {stage.direct.get(job).status for job in jobs} == {Status.COMPLETED}
    assert {len(list(stage.direct.logs(job))) for job in jobs} == {1}
    outcomes = [attempt.outcome for job in jobs for attempt in stage.direct.attempts(job)]
    return {outcome: outcomes.count(outcome) for outcome in set(outcomes)}


def test_jobs_that_were_promoted_unknown_to_the_scheduler_run_once(stage: Stage) -> None:
    stage.wire.lose(r"pg_try_advisory_xact_lock.*UPDATE jobq_jobs SET status", 2)
    jobs = stage.naps(20) | stage.naps(20)
    stage.lost(1)
    assert completed(stage, jobs) == {"COMPLETED": 40}
    stage.naps(1)
    stage.lost(2)


def test_jobs_that_were_claimed_unknown_to_the_worker_are_given_back_and_run_once(stage: Stage) -> None:
    stage.wire.lose(r"UPDATE jobq_jobs SET .*attempt=\(jobq_jobs\.attempt \+(?!.*COMMIT)")
    jobs = stage.naps(20)
    stage.lost(1)
    ends = completed(stage, jobs)
    assert ends["COMPLETED"] == 20
    assert 1 <= ends["LOST"] <= 20


def test_outcomes_whose_record_was_not_confirmed_are_recorded_once(stage: Stage) -> None:
    stage.wire.lose(r"INSERT INTO jobq_attempts")
    jobs = stage.naps(20)
    stage.lost(1)
    assert completed(stage, jobs) == {"COMPLETED": 20}


def test_a_renewal_that_was_not_confirmed_costs_no_job(stage: Stage) -> None:
    jobs = stage.naps(5, seconds=2)
    stage.wire.lose(r"UPDATE jobq_workers SET", 3)
    stage.lost(3)
    assert completed(stage, jobs) == {"COMPLETED": 5}


def test_a_registration_that_was_not_confirmed_makes_one_worker(stage: Stage) -> None:
    before = len(stage.direct.workers.list())
    stage.wire.lose(r"INSERT INTO jobq_workers")
    worker = stage.fleet.worker("nap:1")
    stage.lost(1)
    log = stage.fleet.folder / f"{len(stage.fleet.processes) - 1}.log"
    wait_until(lambda: "registered as" in log.read_text(), timeout=20, what="the worker to know of its registration")
    assert len(stage.direct.workers.list()) == before + 1
    assert "Traceback" not in log.read_text()
    worker.terminate()
    assert worker.wait(20) == 0


def test_slots_that_were_made_unknown_to_the_scheduler_are_made_once(stage: Stage) -> None:
    stage.wire.lose(r"UPDATE jobq_workflows SET next_fire_at", 2)
    flow = stage.direct.create_workflow({}, kind="NAP", name="ticking", schedule=Every(1), misfire="catch_up")
    stage.lost(2)
    stage.direct.terminate_workflow(flow.id)
    stage.fleet.wait_until_done()
    slots = [row[0] for row in stage.fleet.ask("SELECT slot_at FROM jobq_jobs WHERE workflow_id = :id", id=flow.id)]
    assert len(slots) == len(set(slots)) == (max(slots) - min(slots)).total_seconds() + 1


def test_a_batch_of_a_sync_that_was_stored_unknown_to_its_reader_has_each_child_once(stage: Stage) -> None:
    records = [{"id": str(number), "name": f"n{number}"} for number in range(30)]
    (stage.files / "customers.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    source = {"type": "jsonl", "config": {"path": str(stage.files / "customers.jsonl")}}
    target = {"name": "shop", "type": "http", "config": {"url": f"{stage.crm.url}/shop/{{key}}", "auth": AUTH}}
    stage.wire.lose(r"INSERT INTO jobq_entities")
    spec = {"domain": "lost", "source": source, "mapping": {"id": "id", "name": "name"}, "targets": [target]}
    target["secrets"] = {"token": "crm-token"}
    sync = stage.direct.enqueue(spec, kind="SYNC", retry=AGAIN)
    stage.lost(1)
    ended = stage.direct.wait(sync.id, timeout=30)
    counts = stage.direct.fanout(sync.id)
    assert (ended.status, ended.message) == (Status.COMPLETED, None)
    assert (counts.read, counts.new, counts.existing, counts.total, counts.completed) == (30, 30, 0, 30, 30)


# --- people and applications -----------------------------------------------------------------------------------------


def test_what_an_application_enqueued_and_was_not_told_is_there_once(stage: Stage) -> None:
    client = stage.fleet.jobq
    stage.wire.lose(r"INSERT INTO jobq_jobs")
    job = client.enqueue({}, kind="NAP")
    stage.wire.lose(r"INSERT INTO jobq_jobs")
    keyed = client.enqueue({}, kind="NAP", idempotency_key="order 7")
    stage.wire.lose(r"INSERT INTO jobq_jobs")
    many = client.enqueue_many([{"kind": "NAP"}] * 10)
    stage.lost(3)
    stage.fleet.wait_until_done()
    (count,) = stage.fleet.ask("SELECT count(*) FROM jobq_jobs WHERE id >= :first", first=job.id)[0]
    assert count == len({job.id, keyed.id, *many}) == 12


def test_what_a_person_asked_for_and_was_not_told_happened_once(stage: Stage) -> None:
    client = stage.fleet.jobq

    def unconfirmed(pattern: str, act: Callable[[], Any]) -> Any:
        before = len(stage.wire.swallowed)
        stage.wire.lose(pattern)
        done = act()
        assert len(stage.wire.swallowed) == before + 1
        return done

    flow = unconfirmed("INSERT INTO jobq_workflows", lambda: client.create_workflow({}, kind="NAP", name="by hand"))
    job = unconfirmed("INSERT INTO jobq_jobs", lambda: client.trigger(flow.id))
    client.wait(job.id, timeout=20)
    again = unconfirmed("INSERT INTO jobq_jobs", lambda: client.retry(job.id))
    assert [found.id for found in client.list(workflow_id=flow.id).items] == [again.id, job.id]

    later = client.trigger(flow.id, scheduled_at=datetime.now(UTC) + timedelta(days=1))
    assert unconfirmed("'?jobq_jobs", lambda: client.pause(later.id)).reason is Reason.PAUSED
    assert unconfirmed("jobq_jobs", lambda: client.resume(later.id)).reason is Reason.SCHEDULED
    assert unconfirmed("jobq_jobs", lambda: client.cancel(later.id)).status is Status.CANCELED
    with pytest.raises(Conflict):
        client.cancel(later.id)


def test_what_fills_a_quota_is_accepted_though_its_reply_was_lost(stage: Stage) -> None:
    """The second try of a call that was committed meets a quota that the first try has filled."""
    client = stage.fleet.jobq.acting("narrow", "test")
    client.tenants.quota("narrow", waiting=1, schedules=1)
    later = datetime.now(UTC) + timedelta(days=1)
    by_hand = client.create_workflow({}, kind="NAP", name="by hand")
    ended = client.cancel(client.trigger("by hand", scheduled_at=later).id)
    jobq_doors: list[Callable[[], Any]] = [
        lambda: client.enqueue({}, kind="NAP", queue="nowhere"),
        lambda: client.enqueue({}, kind="NAP", queue="nowhere", idempotency_key="one"),
        lambda: client.enqueue({}, kind="NAP", scheduled_at=later),
        lambda: client.get(client.enqueue_many([{"kind": "NAP", "queue": "nowhere"}], idempotency_key="many")[0]),
        lambda: client.trigger(by_hand.id, scheduled_at=later),
        lambda: client.trigger(by_hand.id, scheduled_at=later, idempotency_key="two"),
        lambda: client.retry(ended.id),
    ]
    for lost, door in enumerate(jobq_doors):
        client.quotas.forget("narrow")
        stage.wire.lose(r"INSERT INTO jobq_jobs")
        job = door()
        stage.lost(lost + 1)
        with pytest.raises(TooMany):
            client.enqueue({}, kind="NAP")
        if not client.get(job.id).finished:
            client.cancel(job.id)
    stage.wire.lose(r"INSERT INTO jobq_workflows")
    client.create_workflow({}, kind="NAP", name="yearly", schedule=Every("P300D"))
    stage.lost(len(jobq_doors) + 1)
    with pytest.raises(TooMany):
        client.create_workflow({}, kind="NAP", schedule=Every("P300D"))


# --- all of it at once -----------------------------------------------------------------------------------------------


@pytest.mark.chaos
@pytest.mark.timeout(240)
def test_no_job_is_lost_or_doubled_while_every_tenth_reply_is_lost(stage: Stage) -> None:
    dice = random.Random(SEED)
    print(f"seed {SEED}")
    flow = stage.direct.create_workflow({}, kind="NAP", name="storm", schedule=Every(1), misfire="catch_up")
    stage.wire.lose_by(lambda: dice.random() < 0.1)
    accepted = set[Any]()
    for _ in range(100):
        accepted |= set(stage.fleet.jobq.enqueue_many([{"kind": "NAP", "spec": {"seconds": 0.05}, "retry": AGAIN}] * 5))
        accepted.add(stage.fleet.jobq.enqueue({"say": "hello"}, kind="NAP", retry=AGAIN).id)
    stage.wire.lose_by(lambda: False)
    stage.direct.terminate_workflow(flow.id)
    stage.fleet.wait_until_done(60)

    stage.fleet.check_ledger(accepted)
    made = stage.fleet.ask("SELECT count(*) FROM jobq_jobs WHERE id >= :first AND slot_at IS NULL", first=min(accepted))
    assert made[0][0] == len(accepted) == 600
    ended = [stage.direct.get(job) for job in accepted]
    assert {job.status for job in ended} == {Status.COMPLETED}
    assert len(stage.wire.swallowed) > 20
