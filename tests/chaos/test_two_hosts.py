"""Two machines with their own workers and Docker engines, of which one is cut off from the database and the broker."""

import json
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest

from jobq import Container
from tests import services
from tests.conftest import upgrade_at
from tests.fleet import Fleet
from tests.hosts import Host, Hub, Watch, beats_overlap, root_with
from tests.services import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400)]

LEASE = 9
RETRIED = {"max_attempts": 9, "initial": 0.1, "maximum": 1, "retry_lost": True}


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    root_with("initdb", "redis-server", "ip")
    with Hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def other_engine() -> Iterator[services.Docker]:
    services.require(*services.Docker.programs)
    with services.Docker() as docker:
        yield docker


@pytest.fixture
def hosts(hub: Hub, docker_engine: services.Docker, other_engine: services.Docker) -> list[Host]:
    other_engine.clear()
    found = hub.hosts or [hub.host(docker_engine), hub.host(other_engine)]
    for host in found:
        host.heal()
    return found


class Machines:
    """A fleet on two machines, and what runs on the one that is to be cut off."""

    def __init__(self, folder: Path, hub: Hub, hosts: list[Host], grace: int) -> None:
        self.folder, self.hub, self.hosts = folder, hub, hosts
        self.database = hub.create()
        upgrade_at(hub.url(self.database))
        self.fleet = Fleet(
            folder, hub.url(self.database), f"redis://127.0.0.1:{hub.redis_port}/0",
            plugins=["tests.beats:BeatExecutor"], lease=LEASE, renew_every=1, reattach_grace=grace,
        )  # fmt: skip
        self.fleet.scheduler(*hub.inside)

    def worker(self, host: Host) -> None:
        self.fleet.worker("beat:20,container:20", host.inside(self.database))

    def beats(self, count: int, seconds: float) -> list[UUID]:
        spec = {"folder": str(self.folder), "seconds": seconds}
        return self.fleet.jobq.enqueue_many([{"kind": "BEAT", "spec": spec, "retry": RETRIED}] * count)

    def containers(self, count: int, **more: object) -> list[UUID]:
        """They count until they are told to end; at later attempts to three."""
        script = """
            trap over=1 USR1; i=0
            while [ -z "$over" ]; do
              i=$((i+1)); echo $i; sleep 0.5
              if [ $i = 3 ] && [ $JOBQ_ATTEMPT != 1 ]; then over=1; fi
            done"""
        spec = Container(image=services.Docker.image, command=["sh", "-c", script], pull="never")
        request = {"kind": "CONTAINER", "spec": spec, "timeout": timedelta(seconds=600), **more}
        return self.fleet.jobq.enqueue_many([request] * count)

    def owners(self, jobs: list[UUID]) -> set[UUID]:
        owned = dict(map(tuple, self.fleet.ask("SELECT id, worker_id FROM jobq_jobs")))
        return {owned[job] for job in jobs}

    def wait_until_executing(self, count: int) -> None:
        query = "SELECT count(*) FROM jobq_jobs WHERE reason = 'executing'"
        wait_until(lambda: self.fleet.ask(query)[0][0] == count, 60, what=f"{count} jobs to run")

    def attempts(self, jobs: list[UUID]) -> set[int]:
        return {self.fleet.jobq.get(job).attempt for job in jobs}

    def ends(self, jobs: list[UUID]) -> set[str]:
        return {f"{found.status}·{found.reason}" for found in map(self.fleet.jobq.get, jobs)}

    def wait_for(self, seconds: float) -> None:
        began = time.monotonic()
        wait_until(lambda: time.monotonic() - began > seconds, seconds + 5, 0.2)

    def is_dead(self, host: Host) -> bool:
        """Whether the worker with that engine was declared dead."""
        query = "SELECT count(*) FROM jobq_workers WHERE dead_at IS NOT NULL AND host LIKE :host"
        return bool(self.fleet.ask(query, host=f"%{host.docker.folder}/data")[0][0])


def test_a_host_that_is_cut_off_loses_what_may_be_done_again_and_goes_on_with_its_containers(
    tmp_path: Path, hub: Hub, hosts: list[Host]
) -> None:
    cut_off, other = hosts
    machines = Machines(tmp_path, hub, hosts, grace=120)
    with machines.fleet as fleet, Watch([host.docker for host in hosts]) as watch:
        machines.worker(cut_off)
        beats, kept = machines.beats(6, 300), machines.containers(4)
        retried = machines.containers(4, retry=RETRIED)
        machines.wait_until_executing(14)
        machines.worker(other)
        cut_off.cut()
        wait_until(lambda: machines.is_dead(cut_off), 40, what="the death of the worker that is cut off")
        wait_until(lambda: machines.attempts(beats) == {2}, 30, what="the other host to take the beats over")
        (before,) = machines.owners(kept)
        cut_off.heal()
        wait_until(lambda: before not in machines.owners(kept + retried), 90, what="the host to go on with its own")
        for container in cut_off.docker.containers():
            cut_off.docker.request("POST", f"/containers/{container}/kill?signal=USR1")
        fleet.wait_until_done(90)

        assert machines.ends(beats) == {"COMPLETED·succeeded"}, fleet.logs()
        assert machines.ends(kept + retried) == {"COMPLETED·succeeded"}, fleet.logs()
        assert machines.attempts(kept + retried) == {1}, "a machine that comes back in time goes on with its own"
        for job in kept + retried:
            count = [int(line.text) for line in fleet.jobq.logs(job) if line.stream == "stdout"]
            assert count == list(range(1, len(count) + 1))
        overlaps = {"beats": beats_overlap(tmp_path), "containers": watch.overlap()}
        print("\n" + json.dumps({"overlap_s": overlaps, "containers_begun": sum(map(len, watch.began.values()))}))
        assert overlaps == {"beats": 0.0, "containers": 0.0}
        fleet.check_ledger({*beats, *kept, *retried})
        for host in hosts:
            wait_until(lambda: not host.docker.containers(), 30, what="no container to be left")  # noqa: B023


def test_a_host_that_is_cut_off_for_longer_stops_the_containers_that_are_tried_again_elsewhere(
    tmp_path: Path, hub: Hub, hosts: list[Host]
) -> None:
    cut_off, other = hosts
    machines = Machines(tmp_path, hub, hosts, grace=6)
    with machines.fleet as fleet, Watch([host.docker for host in hosts]) as watch:
        machines.worker(cut_off)
        given_up, retried = machines.containers(4), machines.containers(4, retry=RETRIED)
        machines.wait_until_executing(8)
        machines.worker(other)
        cut_off.cut()
        began = time.monotonic()
        wait_until(lambda: machines.ends(given_up) == {"FAILED·unresolved"}, 60, what="the end of the grace")
        unresolved_after = time.monotonic() - began
        wait_until(lambda: machines.attempts(retried) == {2}, 60, what="the other host to begin the four anew")
        still = json.loads(cut_off.docker.request("GET", "/containers/json")[1])
        cut_off.heal()
        healed = time.monotonic()
        wait_until(lambda: not cut_off.docker.containers(), 60, what="nothing to be left of what was given up")
        cleared_after = time.monotonic() - healed
        fleet.wait_until_done(120)

        figures = {
            "overlap_s": watch.overlap(), "unresolved_after_s": round(unresolved_after, 1),
            "cleared_after_s": round(cleared_after, 1),
        }  # fmt: skip
        print("\n" + json.dumps(figures))
        assert len(still) == 4, "what is not tried again goes on"
        assert machines.ends(retried) == {"COMPLETED·succeeded"}, fleet.logs()
        assert figures["overlap_s"] == 0.0
        assert {len(watch.began[str(job)]) for job in given_up} == {1}
        assert cleared_after <= 30
        fleet.check_ledger({*given_up, *retried})
