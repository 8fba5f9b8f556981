"""What the README promises a newcomer: clone, `make run`, `make test`; nothing else was there before."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services import descendants, require, running, wait_until

ROOT = Path(__file__).parents[2]
# Without uv, and with an empty cache, pip alone takes minutes.
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of what is committed, as a newcomer gets it."""
    require("make", "git")
    folder = tmp_path_factory.mktemp("newcomer") / "jobq"
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", ROOT, folder], check=True)
    return folder


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The user's environment without the virtual environment that runs this test, and with a data folder of its own."""
    active = str(ROOT / ".venv" / "bin")
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("JOBQ_", "PYTEST_", "COV_", "MAKE", "MFLAGS"))
        and key not in ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "PYTHON", "ARGS", "WORKERS")
    }
    path = os.pathsep.join(part for part in kept["PATH"].split(os.pathsep) if part != active)
    return {**kept, "PATH": path, "XDG_DATA_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}


@pytest.fixture
def demo(clone: Path, environment: dict[str, str], tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`make run`; its output goes to tmp_path / "output"."""
    with (tmp_path / "output").open("wb") as output:
        process = subprocess.Popen(
            ["make", "run"],
            cwd=clone,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    yield process
    for pid in list(descendants(process.pid)):
        if running(pid):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def test_make_run_shows_jobs_that_complete_and_ends_at_control_c(demo: subprocess.Popen[bytes], tmp_path: Path) -> None:
    output = tmp_path / "output"

    def completed() -> bool:
        assert demo.poll() is None, f"make run ended:\n{output.read_text()[-4000:]}"
        return bool(re.search(r"(?m)^completed\b", output.read_text()))

    wait_until(completed, timeout=600, interval=0.2, what=f"a line that starts with: completed (in {output})")

    # To jobq alone: make's own exit code, when it is interrupted, would hide jobq's.
    _make, jobq, *_others = everybody = list(descendants(demo.pid))
    started = time.monotonic()
    os.kill(jobq, signal.SIGINT)
    wait_until(lambda: demo.poll() is not None, timeout=20, what="the end of make run")
    text = output.read_text()
    assert demo.returncode == 0, text[-4000:]
    assert time.monotonic() - started < 15
    assert "Traceback" not in text
    assert not any(map(running, everybody)), "processes outlived make run"


def test_make_test_runs_the_suite_in_a_fresh_clone(clone: Path, environment: dict[str, str]) -> None:
    assert (
        make_test(clone, environment, "tests/unit/test_states.py tests/contract/test_store_enqueue.py").returncode == 0
    )


@pytest.mark.chaos  # a suite of its own, for what a word in the Makefile decides
def test_make_test_fails_when_a_test_fails(clone: Path, environment: dict[str, str]) -> None:
    failing = clone / "tests" / "unit" / "test_that_fails.py"
    failing.parent.mkdir(exist_ok=True)
    failing.write_text("def test_that_fails():\n    assert False\n")
    try:
        assert make_test(clone, environment, failing).returncode != 0
    finally:
        failing.unlink()


def make_test(clone: Path, environment: dict[str, str], what: Path | str) -> subprocess.CompletedProcess[str]:
    """Run `make test` on a part only: the whole suite holds this test."""
    done = subprocess.run(
        ["make", "test", f"ARGS={what} -q -x -n 2 -p no:cacheprovider"],
        cwd=clone,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout, done.stderr)
    assert re.search(r"\d+ (passed|failed)", done.stdout), "no test ran"
    return done
