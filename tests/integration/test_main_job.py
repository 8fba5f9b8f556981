"""The main job, end to end, with real processes on PostgreSQL and Redis: scheduled, queued, executed, recorded."""

import signal
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from jobq import Container, Definition, Every, Status
from jobq.validation import parse
from tests.fleet import Fleet
from tests.services import Docker, Redis, wait_until

QUICK = {"lease": 9, "renew_every": 1, "drain_timeout": 5}
"""Settings with which a death is noticed within seconds."""


@pytest.fixture
def fleet(tmp_path: Path, postgres_url: str, redis_url: str) -> Iterator[Fleet]:
    with Fleet(tmp_path, postgres_url, redis_url, **QUICK) as fleet:
        yield fleet


@pytest.mark.timeout(300)
def test_two_schedulers_and_three_workers_make_each_slot_of_a_thousand_workflows_once(fleet: Fleet) -> None:
    fields = {"kind": "NAP", "interval": 3, "misfire": "catch_up", "max_catch_up": 1000}
    fleet.jobq.apply([parse(Definition, {**fields, "name": f"w{number}"}) for number in range(1000)])
    for _ in range(2):
        fleet.scheduler()
    for _ in range(3):
        fleet.worker("nap:200")
    wait_until(lambda: fewest(fleet) >= 4, timeout=60, interval=0.5, what="four jobs of each workflow")
    names = [workflow.name for page in pages(fleet) for workflow in page]
    with fleet.jobq.database.begin() as conn:
        conn.exec_driver_sql("UPDATE jobq_workflows SET status = 'PAUSED', next_fire_at = NULL")
    fleet.wait_until_done()

    odd = fleet.ask(
        "SELECT workflow_id, count(*), count(DISTINCT slot_at), min(slot_at), max(slot_at) FROM jobq_jobs "
        "GROUP BY workflow_id HAVING count(*) <> count(DISTINCT slot_at) "
        "OR extract(epoch FROM max(slot_at) - min(slot_at)) <> 3 * (count(*) - 1)"
    )
    assert len(names) == 1000
    assert not odd, "a slot is missing or was made twice"
    assert not fleet.ask("SELECT id FROM jobq_jobs WHERE attempt > 1"), "a job was executed twice"
    fleet.check_ledger(set())


def fewest(fleet: Fleet) -> int:
    """How many jobs the workflow has that has the fewest of the thousand."""
    counts = fleet.ask(
        "SELECT count(*), min(n) FROM (SELECT count(*) AS n FROM jobq_jobs GROUP BY workflow_id) AS each"
    )
    return int(counts[0][1]) if counts[0][0] == 1000 else 0


def pages(fleet: Fleet) -> Iterator[list]:
    cursor = None
    while True:
        page = fleet.jobq.list_workflows(limit=200, cursor=cursor)
        yield page.items
        if (cursor := page.next_cursor) is None:
            return


def test_a_killed_worker_loses_no_job_and_none_ends_twice(fleet: Fleet) -> None:
    fleet.scheduler()
    victim, _survivor = fleet.worker(), fleet.worker()
    accepted = fleet.jobq.enqueue_many([{"kind": "NAP", "spec": {"seconds": 0.5}}] * 300)
    wait_until(lambda: count_running(fleet) >= 60, timeout=20, what="both workers to be at work")
    victim.kill()
    fleet.wait_until_done(90)

    fleet.check_ledger(set(accepted))
    assert fleet.ends() == {"COMPLETED·succeeded": 300}
    lost = fleet.ask("SELECT count(*) FROM jobq_attempts WHERE outcome = 'LOST'")[0][0]
    assert lost > 0, "the worker was killed before it had any job"


def count_running(fleet: Fleet) -> int:
    return int(fleet.ask("SELECT count(*) FROM jobq_jobs WHERE status = 'RUNNING'")[0][0])


def test_a_frozen_worker_cannot_record_what_others_have_taken_over(fleet: Fleet) -> None:
    fleet.scheduler()
    frozen = fleet.worker("nap:5")
    accepted = fleet.jobq.enqueue_many([{"kind": "NAP", "spec": {"seconds": 2}}] * 5)
    wait_until(lambda: count_running(fleet) == 5, timeout=20, what="the worker to be at work")
    frozen.send_signal(signal.SIGSTOP)
    fleet.worker("nap:5")
    fleet.wait_until_done(60)
    frozen.send_signal(signal.SIGCONT)
    wait_until(lambda: len(fleet.jobq.workers.list()) == 2, timeout=20, what="the thawed worker to register anew")

    fleet.check_ledger(set(accepted))
    assert fleet.ends() == {"COMPLETED·succeeded": 5}
    assert not fleet.ask("SELECT 1 FROM jobq_jobs WHERE attempt < 2"), "the frozen worker's outcome was taken"


def test_a_flushed_redis_delays_jobs_by_seconds_and_loses_none(fleet: Fleet, redis_server: Redis) -> None:
    fleet.scheduler()
    for _ in range(2):
        fleet.worker("nap:20")
    accepted: set = set()
    for _ in range(6):
        accepted |= set(fleet.jobq.enqueue_many([{"kind": "NAP", "spec": {"seconds": 0.05}}] * 200))
        redis_server.flush()
    fleet.wait_until_done(60)
    fleet.check_ledger(accepted)

    redis_server.flush()
    job = fleet.jobq.enqueue({}, kind="NAP")
    assert fleet.jobq.wait(job.id, timeout=10).status is Status.COMPLETED


def test_jobs_are_accepted_scheduled_and_executed_while_redis_is_away(fleet: Fleet, redis_server: Redis) -> None:
    fleet.scheduler()
    for _ in range(2):
        fleet.worker("nap:20")
    first = fleet.jobq.enqueue({}, kind="NAP")
    fleet.jobq.wait(first.id, timeout=20)
    redis_server.kill()
    fleet.jobq.create_workflow({}, kind="NAP", name="ticking", schedule=Every(1))
    accepted = set(fleet.jobq.enqueue_many([{"kind": "NAP", "spec": {"seconds": 0.01}}] * 500))
    ended = "SELECT count(*) FROM jobq_jobs WHERE status = 'COMPLETED' AND trigger = "
    wait_until(lambda: fleet.ask(f"{ended} 'MANUAL'")[0][0] == 501, timeout=50, interval=0.2, what="the jobs")
    wait_until(lambda: fleet.ask(f"{ended} 'AUTOMATIC'")[0][0] >= 5, timeout=30, interval=0.2, what="a few slots")
    redis_server.start()
    again = fleet.jobq.enqueue({}, kind="NAP")
    assert fleet.jobq.wait(again.id, timeout=20).status is Status.COMPLETED
    fleet.jobq.terminate_workflow("ticking")
    fleet.wait_until_done(20)

    fleet.check_ledger(accepted | {first.id, again.id})


def test_a_drained_worker_charges_no_attempt_and_exits(fleet: Fleet) -> None:
    fleet.scheduler()
    leaving = fleet.worker("nap:10")
    accepted = fleet.jobq.enqueue_many([{"kind": "NAP", "spec": {"seconds": 20}}] * 10, connection=None)
    wait_until(lambda: count_running(fleet) == 10, timeout=20, what="the worker to be at work")
    leaving.terminate()
    assert leaving.wait(timeout=20) == 0
    assert {fleet.jobq.get(job).failures for job in accepted} == {0}
    assert {fleet.jobq.get(job).status for job in accepted} <= {Status.PENDING, Status.QUEUED}
    for job in accepted:
        assert [attempt.outcome for attempt in fleet.jobq.attempts(job)] == ["DRAINED"]
        fleet.jobq.cancel(job)
    fleet.check_ledger(set(accepted))


def test_a_running_job_is_canceled_within_a_renewal_and_a_failing_workflow_terminates(fleet: Fleet) -> None:
    fleet.scheduler()
    fleet.worker()
    job = fleet.jobq.enqueue({"seconds": 50}, kind="NAP")
    wait_until(lambda: fleet.jobq.get(job.id).status is Status.RUNNING, timeout=20, what="the job to run")
    began = time.monotonic()
    fleet.jobq.cancel(job.id)
    assert fleet.jobq.wait(job.id, timeout=10).status is Status.CANCELED
    assert time.monotonic() - began < 5

    fleet.jobq.create_workflow(
        {"then": "fail"}, kind="NAP", name="doomed", schedule=Every(1), retry={"max_attempts": 1},
        max_consecutive_job_failures_allowed=2,
    )  # fmt: skip
    wait_until(lambda: fleet.jobq.get_workflow("doomed").status == "TERMINATED", timeout=20, what="the termination")
    assert fleet.jobq.get_workflow("doomed").consecutive_failures == 2


def test_containers_of_a_killed_worker_are_taken_over_and_none_is_left(
    tmp_path: Path, postgres_url: str, redis_url: str, docker_host: str, docker_engine: Docker
) -> None:
    with Fleet(tmp_path, postgres_url, redis_url, docker_host=docker_host, **QUICK) as fleet:
        fleet.scheduler()
        victim, _survivor = fleet.worker("container:4"), fleet.worker("container:4")
        stays = "trap go=1 USR1; echo begun; until [ $go ]; do sleep 0.1; done; echo done; exit 3"
        spec = Container(image="jobq-test:busybox", command=["sh", "-c", stays], pull="never")
        accepted = fleet.jobq.enqueue_many([{"kind": "CONTAINER", "spec": spec, "timeout": timedelta(seconds=50)}] * 8)
        wait_until(lambda: len(docker_engine.containers()) == 8, timeout=30, what="eight containers")
        wait_until(lambda: count_executing(fleet) == 8, timeout=30, what="eight running containers")
        mine = "SELECT 1 FROM jobq_jobs WHERE worker_id IN (SELECT id FROM jobq_workers WHERE name LIKE :name)"
        assert len(fleet.ask(mine, name=f"%:{victim.pid}")) == 4
        victim.kill()
        wait_until(lambda: not fleet.ask(mine, name=f"%:{victim.pid}"), timeout=60, what="its jobs to change hands")
        for container in docker_engine.containers():
            docker_engine.request("POST", f"/containers/{container}/kill?signal=USR1")
        fleet.wait_until_done(90)

        fleet.check_ledger(set(accepted))
        assert fleet.ends() == {"FAILED·nonzero_exit": 8}, fleet.logs()
        for job in accepted:
            (attempt,) = fleet.jobq.attempts(job)
            assert attempt.exit_code == 3, "the true exit code, also of containers that changed hands"
            assert [line.text for line in fleet.jobq.logs(job) if line.stream == "stdout"] == ["begun", "done"]
        wait_until(lambda: not docker_engine.containers(), timeout=30, what="no container to be left")


def count_executing(fleet: Fleet) -> int:
    return int(fleet.ask("SELECT count(*) FROM jobq_jobs WHERE reason = 'executing'")[0][0])


def test_secrets_reach_the_container_as_files_and_its_output_comes_back_as_artifacts(
    tmp_path: Path, postgres_url: str, redis_url: str, docker_host: str
) -> None:
    key = "a key for tests, long enough"
    with Fleet(tmp_path, postgres_url, redis_url, docker_host=docker_host, secret_key=key, **QUICK) as fleet:
        fleet.scheduler()
        fleet.worker("container:1")
        fleet.jobq.secrets.set("token", "canary-5f2c")
        script = "cat /run/secrets/t; echo; wc -c </run/secrets/t >/out/length; env | grep -c canary"
        spec = Container(
            image="jobq-test:busybox", command=["sh", "-c", script], secrets={"t": "token"}, output="/out", pull="never"
        )
        job = fleet.jobq.wait(fleet.jobq.enqueue(spec).id, timeout=30)

        assert job.message == "exit 1", "no environment variable holds the secret"
        assert [line.text for line in fleet.jobq.logs(job.id) if line.stream == "stdout"] == ["***", "0"]
        assert [artifact.name for artifact in fleet.jobq.artifacts(job.id)] == ["length"]
        assert fleet.jobq.artifact(job.id, "length").strip() == b"11"
        everything = [fleet.ask(f"SELECT * FROM {table}") for table in ("jobq_jobs", "jobq_job_data", "jobq_secrets")]
        assert "5f2c" not in repr(everything)

        missing = fleet.jobq.enqueue(spec.model_copy(update={"secrets": {"t": "nothing"}}))
        ended = fleet.jobq.wait(missing.id, timeout=30)
        assert ended.reason == "invalid"
        assert "There is no secret 'nothing'" in (ended.message or "")


def test_an_operator_drains_a_worker_and_it_exits_when_its_jobs_have_ended(fleet: Fleet) -> None:
    fleet.scheduler()
    leaving = fleet.worker("nap:5")
    job = fleet.jobq.enqueue({"seconds": 3}, kind="NAP")
    wait_until(lambda: fleet.jobq.get(job.id).status is Status.RUNNING, timeout=20, what="the job to run")
    (worker,) = fleet.jobq.workers.list()
    fleet.jobq.workers.drain(worker.id)
    waiting = fleet.jobq.enqueue({}, kind="NAP")
    assert leaving.wait(timeout=20) == 0
    assert fleet.jobq.get(job.id).status is Status.COMPLETED
    assert fleet.jobq.get(waiting.id).status is Status.PENDING
    assert "no live worker for queue nap" in fleet.jobq.why(waiting.id)


def test_the_celery_command_starts_the_same_worker(fleet: Fleet) -> None:
    fleet.scheduler()
    fleet.environment["JOBQ_QUEUES"] = "nap:7"
    worker = fleet.start(sys.executable, "-m", "celery", "-A", "workers.app", "worker", "--loglevel", "WARNING")
    job = fleet.jobq.enqueue({}, kind="NAP")
    assert fleet.jobq.wait(job.id, timeout=30).status is Status.COMPLETED, fleet.logs()
    assert [found.queues for found in fleet.jobq.workers.list()] == [{"nap": 7}]
    worker.terminate()
    assert worker.wait(timeout=20) == 0
    assert not fleet.jobq.workers.list()
