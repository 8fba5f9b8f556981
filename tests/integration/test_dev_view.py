"""What `jobq dev` tells of a database: each end once, in few words, safe for a terminal."""

from collections.abc import Iterator
from datetime import timedelta
from io import StringIO

import pytest
from rich.console import Console

from jobq import Every, Heartbeat, JobQ
from jobq.cli.live import Watch, lines, tables

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
