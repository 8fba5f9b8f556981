"""What `jobq dev` tells of a database: each end once, in few words, safe for a terminal."""

import re
from collections.abc import Iterator
from datetime import timedelta
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from jobq import Every, Heartbeat, JobQ, Reason
from jobq.cli.live import Watch, lines, tables
from jobq.embedded import Embedded
from jobq.settings import Policy
from tests.services import wait_until

PAGE = Heartbeat(endpoint="https://example.org/")


@pytest.fixture
def jobq(sqlite_url: str) -> Iterator[JobQ]:
    with JobQ(sqlite_url) as jobq:
        yield jobq


@pytest.fixture
def watch(jobq: JobQ) -> Watch:
    watch = Watch(jobq.database)
    watch.look()
    return watch


def test_an_end_is_told_once(jobq: JobQ, watch: Watch) -> None:
    job = jobq.enqueue(PAGE, name="front-page")
    assert watch.look().ended == []
    jobq.cancel(job.id)

    assert [ended.id for ended in watch.look().ended] == [job.id]
    assert watch.look().ended == []


def test_what_ended_before_the_start_is_no_news(jobq: JobQ) -> None:
    jobq.cancel(jobq.enqueue(PAGE).id)
    watch = Watch(jobq.database)

    assert watch.look().ended == []
    assert len(watch.look().newest) == 1


def test_a_job_that_newer_ones_pushed_out_of_sight_is_followed_to_its_end(jobq: JobQ, watch: Watch) -> None:
    job = jobq.enqueue(PAGE)
    watch.look()
    jobq.enqueue_many([{"spec": PAGE}] * 250)
    watch.look()
    jobq.cancel(job.id)

    assert [ended.id for ended in watch.look().ended] == [job.id]


def test_a_flood_of_ends_is_summed_up(jobq: JobQ, watch: Watch) -> None:
    for job_id in jobq.enqueue_many([{"spec": PAGE}] * 60):
        jobq.cancel(job_id)

    told = lines(watch.look())

    assert len(told) == 41
    assert told[-1].split() == ["…", "20", "more", "canceled"]


def test_a_message_cannot_steer_the_terminal(sqlite_url: str, watch: Watch) -> None:
    with JobQ(sqlite_url, actor="\x1b[2Jeve") as jobq:
        jobq.cancel(jobq.enqueue(PAGE, name="front-page").id)

    assert lines(watch.look()) == ["canceled   front-page                     canceled by \\x1b[2Jeve"]


def test_a_workflow_that_was_terminated_is_told(jobq: JobQ, watch: Watch) -> None:
    jobq.create_workflow(PAGE, name="front-page", schedule=Every("PT1H"))
    watch.look()
    jobq.terminate_workflow("front-page")

    assert lines(watch.look()) == ["terminated front-page                     the workflow: terminated by python"]
    assert lines(watch.look()) == []


def test_tables_fit_the_terminal(jobq: JobQ, watch: Watch) -> None:
    jobq.create_workflow(PAGE, name="front-page", schedule=Every(timedelta(minutes=5)))
    for number in range(60):
        jobq.enqueue(PAGE, name=f"job-{number}")
    shown = StringIO()
    Console(file=shown, width=80, height=30).print(tables(watch.look(), watch, height=30))

    rows = shown.getvalue().splitlines()
    assert len(rows) <= 30
    assert all(len(line) <= 80 for line in rows)
    assert any("front-page" in line and "every 5 min" in line and "active" in line for line in rows)
    assert any("ready" in line and "job-59" in line for line in rows)


def test_a_sync_shows_how_many_children_have_ended_and_they_do_not_push_it_out_of_sight(
    jobq: JobQ, watch: Watch, tmp_path: Path
) -> None:
    """Its children may be more than all the jobs that are looked at, and come before the first look at it."""
    area = f"{tmp_path}/area"
    settings = jobq.settings.model_copy(update={"policy": Policy(areas=[area]), "broker_url": "memory://"})
    Path(area).mkdir()
    Path(area, "in.jsonl").write_text("".join(f'{{"id": {number}}}\n' for number in range(300)))
    target = {"name": "out", "type": "sql", "config": {"url": f"sqlite:///{area}/none.db", "table": "t", "key": "id"}}
    source = {"type": "jsonl", "config": {"path": f"{area}/in.jsonl"}}
    with JobQ(settings=settings) as allowed:
        allowed.queues.pause("replication")
        job = allowed.enqueue({"domain": "d", "source": source, "targets": [target]}, kind="SYNC", name="all-of-d")
        with Embedded(settings, {"sync": 1, "replication": 20}):
            wait_until(lambda: allowed.get(job.id).reason is Reason.FANNED_OUT, 20, what="the children")
            shown = StringIO()
            Console(file=shown, width=120, height=30).print(tables(watch.look(), watch, height=30))
            assert re.search(r"running +SYNC +all-of-d +0/300 children", shown.getvalue())
            allowed.cancel(job.id)
            wait_until(lambda: allowed.get(job.id).finished, 20, what="its end")

    [told] = lines(watch.look())
    assert told.startswith("canceled   all-of-d")
