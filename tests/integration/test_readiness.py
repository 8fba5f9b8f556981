"""What a health check hears of a worker and a scheduler: the truth, also of those that are frozen or drain."""

import signal
import subprocess
from pathlib import Path

import pytest

from tests.command import warm
from tests.fleet import Fleet
from tests.services import Postgres, wait_until

QUICK = {"lease": 20, "renew_every": 1, "drain_timeout": 20}


def ask(fleet: Fleet, process: subprocess.Popen[bytes], what: str) -> tuple[int, str]:
    """The exit code, and what is said of the process."""
    command = ["doctor", "--ready", what, "--pid", str(process.pid)]
    done = warm().run(command, fleet.environment, fleet.folder, "")
    return done.code, done.out


def heard(fleet: Fleet, process: subprocess.Popen[bytes], what: str, code: int, said: str) -> bool:
    found, text = ask(fleet, process, what)
    return found == code and said in text


@pytest.mark.timeout(180)
def test_readiness_tells_the_truth_of_a_worker_and_a_scheduler(
    tmp_path: Path, postgres_url: str, redis_url: str, postgres_server: Postgres
) -> None:
    with Fleet(tmp_path, postgres_url, redis_url, **QUICK) as fleet:
        scheduler, worker = fleet.scheduler(), fleet.worker("nap:2")

        def until(process: subprocess.Popen[bytes], what: str, code: int, said: str) -> None:
            wait_until(lambda: heard(fleet, process, what, code, said), timeout=40, interval=0.2, what=said)

        until(worker, "worker", 0, "takes jobs of nap")
        until(scheduler, "scheduler", 0, "promotes, or stands by")
        assert ask(fleet, scheduler, "worker")[0] == 1, "a scheduler is no worker"
        worker.send_signal(signal.SIGSTOP)
        until(worker, "worker", 1, "its lease was last renewed")
        worker.send_signal(signal.SIGCONT)
        until(worker, "worker", 0, "takes jobs of nap")
        fleet.jobq.enqueue_many([{"kind": "NAP", "spec": {"seconds": 15}}])
        wait_until(lambda: fleet.ask("SELECT 1 FROM jobq_jobs WHERE status = 'RUNNING'"), 20, what="a job to run")
        worker.terminate()
        until(worker, "worker", 1, "drains: it takes no more jobs")
        scheduler.kill()
        scheduler.wait()
        until(scheduler, "scheduler", 1, "no scheduler with the process id")
        postgres_server.stop()
        assert ask(fleet, worker, "worker")[0] == 1, "the database is away"
        postgres_server.start()
