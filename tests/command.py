"""The command `jobq`, as a user runs it: each call is a process of its own, judged by its exit code and its output."""

import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.services import child

ROOT = Path(__file__).parent.parent
JOBQ = Path(sys.executable).parent / "jobq"


@dataclass(frozen=True)
class Done:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)

    @property
    def items(self) -> list[Any]:
        found: list[Any] = self.document["items"]
        return found


class Warm:
    """A Python that has loaded what most commands load, and forks for each: a tenth of the time of a cold start."""

    _SCRIPT = """
import functools, gc, json, os, sys
import alembic.command, alembic.migration, psycopg, rich.console, rich.table, sqlalchemy.dialects.postgresql.psycopg
import jobq.broker, jobq.cli.checks, jobq.cli.job_page, jobq.client, jobq.manifest
import typer.main
from jobq.cli import app, main

typer.main.get_command = functools.cache(typer.main.get_command)
typer.main.get_command(app)
gc.freeze()
for line in sys.stdin:
    told = json.loads(line)
    child = os.fork()
    if not child:
        os.environ.clear()
        os.environ.update(told["env"])
        os.chdir(told["cwd"])
        for number, name in enumerate(("in", "out", "err")):
            os.dup2(os.open(told[name], os.O_RDWR), number)
        sys.stdin = open(0)
        sys.argv = ["jobq", *told["arguments"]]
        sys.exit(main())
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", self._SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True
        )
        atexit.register(self.close)

    def run(self, arguments: list[str], environment: dict[str, str], folder: Path, stdin: str) -> Done:
        """As `Command` runs the executable."""
        assert self._process.stdin
        assert self._process.stdout
        with tempfile.TemporaryDirectory() as place:
            files = {name: Path(place) / name for name in ("in", "out", "err")}
            for name, file in files.items():
                file.write_text(stdin if name == "in" else "")
            paths = {name: str(file) for name, file in files.items()}
            told = {"arguments": arguments, "env": environment, "cwd": str(folder), **paths}
            print(json.dumps(told), file=self._process.stdin, flush=True)
            code = int(self._process.stdout.readline())
            return Done(code, files["out"].read_text(), files["err"].read_text())

    def close(self) -> None:
        """End it."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


@cache
def warm() -> Warm:
    """The one of this test session."""
    return Warm()


class Command:
    """Runs `jobq` with settings of its own; nothing of the user's environment or files counts."""

    def __init__(self, folder: Path, *, is_warm: bool = False, **environment: str) -> None:
        """With ``is_warm`` a command is forked from a Python that is up already; else it is the executable."""
        self.folder = folder
        self.is_warm = is_warm
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("JOBQ_", "XDG_", "COV_"))}
        own = {"XDG_CONFIG_HOME": str(folder), "XDG_DATA_HOME": str(folder), "NO_COLOR": "1"}
        self.environment = {**inherited, **own, **environment}
        self.started: list[subprocess.Popen[bytes]] = []

    def __call__(self, *arguments: str, stdin: str = "", env: dict[str, str] | None = None) -> Done:
        """Run a command to its end. No command, whatever it is told, shows a stack trace."""
        environment = {**self.environment, **(env or {})}
        if self.is_warm:
            done = warm().run(list(arguments), environment, self.folder, stdin)
        else:
            cold = subprocess.run(
                [JOBQ, *arguments], env=environment, input=stdin, capture_output=True, encoding="utf-8",
                timeout=60, check=False, cwd=self.folder,
            )  # fmt: skip
            done = Done(cold.returncode, cold.stdout, cold.stderr)
        assert "Traceback" not in done.err, done.err
        return done

    def ok(self, *arguments: str, **how: Any) -> Done:
        """Run a command that must succeed."""
        done = self(*arguments, **how)
        assert done.code == 0, f"jobq {' '.join(arguments)}: exit {done.code}\n{done.out}\n{done.err}"
        return done

    def refused(self, code: str, *arguments: str, exit_code: int = 2, **how: Any) -> Done:
        """Run a command that must fail with this stable code, in one readable message."""
        done = self(*arguments, **how)
        assert done.code == exit_code, f"exit {done.code}\n{done.out}\n{done.err}"
        first, *rest = done.err.splitlines()
        assert first.startswith("jobq: ")
        assert first.endswith(f" ({code})."), first
        assert len(rest) <= 1, done.err
        return done

    def job(self, *arguments: str, **how: Any) -> str:
        """Run a command that makes a job; returns its id, which is all that it prints."""
        return self.ok(*arguments, **how).out.removesuffix("\n")

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """A command that goes on; what it prints goes to files, see `printed`."""
        number = len(self.started)
        with (self.folder / f"{number}.out").open("wb") as out, (self.folder / f"{number}.err").open("wb") as err:
            process = child([JOBQ, *arguments], env=self.environment, stdout=out, stderr=err, cwd=self.folder)
        self.started.append(process)
        return process

    def printed(self, process: subprocess.Popen[bytes], stream: str = "out") -> str:
        """What a started command printed so far."""
        return (self.folder / f"{self.started.index(process)}.{stream}").read_text()

    def close(self) -> None:
        """End what was started."""
        for process in self.started:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()
