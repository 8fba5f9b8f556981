"""Probes whose headers are secrets: the server gets the value, and no row, log line or message ever holds it."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from jobq import Heartbeat, JobQ, Settings
from jobq.models import Job
from jobq.settings import Policy
from jobq.states import Reason, Status
from jobq.testing import running
from tests.integration.probing import OK, Serve, answering, serving

TOKEN = "Bearer canary-5f2c"


@pytest.fixture
def jobq(tmp_path: Path) -> Iterator[JobQ]:
    policy = Policy(probe_networks=["127.0.0.0/8"])
    with running(Settings(secret_key="a key for tests, long enough", policy=policy), queues={"heartbeat": 2}) as jobq:
        yield jobq


def probed(jobq: JobQ, serve: Serve, **fields: Any) -> Job:
    """A probe that ran: ``Authorization`` is the secret ``page-token``."""

    def enqueue(port: int) -> Job:
        given = {"endpoint": f"http://127.0.0.1:{port}/", "secret_headers": {"Authorization": "page-token"}, **fields}
        return jobq.wait(jobq.enqueue(Heartbeat(**given), retry={"max_attempts": 1}).id, timeout=20)

    return asyncio.run(_served(serve, enqueue))


async def _served(serve: Serve, enqueue: Callable[[int], Job]) -> Job:
    async with serving(serve) as port:
        return await asyncio.to_thread(enqueue, port)


def everything(jobq: JobQ) -> str:
    """All rows of all tables."""
    with jobq.database.read() as conn:
        tables = sa.inspect(conn).get_table_names()
        return repr([list(conn.exec_driver_sql(f"SELECT * FROM {table}")) for table in tables])


def test_the_server_gets_the_secret_and_the_database_never_does(jobq: JobQ) -> None:
    asked: list[bytes] = []
    jobq.secrets.set("page-token", TOKEN)
    job = probed(jobq, answering(OK, asked=asked), headers={"Accept": "text/html"})
    assert job.status is Status.COMPLETED, job.message
    assert b"\r\nAuthorization: Bearer canary-5f2c\r\n" in asked[0]
    assert b"\r\nAccept: text/html\r\n" in asked[0]
    assert "canary" not in everything(jobq)


@pytest.mark.parametrize("before", [b"", b"HTTP/", b"HTTP/1.1 418 ", b"HTTP/1.1 302 Found\r\nLocation: http://"])
def test_a_server_that_echoes_the_secret_does_not_bring_it_into_message_or_log(jobq: JobQ, before: bytes) -> None:
    jobq.secrets.set("page-token", TOKEN)
    job = probed(jobq, answering(before + b"canary-5f2c\r\n\r\n"))
    assert job.status is Status.FAILED
    assert job.message
    assert list(jobq.logs(job.id))
    assert "anary" not in everything(jobq)


def test_a_redirect_on_the_same_host_is_named_although_the_headers_are_secret(jobq: JobQ) -> None:
    jobq.secrets.set("page-token", TOKEN)
    job = probed(jobq, answering(b"HTTP/1.1 301 Moved\r\nLocation: https://127.0.0.1/canary-5f2c\r\n\r\n"))
    assert "(the redirect to https://127.0.0.1 is not followed)" in (job.message or "")
    assert "canary" not in everything(jobq)


def test_a_secret_that_does_not_exist_ends_the_job_as_invalid(jobq: JobQ) -> None:
    asked: list[bytes] = []
    job = probed(jobq, answering(OK, asked=asked))
    assert job.reason is Reason.INVALID
    assert "There is no secret 'page-token'" in (job.message or "")
    assert asked == []


def test_a_secret_that_is_no_header_ends_the_job_as_invalid_without_showing_it(jobq: JobQ) -> None:
    asked: list[bytes] = []
    jobq.secrets.set("page-token", f"{TOKEN}\r\nX-Forged: yes")
    job = probed(jobq, answering(OK, asked=asked))
    assert job.reason is Reason.INVALID
    assert "The secret 'page-token' cannot be the value of a header" in (job.message or "")
    assert asked == []
    assert "canary" not in everything(jobq)
