"""JobQ over HTTP where the network, the API or its certificate is not what it should be."""

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobq import Heartbeat, JobQ, Settings, Status
from jobq.api.server import Address, Server
from jobq.errors import JobQError, Misconfigured, TooMany, Unavailable
from jobq.store import logs
from jobq.store.logs import Chunk
from tests.api import SECRET_KEY
from tests.e2e.test_cli_api import self_signed
from tests.proxy import Proxy
from tests.services import free_port, wait_until
from tests.stores import Store, ended

PAGE = Heartbeat(endpoint="https://example.org/")
MICROS = 1_700_000_000_000_000


@pytest.fixture
def owner(sqlite_url: str) -> Iterator[JobQ]:
    with JobQ(settings=Settings(database_url=sqlite_url, secret_key=SECRET_KEY)) as owner:
        yield owner


@pytest.fixture
def server(owner: JobQ) -> Iterator[Server]:
    server = Server(owner.settings, Address(port=0), owner)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with Proxy(("127.0.0.1", server.address.port)) as proxy:
        yield proxy


@pytest.fixture
def jobq(proxy: Proxy) -> Iterator[JobQ]:
    with JobQ(f"http://127.0.0.1:{proxy.port}", settings=Settings()) as jobq:
        yield jobq


def test_a_lost_answer_makes_nothing_twice(jobq: JobQ, proxy: Proxy, owner: JobQ) -> None:
    proxy.lose_reply(b"POST /v1/jobs ")
    job = jobq.enqueue(PAGE)
    proxy.lose_reply(b"POST /v1/jobs/batch ")
    ids = jobq.enqueue_many([{"spec": PAGE}] * 3)
    proxy.lose_reply(b"POST /v1/workflows ")
    flow = jobq.create_workflow(PAGE, name="page")
    proxy.lose_reply(f"POST /v1/workflows/{flow.id}/jobs ".encode())
    started = jobq.trigger(flow.id)
    assert [each.id for each in owner.list().items] == [started.id, *ids[::-1], job.id]

    proxy.lose_reply(f"POST /v1/jobs/{job.id}/cancel ".encode())
    assert jobq.cancel(job.id).status is Status.CANCELED
    proxy.lose_reply(f"POST /v1/jobs/{job.id}/retry ".encode())
    again = jobq.retry(job.id)
    assert [each.id for each in owner.list().items if each.retry_of == job.id] == [again.id]
    jobq.cancel(started.id)
    proxy.lose_reply(f"DELETE /v1/workflows/{flow.id} ".encode())
    jobq.delete_workflow(flow.id)
    assert owner.list_workflows().items == []
    assert proxy.lost == 7


def test_a_key_is_asked_for_once(jobq: JobQ, proxy: Proxy, owner: JobQ) -> None:
    """What an earlier try made could not be shown again: so there is no other try."""
    proxy.lose_reply(b"POST /v1/keys ")
    with pytest.raises(Unavailable) as lost:
        jobq.keys.create("deploy")
    assert lost.value.code == "api_unavailable"
    assert len(owner.keys.list()) == 1


def test_a_log_is_followed_over_cut_connections_without_gap_or_repeat(jobq: JobQ, proxy: Proxy, owner: JobQ) -> None:
    store, job = Store(owner.database), owner.enqueue(PAGE)
    seen: list[int] = []

    def follow() -> None:
        for line in jobq.logs(job.id, follow=True):
            seen.append(line.number)  # noqa: PERF401 - others look at it meanwhile

    following = threading.Thread(target=follow)
    following.start()
    for first in range(1, 4000, 200):
        body = [(MICROS + number, "stdout", f"line {number}") for number in range(first, first + 200)]
        store.do(logs.append, [Chunk(job.id, 1, first, 10 * len(body), body)])
        if first % 1000 == 1:
            wait_until(lambda first=first: len(seen) >= first, what="the reader to have read")  # type: ignore[misc]
            proxy.cut()
    worker = store.worker({job.queue: 10})
    store.promote()
    for claimed in store.claim(worker, [job.id], job.queue):
        store.record(worker, ended(claimed))
    following.join(30)
    assert seen == list(range(1, 4001))


def test_who_follows_the_log_of_a_job_that_is_pruned_is_let_go(jobq: JobQ, owner: JobQ, proxy: Proxy) -> None:
    job = owner.enqueue(PAGE)
    Store(owner.database).do(logs.append, [Chunk(job.id, 1, 1, 10, [(MICROS, "stdout", "a")])])
    following = jobq.logs(job.id, follow=True)
    assert next(following).text == "a"
    with owner.database.begin() as conn:
        for table in ("jobq_job_logs", "jobq_job_data", "jobq_jobs"):
            column = "id" if table == "jobq_jobs" else "job_id"
            assert conn.exec_driver_sql(f"DELETE FROM {table} WHERE {column} = ?", (job.id.hex,)).rowcount == 1
    assert list(following) == []


def test_an_api_that_comes_back_is_waited_for(owner: JobQ, monkeypatch: pytest.MonkeyPatch) -> None:
    port, refused, back = free_port(), threading.Event(), threading.Event()

    def pause(_: float) -> None:
        refused.set()
        assert back.wait(20)

    monkeypatch.setattr("jobq.remote.wire.time", SimpleNamespace(sleep=pause))
    jobq = JobQ(f"http://127.0.0.1:{port}", settings=Settings())
    made: list[Any] = []
    asking = threading.Thread(target=lambda: made.append(jobq.enqueue(PAGE)))
    asking.start()
    assert refused.wait(20), "it met nobody"
    server = Server(owner.settings, Address(port=port), owner)
    server.start()
    back.set()
    asking.join(20)
    server.stop()
    jobq.close()
    assert [job.id for job in owner.list().items] == [made[0].id]


def test_an_api_that_stays_away_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobq.remote.wire._PAUSES", (0.01, 0.01))
    jobq = JobQ(f"http://127.0.0.1:{free_port()}", api_key="jobq_canary", settings=Settings())
    with pytest.raises(Unavailable) as away:
        jobq.enqueue(PAGE)
    assert (away.value.code, "canary" in str(away.value)) == ("api_unavailable", False)


def test_an_api_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobq.remote.wire._PAUSES", ())
    with socket.create_server(("127.0.0.1", 0)) as silent:
        jobq = JobQ(f"http://127.0.0.1:{silent.getsockname()[1]}", settings=Settings(api_timeout=0.2))
        began = time.monotonic()
        with pytest.raises(Unavailable):
            jobq.list()
        assert time.monotonic() - began < 5
        jobq.close()


class Other(BaseHTTPRequestHandler):
    """Something that is no jobq."""

    def do_GET(self) -> None:
        status, kind, body = self.server.answers  # type: ignore[attr-defined]
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Location", "http://192.0.2.1/")
        if status == 429:
            self.send_header("Retry-After", "7")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None: ...


@pytest.mark.parametrize(
    ("answers", "error", "code"),
    [
        ((200, "text/html", b"<html>"), Misconfigured, "unexpected_answer"),
        ((200, "application/json", b'{"items": [{"id": 1}], "next_cursor": null}'), Misconfigured, "unexpected_answer"),
        ((404, "text/html", b"<html>"), Misconfigured, "unexpected_answer"),
        ((302, "text/html", b""), Misconfigured, "unexpected_answer"),
        ((502, "text/html", b"bad gateway"), Unavailable, "api_unavailable"),
        ((429, "text/html", b"slow down"), TooMany, "rate_limited"),
        ((418, "application/problem+json", b'{"detail": "Tea.", "code": "tea"}'), JobQError, "tea"),
        ((500, "application/problem+json", b"no json"), Unavailable, "api_unavailable"),
    ],
)
def test_what_is_no_answer_of_an_api_is_an_error_of_the_tree(
    answers: tuple[int, str, bytes], error: type[JobQError], code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobq.remote.wire._PAUSES", (0.01,))
    other = HTTPServer(("127.0.0.1", 0), Other)
    other.answers = answers  # type: ignore[attr-defined]
    thread = threading.Thread(target=other.serve_forever)
    thread.start()
    try:
        with JobQ(f"http://127.0.0.1:{other.server_port}", settings=Settings()) as jobq:
            with pytest.raises(JobQError) as refused:
                jobq.list()
            assert (type(refused.value), refused.value.code) == (error, code)
            assert getattr(refused.value, "retry_after", 7) == 7
    finally:
        other.shutdown()
        thread.join()
        other.server_close()


def test_a_certificate_is_verified(owner: JobQ, tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    server = Server(owner.settings, Address("127.0.0.1", 0, certificate, key), owner)
    server.start()
    try:
        url = f"https://localhost:{server.address.port}"
        with JobQ(url, settings=Settings(ca_bundle=str(certificate))) as trusting:
            assert trusting.enqueue(PAGE).status is Status.PENDING
        with JobQ(url, settings=Settings()) as careful, pytest.raises(Misconfigured) as refused:
            careful.list()
        assert (refused.value.code, "JOBQ_CA_BUNDLE" in str(refused.value)) == ("bad_certificate", True)
        with JobQ(url, settings=Settings(ca_bundle="/nowhere.pem")) as lost, pytest.raises(Misconfigured):
            lost.list()
    finally:
        server.stop()


@pytest.mark.parametrize(
    "url", ["https://", "https://user:canary@jobq.example", "http://jobq.example/?x=1", "http://[::1"]
)
def test_what_is_no_address_of_an_api_is_said(url: str) -> None:
    with JobQ(url, settings=Settings()) as jobq, pytest.raises(Misconfigured) as refused:
        jobq.list()
    assert "canary" not in str(refused.value)
