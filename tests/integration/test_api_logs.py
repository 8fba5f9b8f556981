"""Logs over HTTP: pages, files, and streams that follow a job from before it runs to its end."""

import http.client
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import pytest

from jobq import JobQ, Settings
from jobq.api.server import Address, Server
from jobq.models import Job
from jobq.store import logs
from jobq.store.logs import Chunk
from tests.stores import Store, ended

MICROS = 1_700_000_000_000_000


@dataclass
class Site:
    """A server on a database, and a job whose log the test writes."""

    server: Server
    store: Store
    jobq: JobQ
    written: dict[UUID, int] = field(default_factory=dict)
    readers: list["Reader"] = field(default_factory=list)

    def job(self) -> Job:
        (job_id,) = self.store.enqueue(1, tenant="default")
        return self.store.job(job_id)

    def write(self, job_id: UUID, count: int, stream: str = "stdout") -> None:
        """So many lines more: ``line 1``, ``line 2``, …"""
        first = self.written.get(job_id, 0) + 1
        body = [(MICROS + number, stream, f"line {number}") for number in range(first, first + count)]
        self.store.do(logs.append, [Chunk(job_id, 1, first, 10 * count, body)])
        self.written[job_id] = first + count - 1

    def finish(self, job_id: UUID) -> None:
        worker = self.store.worker()
        self.store.promote()
        for claimed in self.store.claim(worker, [job_id]):
            self.store.record(worker, ended(claimed))

    def get(self, path: str, **headers: str) -> tuple[int, str]:
        with closing(http.client.HTTPConnection("127.0.0.1", self.server.address.port, timeout=30)) as connection:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def stream(self, job_id: UUID, query: str = "", **headers: str) -> "Reader":
        self.readers.append(Reader(self.server.address.port, f"/v1/jobs/{job_id}/logs/stream{query}", headers))
        return self.readers[-1]


class Reader:
    """A plain client of server-sent events."""

    def __init__(self, port: int, path: str, headers: dict[str, str]) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self.connection.request("GET", path, headers=headers)
        self.answer = self.connection.getresponse()
        assert self.answer.status == 200, self.answer.read()
        assert self.answer.headers["content-type"].startswith("text/event-stream")

    def __iter__(self) -> Iterator[tuple[str, str | None, Any]]:
        """(event, id, data); comments are passed over."""
        fields: dict[str, str] = {}
        for raw in self.answer:
            line = raw.decode().rstrip("\n")
            if not line and "data" in fields:
                yield fields.get("event", "message"), fields.get("id"), json.loads(fields["data"])
            if not line:
                fields = {}
            elif not line.startswith(":"):
                name, _, value = line.partition(": ")
                fields[name] = value

    def lines(self, count: int) -> list[int]:
        """The numbers of the next lines."""
        found: list[int] = []
        for event, place, data in self:
            if event == "log":
                assert place == str(data["number"])
                found.append(data["number"])
            if len(found) == count:
                break
        return found

    def close(self) -> None:
        self.answer.close()
        self.connection.close()


@pytest.fixture
def site(postgres_url: str) -> Iterator[Site]:
    with JobQ(settings=Settings(database_url=postgres_url)) as jobq:
        server = Server(jobq.settings, Address(port=0), jobq)
        server.start()
        site = Site(server, Store(jobq.database), jobq)
        yield site
        for reader in site.readers:
            reader.close()
        server.stop()


def test_a_stream_opens_before_the_job_runs_follows_it_and_ends_with_its_state(site: Site) -> None:
    job = site.job()
    reader = site.stream(job.id)
    events = iter(reader)
    assert next(events)[0] == "open"
    site.write(job.id, 3)
    assert [data["text"] for _, _, data in (next(events) for _ in range(3))] == ["line 1", "line 2", "line 3"]
    site.write(job.id, 2)
    site.finish(job.id)
    *lines, (last, _, state) = list(events)
    assert [data["text"] for _, _, data in lines] == ["line 4", "line 5"]
    assert (last, state["status"], state["reason"]) == ("end", "COMPLETED", "succeeded")


def test_who_comes_back_gets_neither_a_gap_nor_a_repeat(site: Site) -> None:
    job = site.job()
    site.write(job.id, 2500)
    reader = site.stream(job.id)
    seen = reader.lines(1700)
    reader.close()
    site.write(job.id, 300)
    site.finish(job.id)
    again = site.stream(job.id, **{"Last-Event-ID": str(seen[-1])})
    seen += [data["number"] for event, _, data in again if event == "log"]
    assert seen == list(range(1, 2801))


def test_a_stream_of_a_finished_job_replays_it_and_ends(site: Site) -> None:
    job = site.job()
    site.write(job.id, 2)
    site.write(job.id, 2, "stderr")
    site.finish(job.id)
    events = list(site.stream(job.id, "?stream=stderr"))
    assert [event for event, _, _ in events] == ["open", "log", "log", "end"]
    assert [event for event, _, _ in site.stream(job.id, "?after=3")] == ["open", "log", "end"]


def test_a_stream_says_that_it_lives(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobq.api.streams.KEEP_ALIVE", 0.1)
    reader = site.stream(site.job().id)
    said = [reader.answer.readline() for _ in range(12)]
    assert said.count(b": keep-alive\n") >= 2
    reader.close()


def test_pages_are_searched_and_filtered(site: Site) -> None:
    job = site.job()
    site.write(job.id, 30)
    site.write(job.id, 5, "stderr")
    path = f"/v1/jobs/{job.id}/logs"

    def page(query: str) -> tuple[list[int], int | None]:
        document = json.loads(site.get(f"{path}?{query}")[1])
        return [item["number"] for item in document["items"]], document["next_after"]

    assert page("limit=2") == ([1, 2], 2)
    assert page("after=33") == ([34, 35], None)
    assert page("stream=stderr&limit=3") == ([31, 32, 33], 33)
    assert page("q=line%201&limit=4") == ([1, 10, 11, 12], 12)
    assert site.get(f"{path}?limit=0")[0] == 422


def test_the_whole_log_is_a_file(site: Site) -> None:
    job = site.job()
    site.write(job.id, 3000)
    status, text = site.get(f"/v1/jobs/{job.id}/logs/raw")
    assert (status, text.splitlines()) == (200, [f"line {number}" for number in range(1, 3001)])
    _, lines = site.get(f"/v1/jobs/{job.id}/logs/raw?format=jsonl&stream=stdout")
    assert [json.loads(line)["number"] for line in lines.splitlines()] == list(range(1, 3001))
    assert site.get(f"/v1/jobs/{job.id}/logs/raw?format=pdf")[0] == 422


def test_there_is_no_log_of_what_is_no_job(site: Site) -> None:
    nobody = "01900000-0000-7000-8000-000000000000"
    for what in ("logs", "logs/raw", "logs/stream"):
        status, text = site.get(f"/v1/jobs/{nobody}/{what}")
        assert (status, json.loads(text)["code"]) == (404, "not_found")


def test_a_reader_that_is_slow_slows_neither_the_job_nor_others(site: Site) -> None:
    job = site.job()
    slow, quick = site.stream(job.id), site.stream(job.id)
    for _ in range(20):
        site.write(job.id, 500)
    assert quick.lines(10_000) == list(range(1, 10_001))
    site.finish(job.id)  # nobody waits for the slow one
    assert [data["number"] for event, _, data in slow if event == "log"] == list(range(1, 10_001))


def test_two_hundred_watch_at_once(site: Site) -> None:
    job = site.job()
    readers = [site.stream(job.id) for _ in range(200)]

    def watch(reader: Reader) -> list[int]:
        return [data["number"] for event, _, data in reader if event == "log"]

    with ThreadPoolExecutor(200) as threads:
        watching = [threads.submit(watch, reader) for reader in readers]
        for _ in range(5):
            site.write(job.id, 20)
        site.finish(job.id)
        seen = [future.result(60) for future in watching]
    assert all(numbers == list(range(1, 101)) for numbers in seen)


def test_streams_end_with_the_server(site: Site) -> None:
    reader = site.stream(site.job().id)
    began = time.monotonic()
    site.server.stop()
    list(reader)
    assert time.monotonic() - began < 10


def test_python_and_http_follow_the_same_log(site: Site) -> None:
    job = site.job()
    site.write(job.id, 5)
    with ThreadPoolExecutor() as threads:
        python = threads.submit(lambda: [line.number for line in site.jobq.logs(job.id, follow=True)])
        http_ = threads.submit(lambda: [data["number"] for event, _, data in site.stream(job.id) if event == "log"])
        site.write(job.id, 5)
        site.finish(job.id)
        assert python.result(30) == http_.result(30) == list(range(1, 11))
