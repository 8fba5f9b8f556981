"""The sweep for orphans beside executors of CONTAINER that are not jobq's own, and beside an engine that goes away."""

import logging
from typing import ClassVar

import pytest

from jobq import Container, Context, Heartbeat, Outcome, Settings
from jobq.plugins import BUILT_IN, Kind
from jobq.states import Reason, Status
from jobq.testing import running
from tests import services
from tests.services import wait_until
from workers.service import Worker


class Bare:
    """Runs containers elsewhere: no Docker engine, no host."""

    kind: ClassVar[Kind] = BUILT_IN["CONTAINER"]

    async def execute(self, spec: Container, ctx: Context) -> Outcome:
        return Outcome.succeeded()


class Hosted(Bare):
    """Its work lives on a host of another sort: what it calls an engine is none of ours."""

    host = "a cluster"
    engine = "https://cluster.example.org"


class Recovering(Bare):
    """Its work outlives the worker, and it forgot to say where."""

    async def recover(self, spec: Container, ctx: Context) -> Outcome:
        return Outcome.lost()


@pytest.fixture
def sweeps(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Grows by one with each sweep, which come in quick succession: did it succeed?"""
    seen: list[bool] = []
    sweep = Worker._sweep

    def counted(worker: Worker) -> float:
        try:
            seconds = sweep(worker)
        except BaseException:
            seen.append(False)
            raise
        seen.append(True)
        return seconds

    monkeypatch.setattr("workers.service._SWEEP_EVERY", 0.1)
    monkeypatch.setattr(Worker, "_sweep", counted)
    return seen


@pytest.mark.parametrize("executor", [Bare, Hosted, Recovering])
def test_a_plugin_that_runs_containers_is_left_alone_by_the_sweep(
    executor: type[Bare], caplog: pytest.LogCaptureFixture, sweeps: list[bool]
) -> None:
    plugin = f"{__name__}:{executor.__name__}"
    with caplog.at_level(logging.WARNING), running(Settings(plugins=[plugin]), queues={"container": 1}) as jobq:
        job = jobq.wait(jobq.enqueue(Container(image="busybox")).id, timeout=20)
        assert job.status is Status.COMPLETED
        sweeps.clear()
        wait_until(lambda: len(sweeps) > 3, what="the sweep to have its turn")
    assert [record.getMessage() for record in caplog.records] == []


def test_an_engine_that_goes_away_is_said_once_without_a_traceback(
    docker_engine: services.Docker, caplog: pytest.LogCaptureFixture, sweeps: list[bool]
) -> None:
    settings = Settings(docker_host=docker_engine.url)
    with caplog.at_level(logging.WARNING), running(settings, queues={"container": 1}) as jobq:
        job = jobq.enqueue({"image": docker_engine.image, "command": ["true"]}, kind="CONTAINER")
        assert jobq.wait(job.id, timeout=30).status is Status.COMPLETED
        wait_until(lambda: not docker_engine.containers(), what="the container to be removed, the last call of the job")
        sweeps.clear()
        wait_until(lambda: sweeps[-1:] == [True], what="a sweep that finds the engine")
        caplog.clear()
        docker_engine.kill()
        sweeps.clear()
        wait_until(lambda: len(sweeps) > 4, timeout=30, what="the sweep to find no engine again and again")
    assert caplog.text.count("the loop sweep waits:") == 1, caplog.text
    assert "Traceback" not in caplog.text


def test_a_worker_whose_engine_is_away_takes_no_containers_and_takes_them_when_it_is_back(
    docker_engine: services.Docker,
) -> None:
    """Each claim would cost a job one of its twenty requeues."""
    spec = {"image": docker_engine.image, "command": ["true"]}
    with running(Settings(docker_host=docker_engine.url), queues={"container": 8, "heartbeat": 2}) as jobq:
        docker_engine.kill()
        first = jobq.enqueue(spec, kind="CONTAINER")
        wait_until(lambda: jobq.attempts(first.id), timeout=30, what="one job to find no engine")
        later = [jobq.enqueue(spec, kind="CONTAINER").id for _ in range(4)]
        probe = jobq.enqueue(Heartbeat(endpoint="http://nowhere.invalid/"), retry={"max_attempts": 1})
        assert jobq.wait(probe.id, timeout=30).status is Status.FAILED, "other queues go on"
        wait_until(lambda: jobq.get(first.id).reason is Reason.DISPATCHED, timeout=40, what="it to come again")
        assert [jobq.get(job).attempt for job in [first.id, *later]] == [1, 0, 0, 0, 0]
        docker_engine.start()
        assert {jobq.wait(job, timeout=60).status for job in [first.id, *later]} == {Status.COMPLETED}
        assert {len(jobq.attempts(job)) for job in later} == {1}
