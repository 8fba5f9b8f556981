"""Container jobs on a real Docker engine: how they end, what they may do, what they leave behind."""

import asyncio
import json
import os
import re
import socket
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from jobq.plugins import Context, Recovers, Stop
from jobq.settings import Policy
from jobq.specs import Container
from jobq.states import Reason, Status
from tests import services
from tests.containers import IMAGE, Job, containers, eventually, executor_at, inspect, shell, until
from workers.container import ContainerExecutor

LOCAL = {"probe_networks": ["127.0.0.0/8"]}
"""Registries on this machine are allowed."""


@pytest_asyncio.fixture
async def executor(docker_engine: services.Docker) -> AsyncIterator[ContainerExecutor]:
    async with executor_at(docker_engine.url) as executor:
        yield executor
    assert containers(docker_engine) == []  # no test here may leave one


# --- how it ends -----------------------------------------------------------------------------------------------------


async def test_exit_0_succeeds_with_both_streams_apart_and_no_container_left(executor: ContainerExecutor) -> None:
    job = Job()
    outcome = await executor.execute(shell("echo out; echo err >&2; printf end"), job.ctx)
    assert (outcome.status, outcome.reason, outcome.exit_code) == (Status.COMPLETED, Reason.SUCCEEDED, 0)
    assert (job.stdout, job.stderr) == ("out\nend", "err\n")
    assert job.executing == 1
    assert job.steps == ["create", "start", "run", "remove"]


async def test_output_arrives_while_the_container_runs(
    executor: ContainerExecutor, docker_engine: services.Docker
) -> None:
    job = Job()
    running = asyncio.create_task(executor.execute(shell(staying("echo first") + "; echo second"), job.ctx))
    await eventually(lambda: job.stdout == "first\n")
    let_go(docker_engine, job)
    await running
    assert job.stdout == "first\nsecond\n"


async def test_the_exit_code_of_a_failure_is_kept_and_explained(executor: ContainerExecutor) -> None:
    outcome = await executor.execute(shell("exit 3"), Job().ctx)
    assert (outcome.status, outcome.reason) == (Status.FAILED, Reason.NONZERO_EXIT)
    assert (outcome.exit_code, outcome.error_class, outcome.message) == (3, "exit_3", "exit 3")
    outcome = await executor.execute(shell("kill -SEGV $$"), Job().ctx)
    assert "segmentation fault" in outcome.message
    outcome = await executor.execute(shell("kill -TERM $$"), Job().ctx)
    assert outcome.reason is Reason.NONZERO_EXIT
    assert "which jobq did not send" in outcome.message


async def test_a_process_that_ignores_the_stop_signal_dies_within_three_seconds_of_the_timeout(
    executor: ContainerExecutor,
) -> None:
    job = Job(timeout=2)
    outcome = await executor.execute(shell("trap '' TERM; echo deaf; while :; do sleep 0.1; done"), job.ctx)
    assert next(step for step in job.ctx.steps if step.name == "run").seconds < 2 + 3
    assert (outcome.status, outcome.reason) == (Status.FAILED, Reason.TIMED_OUT)
    assert outcome.message == "timed out after 2 s; the process ignored SIGTERM and was killed 2 s later"
    assert outcome.exit_code == 137
    assert job.stdout == "deaf\n"


async def test_a_process_that_ends_on_the_stop_signal_keeps_its_last_words(executor: ContainerExecutor) -> None:
    job = Job(timeout=2)
    outcome = await executor.execute(shell("trap 'echo bye; exit 0' TERM; while :; do sleep 0.1; done"), job.ctx)
    assert outcome.reason is Reason.TIMED_OUT  # although it exited with 0
    assert outcome.message == "timed out after 2 s; the process ended on SIGTERM"
    assert job.stdout == "bye\n"


async def test_the_memory_limit_ends_a_job_as_out_of_memory(executor: ContainerExecutor) -> None:
    outcome = await executor.execute(shell("tail /dev/zero", memory="64MB"), Job().ctx)
    assert outcome.reason is Reason.OUT_OF_MEMORY
    assert outcome.message == "exit 137: the memory limit of 64 MB was reached"
    assert outcome.error_class == "out_of_memory"


async def test_exit_0_decides_although_a_process_ran_out_of_memory(executor: ContainerExecutor) -> None:
    outcome = await executor.execute(shell("tail /dev/zero; echo $?; exit 0", memory="64MB"), Job().ctx)
    assert outcome.status is Status.COMPLETED


async def test_a_fork_bomb_meets_its_limit_and_ends(
    executor: ContainerExecutor, docker_engine: services.Docker
) -> None:
    job = Job(timeout=4)
    running = asyncio.create_task(executor.execute(shell("b() { b | b & }; b; sleep 60", pids=32), job.ctx))
    await eventually(lambda: job.executing)
    found = inspect(docker_engine, job.name)
    assert processes(found["Id"]) <= 32
    outcome = await running
    assert outcome.reason in {Reason.TIMED_OUT, Reason.NONZERO_EXIT}


async def test_a_missing_image_is_not_pulled_if_the_spec_forbids_it(executor: ContainerExecutor) -> None:
    job = Job()
    outcome = await executor.execute(Container(image="jobq-test:absent", pull="never"), job.ctx)
    assert outcome.error_class == "image_not_found"
    assert not outcome.retry
    assert "pull it on that host" in outcome.message
    assert job.executing == 0


async def test_a_registry_that_cannot_be_reached_is_named(docker_engine: services.Docker) -> None:
    job = Job()
    async with executor_at(docker_engine.url, policy=LOCAL) as executor:
        outcome = await executor.execute(Container(image="127.0.0.1:1/nothing"), job.ctx)
    assert outcome.error_class == "pull_failed"
    assert outcome.retry
    assert "127.0.0.1:1/nothing" in outcome.message
    assert job.steps == ["create", "pull"]


async def test_a_pull_that_hangs_ends_at_the_prepare_timeout(docker_engine: services.Docker) -> None:
    with socket.create_server(("127.0.0.1", 0)) as registry:  # takes connections and never answers
        port = registry.getsockname()[1]
        async with executor_at(docker_engine.url, prepare_timeout=timedelta(seconds=2), policy=LOCAL) as executor:
            outcome = await executor.execute(Container(image=f"127.0.0.1:{port}/slow", pull="always"), Job().ctx)
            assert outcome.error_class == "prepare_timeout"
            assert f"the pull of 127.0.0.1:{port}/slow took longer than 2 s" in outcome.message
            spec, job = Container(image=f"127.0.0.1:{port}/slow"), Job()
            outcome = await until(executor, spec, job, lambda: "pulling" in job.system, Stop.CANCEL)
            assert outcome.status is Status.CANCELED


async def test_a_missing_command_is_explained_and_leaves_no_container(executor: ContainerExecutor) -> None:
    job = Job()
    outcome = await executor.execute(Container(image=IMAGE, command=["no-such-command"]), job.ctx)
    assert outcome.exit_code == 127
    assert "not found in the image" in outcome.message
    assert "no-such-command" in job.stderr
    assert not outcome.retry


async def test_a_container_that_cannot_start_is_removed(executor: ContainerExecutor) -> None:
    job = Job()
    outcome = await executor.execute(shell("true", user="nobody-knows"), job.ctx)
    assert (outcome.reason, outcome.error_class, outcome.retry) == (Reason.INVALID, "start_failed", False)
    assert "unable to find user nobody-knows" in outcome.message
    assert job.steps == ["create", "start", "remove"]


# --- told to stop ----------------------------------------------------------------------------------------------------


async def test_a_cancel_stops_the_container(executor: ContainerExecutor) -> None:
    job = Job()
    outcome = await until(executor, shell("echo up; sleep 60"), job, lambda: job.stdout, Stop.CANCEL)
    assert outcome.status is Status.CANCELED
    assert outcome.message == "canceled; the process ended on SIGTERM"
    assert job.saved["stopping"] == "cancel"


async def test_a_cancel_before_the_start_starts_nothing(executor: ContainerExecutor) -> None:
    job = Job()
    job.ctx.request_stop(Stop.CANCEL)
    outcome = await executor.execute(shell("echo up"), job.ctx)
    assert outcome.status is Status.CANCELED
    assert job.steps == ["create", "remove"]


async def test_a_canceled_coroutine_removes_its_container_first(
    executor: ContainerExecutor, docker_engine: services.Docker
) -> None:
    for moment in (0.0, 0.005, 0.02, 0.06, 0.1, 0.3):
        running = asyncio.create_task(executor.execute(shell("sleep 60"), Job().ctx))
        await asyncio.sleep(moment)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert containers(docker_engine) == [], f"canceled after {moment} s"


# --- logs ------------------------------------------------------------------------------------------------------------


async def test_200_mb_of_output_pass_in_bounded_memory_and_end_with_the_last_line(executor: ContainerExecutor) -> None:
    before, most, taken, tail = resident(), 0, 0, b""

    def count(text: str | bytes, stream: str) -> None:
        nonlocal most, taken, tail
        assert isinstance(text, bytes)
        taken += len(text)
        tail = (tail + text)[-100:]
        most = max(most, len(text))

    context = Job(timeout=100).ctx
    context = Context(context.job, write_log=count)
    script = "dd if=/dev/zero bs=1M count=200 2>/dev/null | tr '\\0' x | fold -w 1000; echo; echo the end"
    outcome = await executor.execute(shell(script), context)
    assert outcome.status is Status.COMPLETED
    assert tail.endswith(b"the end\n")
    assert taken > 1_000_000  # the engine's own log is bounded: what it dropped, nobody saw
    assert most < 2_000_000
    assert resident() - before < 64_000_000


async def test_a_line_of_100_mb_comes_in_pieces(executor: ContainerExecutor) -> None:
    before, most, taken = resident(), 0, 0

    def count(text: str | bytes, stream: str) -> None:
        nonlocal most, taken
        taken += len(text)
        most = max(most, len(text))

    context = Context(Job().ctx.job, write_log=count)
    outcome = await executor.execute(shell("dd if=/dev/zero bs=1M count=100 2>/dev/null | tr '\\0' x"), context)
    assert outcome.status is Status.COMPLETED
    assert taken > 1_000_000
    assert most < 2_000_000
    assert resident() - before < 64_000_000


async def test_binary_output_does_no_harm(executor: ContainerExecutor) -> None:
    job = Job()
    outcome = await executor.execute(shell(r"printf 'a\000\377\n'; head -c 100000 /dev/urandom >&2"), job.ctx)
    assert outcome.status is Status.COMPLETED
    assert job.output["stdout"].startswith(b"a\x00")
    assert len(job.output["stderr"]) >= 100_000


async def test_every_line_of_a_burst_arrives_once_and_in_order(executor: ContainerExecutor) -> None:
    job = Job()
    await executor.execute(shell("seq 1 50000"), job.ctx)
    assert job.stdout == "".join(f"{n}\n" for n in range(1, 50001))


# --- what goes in and out --------------------------------------------------------------------------------------------


async def test_secrets_are_files_of_the_user_and_nowhere_else(
    executor: ContainerExecutor, docker_engine: services.Docker
) -> None:
    spec = shell(
        staying("ls -ln /run/secrets; cat /run/secrets/token; env; cat /etc/app.conf /jobq/job_details.json; /opt/hello"),
        secrets={"token": "api-token"}, files={"/etc/app.conf": "answer=42\n", "/opt/hello": "#!/bin/sh\necho hello\n"},
        env={"JOBQ_TENANT": "forged", "COLOUR": "blue"},
    )  # fmt: skip
    job = Job(secrets={"api-token": "s3cr3t-v4lue"})
    running = asyncio.create_task(executor.execute(spec, job.ctx))
    await eventually(lambda: "hello" in job.stdout)
    assert "s3cr3t" not in json.dumps(let_go(docker_engine, job))
    assert (await running).status is Status.COMPLETED
    assert re.search(r"-r--------\s+1 65534\s+65534 .* token", job.stdout)
    assert "s3cr3t-v4lue" in job.stdout
    assert "answer=42" in job.stdout
    assert "COLOUR=blue" in job.stdout
    assert "JOBQ_TENANT=acme" in job.stdout
    assert "forged" not in job.stdout
    assert f'"job_id": "{job.ctx.job.id}"' in job.stdout


async def test_a_secret_that_does_not_exist_fails_the_job_before_it_starts(executor: ContainerExecutor) -> None:
    outcome = await executor.execute(shell("true", secrets={"token": "api-token"}), Job().ctx)
    assert outcome.reason is Reason.INVALID
    assert "api-token" in outcome.message


async def test_a_named_user_owns_its_secrets(executor: ContainerExecutor) -> None:
    spec = shell("id -u; cat /run/secrets/token", user="app", secrets={"token": "t"},
                 files={"/etc/passwd": "root:x:0:0::/:/bin/sh\napp:x:1234:1234::/:/bin/sh\n"})  # fmt: skip
    job = Job(secrets={"t": "open"})
    await executor.execute(spec, job.ctx)  # the image has no such user: root owns the file, the spec brings passwd
    assert job.stdout.startswith("1234\n")


async def test_files_of_the_output_folder_come_back_as_artifacts(executor: ContainerExecutor) -> None:
    script = """
        mkdir -p /out/deep && echo one >/out/one.txt && echo two >/out/deep/two.txt
        ln -s /etc/passwd /out/link; mkfifo /out/pipe
        dd if=/dev/zero of=/out/large bs=1M count=2 2>/dev/null; dd if=/dev/zero of=/out/sparse bs=1 count=1 seek=1T 2>/dev/null
        exit 4"""
    job = Job()
    outcome = await executor.execute(shell(script, output="/out"), job.ctx)
    assert outcome.exit_code == 4  # what a failed job left is worth the most
    assert job.artifacts == {"one.txt": b"one\n", "deep/two.txt": b"two\n"}
    assert {found["name"]: found["size"] for found in outcome.result["artifacts"]} == {"one.txt": 4, "deep/two.txt": 4}
    assert "not kept as an artifact: large" in job.system


async def test_no_output_folder_means_no_artifacts(executor: ContainerExecutor) -> None:
    outcome = await executor.execute(shell("rmdir /out 2>/dev/null; true", output="/out"), Job().ctx)
    assert outcome.result == {"artifacts": []}


async def test_what_the_container_used_is_told(executor: ContainerExecutor) -> None:
    script = (
        "x=$(head -c 30000000 /dev/zero | tr '\\0' x); i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; sleep 1.5"
    )
    outcome = await executor.execute(shell(script), Job().ctx)
    assert outcome.status is Status.COMPLETED
    assert outcome.usage["memory_bytes"] > 20_000_000
    assert outcome.usage["cpu_seconds"] > 0.01


# --- what it may do --------------------------------------------------------------------------------------------------


async def test_a_container_has_no_rights_no_network_and_limits(
    executor: ContainerExecutor, docker_engine: services.Docker
) -> None:
    job = Job(timeout=30)
    asks = "id -u; grep -E 'Cap(Eff|Bnd)|NoNewPrivs|Seccomp:' /proc/self/status; touch /tmp/x; ls /sys/class/net"
    spec = shell(staying(asks), memory="64MB", cpus=0.5, pids=20)
    running = asyncio.create_task(executor.execute(spec, job.ctx))
    await eventually(lambda: "lo\n" in job.stdout)
    found = let_go(docker_engine, job)
    assert (await running).status is Status.COMPLETED
    assert set(job.stdout.splitlines()) == {
        "65534", "CapBnd:\t0000000000000000", "CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2", "lo",
    }  # fmt: skip
    host = found["HostConfig"]
    assert (host["Memory"], host["MemorySwap"], host["NanoCpus"], host["PidsLimit"]) == (
        64 << 20,
        64 << 20,
        5 * 10**8,
        20,
    )
    assert (host["Privileged"], host["Binds"], found["Mounts"], host["NetworkMode"]) == (False, None, [], "none")
    assert host["Init"] is True
    labels = found["Config"]["Labels"]
    assert labels["jobq.env"] == "test"
    assert (labels["jobq.job"], labels["jobq.attempt"]) == (str(job.ctx.job.id), "1")
    assert labels["jobq.worker"]
    assert labels["jobq.deadline"].endswith("+00:00")


async def test_a_policy_that_became_stricter_refuses_an_accepted_job(docker_engine: services.Docker) -> None:
    async with executor_at(docker_engine.url, policy=Policy(images=["trusted/*"])) as executor:
        job = Job()
        outcome = await executor.execute(shell("true"), job.ctx)
    assert outcome.reason is Reason.INVALID
    assert "not among the images" in outcome.message
    assert job.steps == []


async def test_more_processors_than_the_host_has_end_the_job_as_invalid(executor: ContainerExecutor) -> None:
    count = os.cpu_count()
    job = Job()
    outcome = await executor.execute(shell("true", cpus=500), job.ctx)
    assert (outcome.status, outcome.reason, outcome.retry) == (Status.FAILED, Reason.INVALID, False)
    assert outcome.message == (f"cpus: 500 is more than there is: the host has {count} CPUs; ask for {count} at most")
    assert job.executing == 0


async def test_ten_containers_run_at_once(executor: ContainerExecutor) -> None:
    jobs = [Job() for _ in range(10)]
    outcomes = await asyncio.gather(
        *(executor.execute(shell(f"sleep 1; echo {number}"), job.ctx) for number, job in enumerate(jobs))
    )
    assert {outcome.status for outcome in outcomes} == {Status.COMPLETED}
    assert [job.stdout for job in jobs] == [f"{number}\n" for number in range(10)]


def test_the_executor_can_recover() -> None:
    assert isinstance(ContainerExecutor(), Recovers)


def staying(script: str) -> str:
    """The script, whose container then stays until it is let go."""
    return f"trap go=1 USR1; {script}; until [ $go ]; do sleep 0.1; done"


def let_go(engine: services.Docker, job: Job) -> dict[str, Any]:
    """End that; what the engine said of the container before."""
    found = inspect(engine, job.name)
    assert found["State"]["Running"]
    engine.request("POST", f"/containers/{job.name}/kill?signal=USR1")
    return found


def processes(container_id: str) -> int:
    """Processes in the container, as its control group counts them (version 1 or 2)."""
    groups = [Path("/sys/fs/cgroup/pids/docker"), Path("/sys/fs/cgroup/docker")]
    counters = [group / container_id / "pids.current" for group in groups]
    return next(int(counter.read_text()) for counter in counters if counter.exists())


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(re.findall(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[0]) * 1024
