"""The real `jobq` executable, as a user runs it."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


class Command:
    """Runs `jobq` with settings of its own; nothing of the user's environment or files counts."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("JOBQ_", "XDG_", "COV_"))}
        own = {"XDG_CONFIG_HOME": str(folder), "XDG_DATA_HOME": str(folder), "NO_COLOR": "1"}
        self.environment = {**inherited, **own, **environment}
        self.started: list[subprocess.Popen[bytes]] = []

    def __call__(
        self, *arguments: str, stdin: str = "", timeout: float = 60, env: dict[str, str] | None = None, **how: Any
    ) -> Done:
        """Run a command to its end. No command, whatever it is told, shows a stack trace."""
        done = subprocess.run(
            [JOBQ, *arguments], env={**self.environment, **(env or {})}, input=stdin, capture_output=True,
            encoding="utf-8", timeout=timeout, check=False, cwd=self.folder, **how,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return Done(done.returncode, done.stdout, done.stderr)

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
            process = subprocess.Popen(
                [JOBQ, *arguments], env=self.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                cwd=self.folder, start_new_session=True,
            )  # fmt: skip
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
