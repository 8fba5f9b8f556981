"""The log of a process: every logger in one form, each line with the ids of the job that it is about."""

import asyncio
import json
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from jobq import InvalidInput, Settings, logs, telemetry
from jobq.errors import Misconfigured
from jobq.store.claim import Claimed
from jobq.store.database import Database
from tests.stores import Store
from workers.redaction import Redaction

GIVEN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
CANARY = "canary/8d2e+x"


@pytest.fixture(autouse=True)
def own_configuration() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:], root.level = handlers, level


@pytest.fixture
def job(sqlite_url: str) -> Iterator[Claimed]:
    database = Database(sqlite_url)
    store = Store(database)
    with telemetry.continuing(GIVEN):
        store.enqueue_one()
    yield store.claim(store.worker(), store.promote()["noop"])[0]
    database.close()


def lines(capfd: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """What came to stderr, each line a document."""
    return [json.loads(line) for line in capfd.readouterr().err.splitlines()]


def ids(job: Claimed) -> dict[str, Any]:
    return {
        "job_id": str(job.id), "attempt": 1, "kind": "NOOP", "queue": "noop", "worker": str(job.id),
        "trace_id": GIVEN[3:35],
    }  # fmt: skip


def test_every_logger_writes_one_document_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure("INFO", "json")
    names = ["jobq.api", "workers.app", "celery.worker", "kombu", "uvicorn.error", "sqlalchemy.pool", "somebody.else"]
    for name in names:
        logging.getLogger(name).warning("told by %s:\nin two lines", name)
    logging.getLogger("celery").info("libraries are quiet")
    logging.getLogger("jobq").info("we are not")
    found = lines(capfd)
    assert [line["logger"] for line in found] == [*names, "jobq"]
    assert found[0]["event"] == "told by jobq.api:\nin two lines"
    assert {"event", "level", "logger", "timestamp"} == found[0].keys()


async def test_lines_of_a_job_carry_its_ids_on_its_task_and_its_threads_and_no_others_do(
    job: Claimed, capfd: pytest.CaptureFixture[str]
) -> None:
    logs.configure("INFO", "json")
    log = logging.getLogger("plugin")

    async def execute() -> None:
        logs.begin(job, job.id)
        with telemetry.attempt(job, job.id):
            log.warning("on the task")
            await asyncio.to_thread(log.warning, "on a thread")
            await asyncio.create_task(say("on a task of its own"))

    async def say(text: str) -> None:
        log.warning(text)

    await asyncio.gather(asyncio.create_task(execute()), asyncio.create_task(say("another")))
    log.warning("behind it")
    thread = threading.Thread(target=log.warning, args=("elsewhere",))
    thread.start()
    thread.join()
    found = {line["event"]: line for line in lines(capfd)}
    for event in ("on the task", "on a thread", "on a task of its own"):
        assert ids(job).items() <= found[event].items()
    for event in ("another", "behind it", "elsewhere"):
        assert "job_id" not in found[event]


@pytest.mark.parametrize("how", ["json", "console"])
def test_secrets_of_a_job_are_asterisks_in_its_lines(job: Claimed, capfd: pytest.CaptureFixture[str], how: str) -> None:
    logs.configure("DEBUG", how)
    about = logs.about(job, job.id)
    about.hide = Redaction([CANARY]).hide
    log = logging.getLogger("plugin")
    with logs.belonging(about):
        log.warning("the password %s, in JSON %s", CANARY, json.dumps({"p": CANARY}))
        try:
            raise ValueError(f"{CANARY} is no number")
        except ValueError:
            log.exception("it failed")
    told = capfd.readouterr().err
    assert CANARY not in told
    assert told.count("***") >= 3
    assert str(job.id) in told
    log.warning("not a job's: %s", CANARY)
    assert CANARY in capfd.readouterr().err, "else this test proves nothing"


def test_a_line_about_a_job_that_others_write_names_it(job: Claimed, capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure("INFO", "json")
    with logs.belonging(logs.about(job, job.id)):
        logging.getLogger("workers.lease").warning("it is stopped")
    logging.getLogger("workers.lease").warning("something else")
    first, second = lines(capfd)
    assert first["job_id"] == str(job.id)
    assert "job_id" not in second


def test_the_format_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings.load().log_format == "auto"
    for how in ("console", "json", "JSON", "text"):
        monkeypatch.setenv("JOBQ_LOG_FORMAT", how)
        assert Settings.load().log_format == how.lower()
    monkeypatch.setenv("JOBQ_LOG_FORMAT", "xml")
    with pytest.raises(Misconfigured, match="JOBQ_LOG_FORMAT"):
        Settings.load()
    with pytest.raises(InvalidInput, match="json"):
        logs.configure("INFO", "xml")
