"""The examples run as their first lines say, and print what their last lines say."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from jobq import Status
from tests import services
from tests.command import Command
from tests.fleet import JOBQ, Fleet
from tests.services import wait_until

EXAMPLES = Path(__file__).parents[2] / "examples"
USED_BY_OTHERS = {"shop", "customers_service"}
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem not in USED_BY_OTHERS)
PLUGIN = EXAMPLES / "plugin-greeting"


def promised(script: Path) -> list[str]:
    """The lines behind "# Prints:"; three dots stand for anything."""
    _, found, rest = script.read_text().partition("\n# Prints:\n")
    assert found, f"{script.name} does not say what it prints"
    return [line.removeprefix("#").removeprefix(" ") for line in rest.splitlines()]


def run(*command: str | Path, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """A program, in an environment without settings of jobq."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("JOBQ_")}
    return subprocess.run(
        command, cwd=cwd, env={**clean, **environment}, capture_output=True, text=True, check=False, timeout=90
    )


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_prints_what_it_says(name: str, tmp_path: Path) -> None:
    script = EXAMPLES / f"{name}.py"
    done = run(sys.executable, script, XDG_DATA_HOME=str(tmp_path), XDG_CONFIG_HOME=str(tmp_path))

    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()
    assert len(printed) == len(promised(script)), done.stdout + done.stderr
    for line, expected in zip(printed, promised(script), strict=True):
        assert re.fullmatch(re.escape(expected).replace(r"\.\.\.", ".*"), line), f"{line!r} is not {expected!r}"


def test_customers_yaml_runs_as_its_first_lines_say(tmp_path: Path) -> None:
    folder, port = tmp_path / "exchange", services.free_port()
    folder.mkdir()
    text = (EXAMPLES / "customers.yaml").read_text()
    (tmp_path / "customers.yaml").write_text(
        text.replace("8322", str(port)).replace("/tmp/jobq-customers", str(folder))
    )
    command = Command(
        tmp_path, JOBQ_SECRET_KEY="a key of your own, long enough", JOBQ_POLICY__PROBE_NETWORKS='["127.0.0.0/8"]',
        JOBQ_POLICY__AREAS=json.dumps([str(folder)]), JOBQ_DOCKER_HOST=f"unix://{tmp_path}/docker.sock",
    )  # fmt: skip
    service = services.child([sys.executable, EXAMPLES / "customers_service.py", str(port)], stdout=subprocess.DEVNULL)
    try:
        dev = command.start("dev")
        wait_until(lambda: "Ctrl-C stops it" in command.printed(dev), 30, what="jobq dev")
        command.ok("secret", "set", "crm-token", stdin="open-sesame\n")
        command.ok("workflow", "apply", "-f", "customers.yaml")
        done = command("workflow", "trigger", "customers", "--wait")
        job = done.out.split()[0]
        failed = [one for one in command.ok("job", "exports", job, "--json").items if one["status"] == "fail"]
        dev.send_signal(signal.SIGTERM)
        assert dev.wait(15) == 0, command.printed(dev, "err")
    finally:
        service.kill()
        service.wait()
        command.close()

    assert done.code == 1, done.err
    assert "1 of 24 replications failed" in done.out
    assert [(one["key"], one["target"], one["error_class"]) for one in failed] == [
        ("8", "newsletter", "InvalidPayload")
    ]
    assert (folder / "1.csv").read_text().splitlines() == ["id,name,email", "1,Ada No. 1,ada@example.org"]
    assert len(list(folder.iterdir())) == 12


# --- the plugin: a package of its own --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plugin, installed into a folder of its own, as pip does it: build the wheel, unpack it."""
    folder = tmp_path_factory.mktemp("plugin")
    source = shutil.copytree(PLUGIN, folder / "source")
    done = run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder / "wheels", cwd=source)
    assert done.returncode == 0, done.stdout + done.stderr
    [wheel] = (folder / "wheels").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_plugin_passes_its_own_tests(site: Path, tmp_path: Path) -> None:
    done = run(
        sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", "-p", "no:cacheprovider", "--rootdir", tmp_path,
        PLUGIN / "test_greeting.py", PYTHONPATH=str(site),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "9 passed" in done.stdout


def test_a_worker_runs_jobs_of_an_installed_plugin(site: Path, tmp_path: Path, sqlite_url: str, redis_url: str) -> None:
    with Fleet(tmp_path, sqlite_url, redis_url, plugins=[]) as fleet:
        fleet.environment["PYTHONPATH"] += os.pathsep + str(site)
        fleet.scheduler()
        fleet.worker("greeting:4")
        spec = '{"name": "Ada", "times": 2}'
        enqueued = subprocess.run(
            [JOBQ, "enqueue", "greeting", "--spec", spec, "--wait", "--wait-timeout", "30"],
            env=fleet.environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert enqueued.returncode == 0, enqueued.stderr + fleet.logs()

        [job] = fleet.jobq.list().items
        assert (job.kind, job.queue, job.status) == ("GREETING", "greeting", Status.COMPLETED)
        wait_until(lambda: len(list(fleet.jobq.logs(job.id))) == 2, what="the log")
        assert [line.text for line in fleet.jobq.logs(job.id)] == ["hello Ada", "hello Ada"]
        [attempt] = fleet.jobq.attempts(job.id)
        assert attempt.result == {"greeted": "Ada", "times": 2}
        assert [step.name for step in attempt.steps] == ["greet"]
