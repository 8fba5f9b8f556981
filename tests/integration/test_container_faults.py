"""Container jobs when workers, the engine and the host fail: what is recovered, what is lost, what is cleaned up."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
import pytest_asyncio

from jobq.models import Outcome
from jobq.plugins import Stop
from jobq.states import Reason, Status
from tests import services
from tests.containers import IMAGE, Job, containers, create, engine_at, eventually, executor_at, inspect, shell, until
from workers.container import ContainerExecutor, orphans
from workers.container.config import DEADLINE_LABEL, Claim
from workers.container.engine import EngineAway, EngineOverdue, EngineRefused, Sink
from workers.container.orphans import OrphanReaper

COUNT = "for i in $(seq 1 {}); do echo $i; sleep 0.1; done; "


@pytest_asyncio.fixture
async def executor(docker_engine: services.Docker) -> AsyncIterator[ContainerExecutor]:
    async with executor_at(docker_engine.url, worker_id="worker-one") as executor:
        yield executor


@pytest_asyncio.fixture
async def other(docker_engine: services.Docker) -> AsyncIterator[ContainerExecutor]:
    """Another worker on the same engine."""
    async with executor_at(docker_engine.url, worker_id="worker-two") as executor:
        yield executor


async def drained(executor: ContainerExecutor, script: str, job: Job, *, lines: int = 3) -> Outcome:
    """Run until some lines came, then drain."""
    return await until(executor, shell(script), job, lambda: job.stdout.count("\n") >= lines, Stop.DRAIN)


# --- drain and recover -----------------------------------------------------------------------------------------------


async def test_another_worker_goes_on_with_a_drained_container(
    executor: ContainerExecutor, other: ContainerExecutor, docker_engine: services.Docker
) -> None:
    first = Job()
    outcome = await drained(executor, COUNT.format(25) + "echo last >&2; exit 7", first)
    assert outcome.result == {"left_running": first.name}
    assert containers(docker_engine) == [first.name]
    second = Job(after=first)
    outcome = await other.recover(shell("the same"), second.ctx)
    assert (outcome.reason, outcome.exit_code) == (Reason.NONZERO_EXIT, 7)
    assert first.stdout + second.stdout == "".join(f"{n}\n" for n in range(1, 26))  # no gap, no repeat
    assert second.stderr == "last\n"
    assert containers(docker_engine) == []


async def test_recovering_a_container_that_ended_meanwhile_tells_its_true_end(
    executor: ContainerExecutor, other: ContainerExecutor, docker_engine: services.Docker
) -> None:
    first = Job()
    await drained(executor, COUNT.format(6) + "exit 5", first)
    await eventually(lambda: inspect(docker_engine, first.name)["State"]["Status"] == "exited")
    second = Job(after=first)
    outcome = await other.recover(shell("the same"), second.ctx)
    assert outcome.exit_code == 5
    assert first.stdout + second.stdout == "1\n2\n3\n4\n5\n6\n"


async def test_a_long_line_is_told_from_its_beginning_by_whoever_takes_over(
    executor: ContainerExecutor, other: ContainerExecutor
) -> None:
    first = Job()
    script = (
        "echo whole; head -c 100000 /dev/zero | tr '\\0' a; echo >&2; sleep 1; head -c 100000 /dev/zero | tr '\\0' b"
    )
    await until(executor, shell(script), first, lambda: "a" in first.stdout and first.stderr, Stop.DRAIN)
    second = Job(after=first)
    await other.recover(shell(script), second.ctx)
    assert second.stdout == "a" * 100000 + "b" * 100000  # the first had only pieces: its memory is gone
    assert second.stderr == ""


async def test_the_timeout_counts_from_the_start_of_the_container_also_after_a_recovery(
    executor: ContainerExecutor, other: ContainerExecutor
) -> None:
    first = Job(timeout=6)
    await drained(executor, COUNT.format(100), first)
    await asyncio.sleep(6)
    began = time.monotonic()
    outcome = await other.recover(shell("the same"), Job(after=first, timeout=6).ctx)
    assert outcome.reason is Reason.TIMED_OUT
    assert time.monotonic() - began < 6


async def test_a_stop_that_its_worker_could_not_report_is_reported_by_the_next(
    executor: ContainerExecutor, other: ContainerExecutor, docker_engine: services.Docker
) -> None:
    first = Job()
    await drained(executor, COUNT.format(100), first)
    first.saved["stopping"] = "timeout"  # it died between the stop and the record
    docker_engine.request("POST", f"/containers/{first.name}/stop?t=1")
    outcome = await other.recover(shell("the same"), Job(after=first).ctx)
    assert outcome.reason is Reason.TIMED_OUT


async def test_a_drain_before_the_start_gives_the_job_back(
    executor: ContainerExecutor, docker_engine: services.Docker
) -> None:
    job = Job()
    job.ctx.request_stop(Stop.DRAIN)
    outcome = await executor.execute(shell("true"), job.ctx)
    assert (outcome.status, outcome.reason, outcome.delay) == (Status.PENDING, Reason.REQUEUED, timedelta(0))
    assert containers(docker_engine) == []


async def test_a_container_that_is_gone_is_lost(other: ContainerExecutor) -> None:
    (first := Job()).saved = {"attempt": 1, "container": "one that ran"}
    outcome = await other.recover(shell("true"), Job(after=first).ctx)
    assert (outcome.reason, outcome.error_class) == (Reason.UNRESOLVED, "lost")


async def test_an_attempt_that_had_not_begun_is_begun_by_whoever_takes_it_over(
    other: ContainerExecutor, docker_engine: services.Docker
) -> None:
    (of_an_earlier_attempt := Job()).saved = {"attempt": 1, "container": "one that ran", "stopping": "timeout"}
    job = Job(after=of_an_earlier_attempt, attempt=2)
    outcome = await other.recover(shell("echo begun; exit 4"), job.ctx)
    assert (outcome.exit_code, job.stdout) == (4, "begun\n")
    assert containers(docker_engine) == []


async def test_a_container_that_was_created_but_never_started_is_begun_anew(
    other: ContainerExecutor, docker_engine: services.Docker
) -> None:
    job, spec = Job(), shell("echo once")
    async with engine_at(docker_engine) as engine:
        await create(engine, job, spec)
    outcome = await other.recover(spec, job.ctx)
    assert outcome.status is Status.COMPLETED
    assert job.stdout == "once\n"
    assert containers(docker_engine) == []


async def test_a_container_that_said_something_is_not_begun_anew_though_its_engine_knows_of_no_start(
    other: ContainerExecutor, docker_engine: services.Docker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So an engine leaves it that was killed over its start."""
    job, spec = Job(), shell("echo once")
    async with engine_at(docker_engine) as engine:
        await create(engine, job, spec)
    logs = other.engine.logs

    async def said(container: str, sink: Sink, *, follow: bool, since: str = "") -> None:
        await logs(container, sink, follow=follow, since=since)
        sink(b"once")

    monkeypatch.setattr(other.engine, "logs", said)
    outcome = await other.recover(spec, job.ctx)
    assert (outcome.reason, job.stdout) == (Reason.UNRESOLVED, "")
    assert containers(docker_engine) == []


async def test_a_worker_that_lost_its_container_to_another_cannot_stop_it(
    executor: ContainerExecutor, other: ContainerExecutor, docker_engine: services.Docker
) -> None:
    frozen, taker = Job(), None
    running = asyncio.create_task(executor.execute(shell(COUNT.format(80) + "exit 9"), frozen.ctx))
    await eventually(lambda: frozen.stdout)
    taker = Job(after=frozen)
    taking = asyncio.create_task(other.recover(shell("the same"), taker.ctx))
    await eventually(lambda: taker.executing)
    frozen.ctx.request_stop(Stop.FENCED)
    assert (await running).status is Status.CANCELED
    outcome = await taking
    assert outcome.exit_code == 9
    assert taker.stdout.endswith("80\n")
    assert containers(docker_engine) == []


async def test_a_fenced_worker_stops_and_removes_what_it_still_holds(
    executor: ContainerExecutor, docker_engine: services.Docker
) -> None:
    job = Job()
    outcome = await until(executor, shell("echo up; sleep 60"), job, lambda: job.stdout, Stop.FENCED)
    assert outcome.status is Status.CANCELED
    assert containers(docker_engine) == []


# --- one container per job -------------------------------------------------------------------------------------------


async def test_a_second_attempt_removes_the_container_of_the_first(
    executor: ContainerExecutor, docker_engine: services.Docker
) -> None:
    first = Job()
    await drained(executor, COUNT.format(100), first)
    second = Job(after=first, attempt=2)
    running = asyncio.create_task(executor.execute(shell("echo second; sleep 60"), second.ctx))
    await eventually(lambda: second.stdout)
    assert containers(docker_engine) == [second.name]
    second.ctx.request_stop(Stop.CANCEL)
    await running


async def test_a_repeated_create_adopts_the_container_that_the_first_one_made(
    executor: ContainerExecutor, docker_engine: services.Docker
) -> None:
    job, spec = Job(), shell("echo once")
    async with engine_at(docker_engine) as engine:
        await create(engine, job, spec)
    assert (await executor.execute(spec, job.ctx)).status is Status.COMPLETED
    assert job.stdout == "once\n"


@pytest.mark.parametrize("script", ["echo once", "echo once; sleep 2"])
async def test_a_start_whose_answer_was_lost_is_not_repeated(
    executor: ContainerExecutor, docker_engine: services.Docker, script: str
) -> None:
    job, spec = Job(), shell(script)
    async with engine_at(docker_engine) as engine:
        await create(engine, job, spec)
        await engine.start(job.name)
    await eventually(lambda: "sleep" in script or not inspect(docker_engine, job.name)["State"]["Running"])
    assert (await executor.execute(spec, job.ctx)).status is Status.COMPLETED
    assert job.stdout == "once\n"
    assert containers(docker_engine) == []


async def test_a_foreign_container_of_our_name_is_left_alone(
    executor: ContainerExecutor, docker_engine: services.Docker
) -> None:
    job = Job()
    async with engine_at(docker_engine) as engine:
        await engine.create(job.name, {"Image": IMAGE, "Cmd": ["true"], "HostConfig": {"NetworkMode": "none"}})
    outcome = await executor.execute(shell("true"), job.ctx)
    assert outcome.error_class == "container_name_taken"
    assert containers(docker_engine) == [job.name]


# --- the engine fails ------------------------------------------------------------------------------------------------


async def test_an_engine_that_is_away_sends_the_job_back_at_no_charge(docker_engine: services.Docker) -> None:
    docker_engine.stop()
    async with executor_at(docker_engine.url) as executor:
        assert executor.host is None
        outcome = await executor.execute(shell("true"), Job().ctx)
        assert (outcome.reason, outcome.error_class) == (Reason.REQUEUED, "docker_unavailable")
        assert "JOBQ_DOCKER_HOST" in outcome.message
        docker_engine.start()
        await eventually(lambda: executor.host)  # without a job that asks for it
        info = json.loads(docker_engine.request("GET", "/info")[1])
        assert executor.host == f"{info['ID']}@{info['Name']}{docker_engine.folder}/data"
        assert (await executor.execute(shell("true"), Job().ctx)).status is Status.COMPLETED


async def test_an_engine_that_restarts_before_the_start_is_waited_for(docker_engine: services.Docker) -> None:
    async with executor_at(docker_engine.url) as executor:
        docker_engine.kill()
        running = asyncio.create_task(executor.execute(shell("echo up"), (job := Job()).ctx))
        await asyncio.to_thread(docker_engine.start)
        assert (await running).status is Status.COMPLETED
        assert (job.stdout, job.system) == ("up\n", "")
        assert containers(docker_engine) == []


@pytest.mark.parametrize("comes_back", [False, True])
@pytest.mark.parametrize("began", [False, True])
async def test_an_engine_that_is_killed_over_a_start_may_have_run_the_container(
    docker_engine: services.Docker, monkeypatch: pytest.MonkeyPatch, began: bool, comes_back: bool
) -> None:
    """To give the job back as if nothing had happened, or to start it once more, could run it twice."""
    async with executor_at(docker_engine.url, patience=3) as executor:
        start = executor.engine.start

        async def killed_over_it(name: str) -> None:
            if began:
                await start(name)
            await asyncio.to_thread(docker_engine.kill)
            if comes_back:
                asyncio.get_running_loop().call_later(
                    1, lambda: asyncio.create_task(asyncio.to_thread(docker_engine.start))
                )
            raise EngineAway("the connection broke", asked=True)

        monkeypatch.setattr(executor.engine, "start", killed_over_it)
        outcome = await executor.execute(shell("echo up; sleep 50"), Job(timeout=60).ctx)
        assert (outcome.reason, outcome.error_class) == (Reason.UNRESOLVED, "lost")
    await asyncio.to_thread(docker_engine.start)


async def test_a_killed_engine_that_comes_back_tells_what_became_of_the_container(
    executor: ContainerExecutor, docker_engine: services.Docker
) -> None:
    job = Job(timeout=60)
    running = asyncio.create_task(executor.execute(shell("echo up; sleep 50"), job.ctx))
    await eventually(lambda: job.stdout)
    await asyncio.to_thread(docker_engine.kill)
    await asyncio.to_thread(docker_engine.start)
    outcome = await running
    assert (outcome.reason, outcome.error_class) == (Reason.UNRESOLVED, "lost")
    assert "went away" in outcome.message
    assert "output may be missing" in job.system
    assert containers(docker_engine) == []


async def test_an_engine_that_stays_away_loses_the_job_and_the_reaper_finds_the_container(
    docker_engine: services.Docker,
) -> None:
    async with executor_at(docker_engine.url, patience=3) as executor:
        job = Job(timeout=60)
        running = asyncio.create_task(executor.execute(shell("echo up; sleep 50"), job.ctx))
        await eventually(lambda: job.stdout)
        await asyncio.to_thread(docker_engine.kill)
        outcome = await running
        assert outcome.reason is Reason.UNRESOLVED
        assert executor.host is None
        await asyncio.to_thread(docker_engine.start)
        assert containers(docker_engine) == [job.name]
        await OrphanReaper(executor.engine, "test", lambda _: set()).sweep()
        assert containers(docker_engine) == []


async def test_a_hung_engine_fails_the_attempt_as_such(docker_engine: services.Docker) -> None:
    async with executor_at(docker_engine.url, patience=3) as executor:
        job = Job(timeout=4)
        running = asyncio.create_task(executor.execute(shell("echo up; sleep 50"), job.ctx))
        await eventually(lambda: job.stdout)
        docker_engine.freeze()
        began = time.monotonic()
        outcome = await running
        assert outcome.error_class == "docker_unresponsive"
        assert time.monotonic() - began < 20  # timeout, then stop with its grace and three seconds of patience
        outcome = await executor.execute(shell("true"), Job().ctx)  # nor does the next job hang
        assert outcome.error_class == "docker_unresponsive"
        docker_engine.thaw()
        await eventually(lambda: len(containers(docker_engine)) >= 1)
        while containers(docker_engine):  # what the engine was asked for while it hung, it does only now
            await OrphanReaper(executor.engine, "test", lambda _: set()).sweep()


async def test_a_container_that_somebody_removes_is_lost(
    executor: ContainerExecutor, docker_engine: services.Docker
) -> None:
    job = Job()
    running = asyncio.create_task(executor.execute(shell("echo up; sleep 50"), job.ctx))
    await eventually(lambda: job.stdout)
    docker_engine.request("DELETE", f"/containers/{job.name}?force=1")
    outcome = await running
    assert outcome.status is Status.FAILED
    assert outcome.reason in {Reason.NONZERO_EXIT, Reason.UNRESOLVED}


async def test_a_call_to_a_frozen_engine_is_overdue_and_one_to_no_engine_is_away(
    docker_engine: services.Docker,
) -> None:
    async with engine_at(docker_engine, patience=0.5) as engine:
        docker_engine.freeze()
        with pytest.raises(EngineOverdue, match=r"did not answer GET /info for 0\.5 s"):
            await engine.identity()
        docker_engine.thaw()
        assert await engine.identity()
        await asyncio.to_thread(docker_engine.kill)
        with pytest.raises(EngineAway, match="cannot be reached"):
            await engine.identity()


# --- orphans ---------------------------------------------------------------------------------------------------------


async def test_the_reaper_removes_what_no_running_job_owns_and_nothing_else(
    executor: ContainerExecutor, docker_engine: services.Docker
) -> None:
    jobs = [Job(), Job(), Job()]
    for job in jobs[:2]:
        await drained(executor, COUNT.format(300), job)
    async with engine_at(docker_engine) as engine:
        await create(engine, jobs[2], shell("true"))  # created, never started
        await create(engine, foreign := Job(), shell("true"), env_id="another installation")
        await engine.create("bystander", {"Image": IMAGE, "Cmd": ["true"], "HostConfig": {"NetworkMode": "none"}})
    asked: list[tuple[UUID, int]] = []

    def owned(claims: list[tuple[UUID, int]]) -> set[tuple[UUID, int]]:
        asked.extend(claims)
        return {(jobs[0].ctx.job.id, 1)}

    swept = await OrphanReaper(executor.engine, "test", owned).sweep()
    assert sorted(asked) == sorted((job.ctx.job.id, 1) for job in jobs)
    assert sorted(swept.removed) == sorted([jobs[1].name, jobs[2].name])
    assert containers(docker_engine) == sorted([jobs[0].name, foreign.name, "bystander"])


async def test_the_reaper_touches_nothing_while_the_database_is_away(
    executor: ContainerExecutor, docker_engine: services.Docker
) -> None:
    job = Job()
    await drained(executor, COUNT.format(300), job)

    def away(claims: list[tuple[UUID, int]]) -> set[tuple[UUID, int]]:
        raise ConnectionError("no database")

    with pytest.raises(ConnectionError):
        await OrphanReaper(executor.engine, "test", away).sweep()
    assert inspect(docker_engine, job.name)["State"]["Running"]


async def test_the_reaper_stops_an_overdue_container_and_leaves_its_end_to_the_owner(
    executor: ContainerExecutor, docker_engine: services.Docker, monkeypatch: pytest.MonkeyPatch
) -> None:
    late, punctual, endless = Job(timeout=30), Job(timeout=30), Job(timeout=None)
    async with engine_at(docker_engine) as engine:
        await create(engine, late, shell("sleep 60"), now=datetime.now(UTC) - timedelta(seconds=31))
        await create(engine, punctual, shell("sleep 60"))
        await create(engine, endless, shell("sleep 60"))
        for job in (late, punctual, endless):
            await engine.start(job.name)
    assert DEADLINE_LABEL not in inspect(docker_engine, endless.name)["Config"]["Labels"]
    reaper = OrphanReaper(executor.engine, "test", set)
    assert (await reaper.sweep()).killed == []  # seen for the first time: perhaps the clock jumped
    monkeypatch.setattr(orphans, "GRACE", timedelta(0))
    assert (await reaper.sweep()).killed == [late.name]
    assert containers(docker_engine) == sorted([late.name, punctual.name, endless.name])
    assert not inspect(docker_engine, late.name)["State"]["Running"]
    assert inspect(docker_engine, punctual.name)["State"]["Running"]


async def test_two_reapers_may_sweep_at_once(executor: ContainerExecutor, docker_engine: services.Docker) -> None:
    async with engine_at(docker_engine) as engine:
        for _ in range(5):
            await create(engine, Job(), shell("true"))
    reapers = [OrphanReaper(executor.engine, "test", lambda _: set()) for _ in range(3)]
    await asyncio.gather(*(reaper.sweep() for reaper in reapers))
    assert containers(docker_engine) == []


async def test_a_label_that_is_not_in_our_hand_is_nobodys_business(
    executor: ContainerExecutor, docker_engine: services.Docker
) -> None:
    labels = {"jobq.env": "test", "jobq.job": "not an id", "jobq.attempt": "1"}
    config = {"Image": IMAGE, "Cmd": ["true"], "Labels": labels, "HostConfig": {"NetworkMode": "none"}}
    async with engine_at(docker_engine) as engine:
        await engine.create("strange", config)
        with pytest.raises(EngineRefused, match="already in use"):
            await engine.create("strange", config)
    await OrphanReaper(executor.engine, "test", lambda _: set()).sweep()
    assert containers(docker_engine) == ["strange"]
    assert Claim.of({"jobq.job": str(uuid4()), "jobq.attempt": "one"}) is None
