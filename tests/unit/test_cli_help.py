"""The CLI's shape: every command is documented, and asking for help costs next to nothing."""

import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from jobq.cli import app
from tests.command import JOBQ, ROOT

DOCS = (ROOT / "docs" / "cli.md").read_text()
HEAVY = {"sqlalchemy", "alembic", "celery", "kombu", "redis", "aiohttp", "docker", "structlog", "yaml"}


def commands(command: Any = None, path: str = "jobq") -> Iterator[tuple[str, Any]]:
    command = command or typer.main.get_command(app)
    if children := getattr(command, "commands", {}):
        for name, child in children.items():
            yield from commands(child, f"{path} {name}")
    else:
        yield path, command


@pytest.mark.parametrize("path", [path for path, _ in commands()])
def test_every_command_is_in_the_docs(path: str) -> None:
    assert f"`{path}" in DOCS


def test_every_command_and_option_says_what_it_is_for() -> None:
    for path, command in commands():
        assert command.help, path
        for parameter in command.params:
            assert parameter.help or parameter.metavar, f"{path} {parameter.name}"


def test_the_docs_name_every_exit_code() -> None:
    for code in (0, 1, 2, 3, 70, 130, 141):
        assert f"| {code} |" in DOCS


def test_the_docs_name_no_command_that_does_not_exist() -> None:
    known = {path for path, _ in commands()} | {"jobq worker -Q", "jobq COMMAND --help"}
    for line in DOCS.splitlines():
        for quoted in line.split("`")[1::2]:
            if quoted.startswith("jobq "):
                assert any(quoted.startswith(path) for path in known), quoted


def test_the_cli_loads_nothing_heavy_before_a_command_needs_it() -> None:
    script = "import sys, jobq.cli; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert not HEAVY & set(done.stdout.split())


def test_help_comes_at_once() -> None:
    assert min(seconds_of("--help") for _ in range(3)) < 0.4


def seconds_of(*arguments: str) -> float:
    """CPU seconds: other tests may share the machine."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([JOBQ, *arguments], check=True, stdout=subprocess.DEVNULL, cwd=Path("/"))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
