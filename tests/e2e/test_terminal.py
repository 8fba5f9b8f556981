"""What comes from outside cannot steer a terminal: names, messages and log lines appear with their escapes written out."""

import io
import logging
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from rich.console import Console

from jobq import JobQ, Settings
from jobq.cli import main
from jobq.cli.live import Watch, lines, tables
from jobq.logs import configure
from jobq.testing import running

HOSTILE = {
    "colors": "\x1b[31mred",
    "title": "\x1b]0;title\x07",
    "link": "\x1b]8;;http://evil.example\x1b\\click\x1b]8;;\x1b\\",
    "clipboard": "\x1b]52;c;ZXZpbA==\x07",
    "one byte": "\x9b2J\x9d0;x\x9c",
    "cursor": "\x1b[2J\x1b[1;1H\rover",
    "backspace": "good\x08\x08\x08\x08evil",
    "bidi": "a\u202eb\u2066c\u2069d\u200fe\u061cf",
    "lines": "one\u2028two\u2029three\x85four\x0bfive\x0csix",
    "query": "\x1b[c\x05",
}
TEXT = "|".join(HOSTILE.values())
STEERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
COLUMNS = {
    "jobq_jobs": ["name", "message", "error_class", "dedupe_key"],
    "jobq_workflows": ["name", "message"],
    "jobq_workers": ["name"],
    "jobq_secrets": ["name"],
    "jobq_attempts": ["message", "error_class"],
    "jobq_queues": ["name"],
}


def forge(jobq: JobQ) -> None:
    """Hostile text in every column that a person reads: what no door lets in may still be there."""
    with jobq.database.begin() as conn:
        there = sa.inspect(conn).get_table_names()
        for table, columns in COLUMNS.items():
            assert table in there, there
            for column in columns:
                conn.execute(sa.text(f"UPDATE {table} SET {column} = :text"), {"text": TEXT})


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a command prints, run within this process: forty of them are run here."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*words: str, code: int = 0) -> str:
        capfd.readouterr()
        assert main(words) == code, (words, capfd.readouterr())
        out, err = capfd.readouterr()
        return out + err

    return run


def test_no_command_passes_on_what_steers_a_terminal(told: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(plugins=["tests.kinds:NapExecutor"], secret_key="a key for tests, long enough")
    with running(settings, queues={"nap": 2}) as jobq:
        jobq.secrets.set("s", "value")
        jobq.queues.limit("nap", 5)
        jobq.create_workflow({"seconds": 0}, kind="NAP", name="flow", interval=timedelta(hours=1))
        job = jobq.enqueue({"say": TEXT, "then": "fail"}, kind="NAP", dedupe_key="x", retry={"max_attempts": 1})
        jobq.wait(job.id, timeout=20)
        assert "colors" not in "".join(line.text for line in jobq.logs(job.id))
        forge(jobq)
        monkeypatch.setenv("JOBQ_DATABASE_URL", jobq.settings.database_url)
        for words in (
            f"job show {job.id}", f"job show {job.id} --json", f"job show {job.id} --details", f"job logs {job.id}",
            f"job logs {job.id} --json", f"job why {job.id}", "job list", "workflow list", "workflow list --json", "worker list",
            "secret list", "queue list",
        ):  # fmt: skip
            shown = told(*words.split())
            assert not STEERS.search(shown), (words, STEERS.findall(shown))
            assert "red" in shown, words  # it was there, and was shown
        check_the_view_of_dev(jobq)


def check_the_view_of_dev(jobq: JobQ) -> None:
    watch = Watch(jobq.database)
    seen = watch.look()
    seen.ended, seen.terminated = seen.newest, seen.workflows
    screen = io.StringIO()
    Console(file=screen, width=400, color_system=None).print(tables(seen, watch, height=40))
    shown = screen.getvalue() + "\n".join(lines(seen))
    assert "red" in shown
    assert not STEERS.search(shown), STEERS.findall(shown)


def test_mistakes_are_told_without_what_steers_a_terminal(
    told: Callable[..., str], monkeypatch: pytest.MonkeyPatch, sqlite_url: str
) -> None:
    monkeypatch.setenv("JOBQ_DATABASE_URL", sqlite_url)
    for text in HOSTILE.values():
        for words in (["job", "show", text], ["enqueue", "heartbeat", f"http://{text}"], ["enqueue", "container", text],
                      [text]):  # fmt: skip
            shown = told(*words, code=2)
            assert not STEERS.search(shown), (words, shown)


@pytest.mark.parametrize("how", ["text", "json"])
def test_no_line_of_a_services_log_steers_a_terminal(how: str, capfd: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        configure("INFO", how)
        logging.getLogger("jobq").warning("lost: %s", TEXT)
        try:
            raise ValueError(TEXT)
        except ValueError:
            logging.getLogger("jobq").exception("failed")
    finally:
        root.handlers[:], root.level = handlers, level
    told = capfd.readouterr().err
    assert told.count("red") >= 2
    assert not STEERS.search(told), STEERS.findall(told)
