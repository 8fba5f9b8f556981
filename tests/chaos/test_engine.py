"""Real workers on a Docker engine that dies, hangs or is flooded: the right reason, bounded memory, nothing left."""

import json
import re
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest

from jobq import Container, Status
from tests import services
from tests.fleet import Fleet
from tests.services import Docker, wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400)]


class LiveRestore(Docker):
    """An engine whose containers go on while it is away."""

    def command(self) -> list[str]:
        return [*super().command(), "--live-restore"]


@pytest.fixture
def fleet(tmp_path: Path, postgres_url: str, redis_url: str, docker_host: str) -> Iterator[Fleet]:
    with Fleet(tmp_path, postgres_url, redis_url, docker_host=docker_host, lease=9, renew_every=1) as fleet:
        fleet.scheduler()
        yield fleet


def run(fleet: Fleet, script: str, seconds: float = 120, **more: object) -> UUID:
    spec = Container(image=Docker.image, command=["sh", "-c", script], pull="never", **more)
    return fleet.jobq.enqueue(spec, timeout=timedelta(seconds=seconds)).id


def stdout(fleet: Fleet, job: UUID) -> list[str]:
    return [line.text for line in fleet.jobq.logs(job) if line.stream == "stdout"]


def test_containers_go_on_under_an_engine_with_live_restore_that_is_killed(
    tmp_path: Path, postgres_url: str, redis_url: str
) -> None:
    services.require(*Docker.programs)
    services.require_root("a private dockerd")
    with LiveRestore() as docker, Fleet(tmp_path, postgres_url, redis_url, docker_host=docker.url) as fleet:
        fleet.scheduler()
        fleet.worker("container:4")
        job = run(fleet, "echo begun; sleep 12; echo done; exit 7")
        wait_until(lambda: stdout(fleet, job) == ["begun"], 30, what="the container to run")
        docker.kill()
        docker.start()
        assert fleet.jobq.wait(job, timeout=90).message == "exit 7", fleet.logs()
        assert stdout(fleet, job) == ["begun", "done"]
        wait_until(lambda: not docker.containers(), 30, what="no container to be left")


def test_a_gigabyte_of_output_passes_through_a_worker_in_bounded_memory(fleet: Fleet, docker_engine: Docker) -> None:
    worker = fleet.worker("container:4")
    fleet.jobq.wait(run(fleet, "echo warm"), timeout=60)
    before = resident(worker.pid)
    job = run(
        fleet, "dd if=/dev/zero bs=1M count=1024 2>/dev/null | tr '\\0' x | fold -w 1000; echo; echo the end", 300
    )
    most = 0

    def ended() -> bool:
        nonlocal most
        most = max(most, resident(worker.pid))
        return fleet.jobq.get(job).finished

    wait_until(ended, 350, 0.1, what="the job to end")
    print("\n" + json.dumps({"rss_before_mb": before >> 20, "rss_most_mb": most >> 20}))
    assert fleet.jobq.get(job).status is Status.COMPLETED, fleet.logs()
    assert stdout(fleet, job)[-1] == "the end"
    assert any("bytes of output were dropped here" in line.text for line in fleet.jobq.logs(job))
    assert most - before < 100 << 20
    wait_until(lambda: not docker_engine.containers(), 30, what="no container to be left")


def test_an_engine_that_is_frozen_costs_no_worker_its_lease_and_nothing_is_left_when_it_wakes(
    fleet: Fleet, docker_engine: Docker
) -> None:
    fleet.worker("container:8")
    short, long = run(fleet, "echo up; sleep 100", 3), run(fleet, "echo up; sleep 25; exit 5")
    canceled = run(fleet, "echo up; sleep 100")
    for job in (short, long, canceled):
        wait_until(lambda: stdout(fleet, job) == ["up"], 30, what="the containers to run")  # noqa: B023
    docker_engine.freeze()
    fleet.jobq.cancel(canceled)
    began = time.monotonic()
    wait_until(lambda: time.monotonic() - began > 20, 25, 0.5)
    assert not fleet.ask("SELECT 1 FROM jobq_workers WHERE dead_at IS NOT NULL"), fleet.logs()
    docker_engine.thaw()
    thawed = time.monotonic()
    fleet.wait_until_done(60)
    wait_until(lambda: not docker_engine.containers(), 30, what="no container to be left")
    assert time.monotonic() - thawed < 60
    assert fleet.jobq.get(short).reason == "timed_out", fleet.logs()
    assert fleet.jobq.get(long).message == "exit 5"
    assert fleet.jobq.get(canceled).status is Status.CANCELED
    fleet.check_ledger({short, long, canceled})


def test_a_cancel_reaches_a_container_within_five_seconds_and_a_timeout_kills_within_three_more(
    fleet: Fleet, docker_engine: Docker
) -> None:
    fleet.worker("container:8")
    deaf = "trap '' TERM; echo up; while :; do sleep 0.2; done"
    canceled, limited = run(fleet, deaf), run(fleet, deaf, 5)
    for job in (canceled, limited):
        wait_until(lambda: stdout(fleet, job) == ["up"], 30, what="the containers to run")  # noqa: B023
    began = time.monotonic()
    fleet.jobq.cancel(canceled)
    assert fleet.jobq.wait(canceled, timeout=30).status is Status.CANCELED
    cancel = time.monotonic() - began
    ended = fleet.jobq.wait(limited, timeout=30)
    (attempt,) = fleet.jobq.attempts(limited)
    (ran,) = [step.seconds for step in attempt.steps if step.name == "run"]
    (stopped,) = [step.seconds for step in attempt.steps if step.name == "stop"]
    print("\n" + json.dumps({"cancel_s": round(cancel, 2), "timeout_s": ran, "dead_after_timeout_s": stopped}))
    assert ended.reason == "timed_out"
    assert cancel <= 5
    assert ran + stopped <= 5 + 3


def resident(pid: int) -> int:
    """Bytes of memory that a process has."""
    return int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0]) * 1024
