"""Containers outlive their workers: whoever comes next on that engine goes on with them, exactly where they stand."""

import json
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest

from jobq import Container, Status
from tests.fleet import Fleet
from tests.services import Docker, wait_until

QUICK = {"lease": 9, "renew_every": 1, "drain_timeout": 0, "max_log_bytes": 64 << 20}

# Bursts of lines, some on stderr, until it is told to end. Each 100th is longer than the engine's pieces of 16 KiB, and
# comes in two halves.
COUNT = """
trap over=1 USR1; i=0; half=$(head -c 30000 /dev/zero | tr '\\0' x)
while [ -z "$over" ]; do
  for burst in 1 2 3 4 5 6 7 8 9 10; do
    i=$((i+1))
    if [ $((i % 100)) = 0 ]; then printf "$i $half"; sleep 0.5; printf "$half\\n"; else echo $i; fi
  done
  echo "err $i" >&2; sleep 0.05
done
echo "last $i"; exit 3
"""


@pytest.fixture
def fleet(tmp_path: Path, postgres_url: str, redis_url: str, docker_host: str) -> Iterator[Fleet]:
    policy = {"max_container_timeout": "PT6H"}
    with Fleet(tmp_path, postgres_url, redis_url, docker_host=docker_host, policy=policy, **QUICK) as fleet:
        fleet.scheduler()
        yield fleet


def shell(script: str, **more: object) -> Container:
    return Container(image=Docker.image, command=["sh", "-c", script], pull="never", **more)


def owner(fleet: Fleet, job: UUID) -> subprocess.Popen[bytes] | None:
    """The process that owns a running job now; None: it is dead."""
    query = "SELECT w.pid FROM jobq_jobs j JOIN jobq_workers w ON w.id = j.worker_id WHERE j.id = :job"
    pids = [row[0] for row in fleet.ask(query, job=job)]
    return next((one for one in fleet.processes if [one.pid] == pids and one.poll() is None), None)


def stored_lines(fleet: Fleet, job: UUID) -> int:
    query = "SELECT coalesce(max(first_line + lines), 0) FROM jobq_job_logs WHERE job_id = :job"
    return int(fleet.ask(query, job=job)[0][0])


def check_the_count(fleet: Fleet, job: UUID) -> int:
    """The log is 1, 2, 3, … with no gap and no repeat, long lines whole (as far as they are kept); returns the last."""
    lines = [(line.stream, line.text) for line in fleet.jobq.logs(job)]
    stdout = [text for stream, text in lines if stream == "stdout"]
    last = int(stdout[-1].removeprefix("last "))
    numbers = [int(re.match(r"\d+", text)[0]) for text in stdout[:-1]]  # type: ignore[index]
    odd = [(before, now) for before, now in zip([0, *numbers], numbers, strict=False) if now != before + 1]
    assert not odd, f"a gap or a repeat: {odd[:5]}"
    assert numbers[-1] == last
    long = [text for text in stdout if text.startswith(f"{int(text.split()[0]) if text[0].isdigit() else 1} x")]
    assert len(long) == last // 100
    assert all(len(text.encode()) > 16384 and "cut: the line is longer" in text for text in long)
    assert [text for stream, text in lines if stream == "stderr"] == [f"err {n}" for n in range(10, last + 1, 10)]
    return last


def take_turns(fleet: Fleet, job: UUID, turns: list[signal.Signals]) -> list[float]:
    """End one owner after another, each time with a successor beside it; returns the seconds of each takeover."""
    seconds = []
    for number in turns:
        fleet.worker("container:4")
        before = wait_until(lambda: owner(fleet, job), what="an owner")
        reached = stored_lines(fleet, job)
        wait_until(lambda: stored_lines(fleet, job) > reached, what="the log to go on")  # noqa: B023
        began = time.monotonic()
        before.send_signal(number)
        before.wait(20)
        wait_until(lambda: owner(fleet, job), 20, what="another worker to take over")
        seconds.append(round(time.monotonic() - began, 1))
    return seconds


def gone_on_to_the_end(fleet: Fleet, docker: Docker, turns: list[signal.Signals], seconds: int) -> None:
    """Two containers, one that goes on until it is told to end and one that reaches its timeout, under all these turns."""
    fleet.worker("container:4")
    job = fleet.jobq.enqueue(shell(COUNT), timeout=timedelta(hours=6)).id
    limited = fleet.jobq.enqueue(shell("echo up; sleep 1000"), timeout=timedelta(seconds=seconds)).id
    wait_until(lambda: count_executing(fleet) == 2, 30, what="both containers to run")
    found = {one["Config"]["Labels"]["jobq.job"]: one for one in inspect_all(docker)}
    began = seconds_since_1970(found[str(limited)]["State"]["StartedAt"])
    took = take_turns(fleet, job, turns)
    docker.request("POST", f"/containers/{found[str(job)]['Id']}/kill?signal=USR1")
    assert fleet.jobq.wait(job, timeout=60).message == "exit 3", fleet.logs()
    assert fleet.jobq.wait(limited, timeout=30).reason == "timed_out", fleet.logs()
    ended = fleet.ask("SELECT extract(epoch FROM finished_at) FROM jobq_jobs WHERE id = :job", job=limited)[0][0]
    lived = float(ended) - began
    last = check_the_count(fleet, job)
    print(json.dumps({"takeovers": took, "lines": last, "timeout_s": seconds, "dead_after_s": round(lived, 1)}))
    assert seconds <= lived < seconds + 3, "the timeout counts from the container's own start"
    for one in (job, limited):
        (attempt,) = fleet.jobq.attempts(one)
        assert fleet.jobq.get(one).status is Status.FAILED
        assert attempt.attempt == 1, "a takeover is no attempt"
    wait_until(lambda: not docker.containers(), 30, what="no container to be left")
    fleet.check_ledger({job, limited})


def inspect_all(docker: Docker) -> list[dict]:
    return [json.loads(docker.request("GET", f"/containers/{one}/json")[1]) for one in docker.containers()]


def seconds_since_1970(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def count_executing(fleet: Fleet) -> int:
    return int(fleet.ask("SELECT count(*) FROM jobq_jobs WHERE reason = 'executing'")[0][0])


@pytest.mark.timeout(300)
def test_a_container_goes_on_under_one_worker_after_another_and_its_log_has_no_gap_and_no_repeat(
    fleet: Fleet, docker_engine: Docker
) -> None:
    gone_on_to_the_end(fleet, docker_engine, [signal.SIGKILL, signal.SIGTERM], seconds=10)


@pytest.mark.chaos
@pytest.mark.timeout(300)
def test_a_container_of_six_hours_survives_a_rolling_upgrade_of_its_workers(
    fleet: Fleet, docker_engine: Docker
) -> None:
    turns = [signal.SIGTERM] * 4 + [signal.SIGKILL] * 4
    gone_on_to_the_end(fleet, docker_engine, turns, seconds=50)


@pytest.mark.chaos
@pytest.mark.timeout(300)
def test_a_frozen_worker_that_wakes_writes_nothing_into_a_log_that_another_goes_on_with(
    fleet: Fleet, docker_engine: Docker
) -> None:
    frozen = fleet.worker("container:4")
    job = fleet.jobq.enqueue(shell(COUNT), timeout=timedelta(hours=1)).id
    wait_until(lambda: stored_lines(fleet, job) > 50, 60, what="some lines")
    frozen.send_signal(signal.SIGSTOP)
    other = fleet.worker("container:4")
    wait_until(lambda: owner(fleet, job) is other, 60, what="the other worker to take over")
    reached = stored_lines(fleet, job)
    wait_until(lambda: stored_lines(fleet, job) > reached + 100, 60, what="the log to go on")
    frozen.send_signal(signal.SIGCONT)
    wait_until(lambda: len(fleet.jobq.workers.list()) == 2, 60, what="the thawed worker to register anew")
    reached = stored_lines(fleet, job)
    wait_until(lambda: stored_lines(fleet, job) > reached + 100, 60, what="the log to go on")
    docker_engine.request("POST", f"/containers/{docker_engine.containers()[0]}/kill?signal=USR1")
    assert fleet.jobq.wait(job, timeout=60).message == "exit 3", fleet.logs()
    check_the_count(fleet, job)
    fleet.check_ledger({job})


@pytest.mark.chaos
@pytest.mark.timeout(300)
def test_a_container_that_no_worker_comes_for_is_given_up_or_begun_anew_as_its_policy_says(
    tmp_path: Path, postgres_url: str, redis_url: str, docker_host: str, docker_engine: Docker
) -> None:
    again = {"max_attempts": 5, "initial": 0.1, "maximum": 1, "retry_lost": True}
    with Fleet(tmp_path, postgres_url, redis_url, docker_host=docker_host, reattach_grace=4, **QUICK) as fleet:
        fleet.scheduler()
        only = fleet.worker("container:8")
        spec = shell("echo $JOBQ_ATTEMPT; if [ $JOBQ_ATTEMPT = 1 ]; then sleep 500; fi")
        once, retried = fleet.jobq.enqueue(spec, timeout=600).id, fleet.jobq.enqueue(spec, timeout=600, retry=again).id
        removed = fleet.jobq.enqueue(spec, timeout=600).id
        wait_until(lambda: all(stored_lines(fleet, job) for job in (once, retried, removed)), 60, what="three to run")
        only.kill()
        only.wait()
        wait_until(lambda: fleet.jobq.get(once).reason == "unresolved", 60, what="the end of the grace")
        assert fleet.jobq.get(retried).status in {Status.PENDING, Status.QUEUED}
        assert len(docker_engine.containers()) == 3, "nobody is there to stop them"
        fleet.worker("container:8")
        back = time.monotonic()
        assert fleet.jobq.wait(retried, timeout=60).status is Status.COMPLETED, fleet.logs()
        wait_until(lambda: not docker_engine.containers(), 30, what="no container to be left")
        print(json.dumps({"cleared_after_s": round(time.monotonic() - back, 1)}))
        assert fleet.ends() == {"FAILED·unresolved": 2, "COMPLETED·succeeded": 1}
        assert [line.text for line in fleet.jobq.logs(retried) if line.stream == "stdout"] == ["1", "2"]
        fleet.check_ledger({once, retried, removed})


@pytest.mark.chaos
@pytest.mark.timeout(300)
def test_a_container_that_somebody_removed_meanwhile_is_unresolved_and_one_that_ended_tells_how(
    fleet: Fleet, docker_engine: Docker
) -> None:
    only = fleet.worker("container:8")
    removed = fleet.jobq.enqueue(shell("echo up; sleep 500"), timeout=600).id
    ended = fleet.jobq.enqueue(shell("trap 'echo late; exit 6' USR1; echo up; sleep 500 & wait"), timeout=600).id
    wait_until(lambda: all(stored_lines(fleet, job) for job in (removed, ended)), 60, what="both to run")
    wait_until(lambda: count_executing(fleet) == 2, 30, what="both to be known to run")
    found = {one["Config"]["Labels"]["jobq.job"]: one["Id"] for one in inspect_all(docker_engine)}
    only.kill()
    only.wait()
    docker_engine.request("DELETE", f"/containers/{found[str(removed)]}?force=1")
    docker_engine.request("POST", f"/containers/{found[str(ended)]}/kill?signal=USR1")
    fleet.worker("container:8")
    assert fleet.jobq.wait(ended, timeout=60).message == "exit 6", fleet.logs()
    assert [line.text for line in fleet.jobq.logs(ended) if line.stream == "stdout"] == ["up", "late"]
    assert fleet.jobq.wait(removed, timeout=60).reason == "unresolved"
    wait_until(lambda: not docker_engine.containers(), 30, what="no container to be left")
    fleet.check_ledger({removed, ended})
