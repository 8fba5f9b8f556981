"""What happens to jobs and workflows is told as it happens, in Python and over HTTP, however many listen."""

import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import pairwise
from typing import Any, ClassVar
from uuid import UUID

import pytest

from jobq import Heartbeat, Job, JobQ, Settings, Status
from jobq.api.server import Address, Server
from jobq.errors import InvalidInput
from jobq.models import Change, Outcome
from jobq.states import Reason
from jobq.store import changes, promote
from tests.api import SECRET_KEY
from tests.proxy import Proxy
from tests.services import wait_until
from tests.stores import NO_JITTER, Store, ended, failed

PAGE = Heartbeat(endpoint="https://example.org/")


class Site:
    def __init__(self, url: str) -> None:
        self.owner = JobQ(settings=Settings(database_url=url, secret_key=SECRET_KEY))
        self.store = Store(self.owner.database)
        self.server = Server(self.owner.settings, Address(port=0), self.owner)
        self.server.start()
        self.worker = self.store.worker({"heartbeat": 10_000})

    def claim(self, *jobs: Job) -> list[Any]:
        self.store.promote()
        return self.store.claim(self.worker, [job.id for job in jobs], "heartbeat")

    def end(self, *jobs: Job, outcome: Outcome | None = None) -> None:
        self.store.record(self.worker, *(ended(claimed, outcome) for claimed in self.claim(*jobs)))

    def close(self) -> None:
        Listener.over.set()
        self.server.stop()
        self.owner.close()


@pytest.fixture(autouse=True)
def listeners(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("jobq.remote.following._PATIENCE", 5.0)
    Listener.over, Listener.threads = threading.Event(), []
    yield
    Listener.over.set()
    monkeypatch.setattr(
        "jobq.remote.following._PATIENCE", 0.0
    )  # who tries again draws random numbers, which others watch
    for thread in Listener.threads:
        thread.join(3)


@pytest.fixture
def site(request: pytest.FixtureRequest, listeners: None) -> Iterator[Site]:
    """On PostgreSQL for who asks it in Python, on SQLite for who asks over HTTP: both look by the same function."""
    url = request.getfixturevalue("postgres_url" if request.node.callspec.params["jobq"] == "python" else "sqlite_url")
    with closing(Site(url)) as site:
        yield site


@pytest.fixture
def quick(sqlite_url: str, listeners: None) -> Iterator[Site]:
    with closing(Site(sqlite_url)) as site:
        yield site


@pytest.fixture(params=[pytest.param("python", marks=pytest.mark.needs_postgres), "http"])
def jobq(site: Site, request: pytest.FixtureRequest) -> Iterator[JobQ]:
    if request.param == "python":
        yield site.owner
    else:
        with JobQ(site.server.address.url, settings=Settings()) as jobq:
            yield jobq


class Listener:
    """Somebody who reads changes on a thread; when all is over, nothing is there to be read any more."""

    over = threading.Event()
    threads: ClassVar[list[threading.Thread]] = []

    def __init__(self, changes: Iterator[Change]) -> None:
        self.heard: list[Change] = []
        self._changes, self._over = changes, Listener.over
        self.threads.append(threading.Thread(target=self._listen, daemon=True))
        self.threads[-1].start()

    def _listen(self) -> None:
        try:
            for change in self._changes:
                self.heard.append(change)
        except Exception:
            if not self._over.is_set():
                raise

    def states(self, job_id: UUID) -> list[str]:
        """What was told of a job."""
        return [f"{c.job.status}·{c.job.reason}" for c in list(self.heard) if c.job is not None and c.job.id == job_id]

    def hears(self, test: Callable[[], Any], what: str) -> None:
        wait_until(test, timeout=10, what=what)


def listening(jobq: JobQ, **asked: Any) -> Listener:
    return Listener(jobq.changes(**asked))


def test_each_state_that_a_job_rests_in_is_told(site: Site, jobq: JobQ) -> None:
    listener = listening(jobq)
    job = site.owner.enqueue(PAGE)

    def last(state: str) -> None:
        listener.hears(lambda: listener.states(job.id)[-1:] == [state], f"{state} to be told")

    last("PENDING·ready")
    site.owner.pause(job.id)
    last("PENDING·paused")
    site.owner.resume(job.id)
    last("PENDING·ready")
    site.store.promote()
    last("QUEUED·" + site.store.state(job.id).partition("·")[2])
    (claimed,) = site.store.claim(site.worker, [job.id], "heartbeat")
    last("RUNNING·" + site.store.state(job.id).partition("·")[2])
    site.store.record(site.worker, ended(claimed, failed(), retry=NO_JITTER))
    last("PENDING·retrying")
    site.store.pretend(job.id, due_at=1)
    wait_until(lambda: (site.store.do(promote.wake), site.store.state(job.id))[1] == "PENDING·ready", what="its time")
    last("PENDING·ready")
    site.end(job)
    last("COMPLETED·succeeded")
    told = listener.states(job.id)
    assert all(one != other for one, other in pairwise(told)), "no state is told twice"


def test_workflows_are_told_too(site: Site, jobq: JobQ) -> None:
    listener = listening(jobq)
    flow = site.owner.create_workflow(PAGE, name="page", interval="PT1H")
    site.owner.pause_workflow(flow.id)

    def told() -> list[str]:
        return [change.workflow.status for change in list(listener.heard) if change.workflow is not None]

    listener.hears(lambda: told()[-1:] == ["PAUSED"], "the pause")
    assert listener.heard[0].what == "workflow"


def test_what_was_not_asked_for_is_not_told(site: Site, jobq: JobQ) -> None:
    flow = site.owner.create_workflow(PAGE, name="page")
    of_flow = listening(jobq, workflow_id=flow.id)
    canceled = listening(jobq, statuses=frozenset({Status.CANCELED}), kinds=frozenset({"HEARTBEAT"}))
    other_queue = listening(jobq, queues=frozenset({"other"}))
    site.owner.acting("umbrella", "t").cancel(site.owner.acting("umbrella", "t").enqueue(PAGE).id)
    job, triggered = site.owner.enqueue(PAGE), site.owner.trigger(flow.id)
    last = site.owner.enqueue(PAGE, queue="other")
    site.owner.cancel(job.id)
    site.owner.cancel(triggered.id)
    for listener, wanted in ((of_flow, triggered), (canceled, triggered), (other_queue, last)):
        listener.hears(lambda listener=listener, wanted=wanted: listener.states(wanted.id), "what was asked for")
    wait_until(lambda: canceled.states(job.id), what="the other one")
    assert {change.job.id for change in of_flow.heard if change.job} == {triggered.id}
    assert {change.job.id for change in canceled.heard if change.job} == {job.id, triggered.id}
    assert {change.job.reason for change in canceled.heard if change.job} == {Reason.BY_USER}
    assert {change.job.id for change in other_queue.heard if change.job} == {last.id}


def test_the_end_of_every_job_is_told_however_many_end_at_once(site: Site, jobq: JobQ) -> None:
    listener = listening(jobq, statuses=frozenset({Status.COMPLETED}))
    made: set[UUID] = set()
    for _ in range(5):
        jobs = [site.owner.get(job_id) for job_id in site.owner.enqueue_many([{"spec": PAGE}] * 100)]
        site.end(*jobs)
        made |= {job.id for job in jobs}
    listener.hears(lambda: len(listener.heard) >= 500, "all ends")
    assert {change.job.id for change in listener.heard if change.job} == made
    assert len(listener.heard) == 500


def test_who_comes_back_is_told_what_was_missed(site: Site, jobq: JobQ) -> None:
    listener = listening(jobq)
    first = site.owner.enqueue(PAGE)
    listener.hears(lambda: listener.states(first.id), "the first job")
    place = listener.heard[-1].place
    missed = [site.owner.enqueue(PAGE) for _ in range(3)]
    site.end(*missed[:2])
    again = listening(jobq, after=place)
    for job in missed:
        state = site.store.state(job.id)
        again.hears(lambda job=job, state=state: again.states(job.id)[-1:] == [state], "what was missed")


def test_who_was_away_for_too_long_is_told_that_there_is_a_gap(site: Site, jobq: JobQ) -> None:
    listener = listening(jobq, after="1000000")
    listener.hears(lambda: [change.what for change in listener.heard] == ["gap"], "the gap")


@pytest.mark.parametrize("place", ["x", "-1", "1" * 18, "\uff11"])
def test_what_is_no_place_is_refused(site: Site, jobq: JobQ, place: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        next(jobq.changes(after=place))
    assert refused.value.pointer == "/after"


def test_a_reader_that_is_cut_off_comes_back_by_itself(quick: Site) -> None:
    proxy = Proxy(("127.0.0.1", quick.server.address.port))
    with proxy, JobQ(f"http://127.0.0.1:{proxy.port}", settings=Settings()) as jobq:
        listener = listening(jobq)
        made = []
        for _ in range(4):
            made.append(quick.owner.enqueue(PAGE))
            listener.hears(lambda: listener.states(made[-1].id), "a job")
            proxy.cut()
            made.append(quick.owner.enqueue(PAGE))
        wait_until(lambda: all(listener.states(job.id) for job in made), what="all jobs")


# --- many, and slow ones -----------------------------------------------------------------------------------------------


def reader(site: Site, *, window: int | None = None) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    """A plain client; ``window``: how many bytes it lets come while it does not read."""
    connection = http.client.HTTPConnection("127.0.0.1", site.server.address.port, timeout=30)
    if window is not None:
        connection.sock = socket.socket()
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        connection.sock.settimeout(30)
        connection.sock.connect(("127.0.0.1", site.server.address.port))
    connection.request("GET", "/v1/events")
    answer = connection.getresponse()
    assert answer.status == 200
    return connection, answer


def test_all_readers_share_one_look(quick: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    looks, look = 0, changes.look

    def counted(*arguments: Any) -> Any:
        nonlocal looks
        looks += 1
        return look(*arguments)

    monkeypatch.setattr(changes, "look", counted)
    readers = [reader(quick) for _ in range(50)]
    job = quick.owner.enqueue(PAGE)

    def heard(answer: http.client.HTTPResponse) -> bool:
        return any(str(job.id).encode() in line for line in answer)

    for _, answer in readers:
        answer.readline()  # "open": it has begun
    began = looks
    with ThreadPoolExecutor(50) as threads:
        assert all(threads.map(heard, [answer for _, answer in readers]))
    assert looks - began <= 50, "two a second, however many read"
    for connection, answer in readers:
        answer.close()
        connection.close()


def test_a_reader_that_is_too_slow_is_told_and_slows_nobody(quick: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobq.api.events._RING", 50)
    with closing(Site(str(quick.owner.settings.database_url))) as site:
        slow, fast = reader(site, window=4096), listening(site.owner)
        answer = slow[1]
        while answer.readline() != b"\n":
            pass
        for part in range(1, 4):  # far more than the ring and the buffers on the way hold
            site.owner.enqueue_many([{"spec": PAGE, "name": "x" * 200}] * 1000)
            told = lambda part=part: len({c.job.id for c in list(fast.heard) if c.job}) >= 1000 * part  # noqa: E731
            fast.hears(told, "the other one to be told")
        lines = iter(answer)
        assert any(line == b"event: dropped\n" for line in lines)
        assert list(lines), "then the stream ends"
        slow[0].close()


def test_streams_of_changes_end_with_the_server_and_say_that_they_live(
    quick: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobq.api.events.KEEP_ALIVE", 0.1)
    connection, answer = reader(quick)
    said = [answer.readline() for _ in range(10)]
    assert said.count(b": keep-alive\n") >= 2
    quick.server.stop()
    assert answer.read() is not None
    connection.close()


def test_an_event_is_what_the_job_itself_is_over_http(quick: Site) -> None:
    connection, answer = reader(quick)
    job = quick.owner.enqueue(PAGE, name="front page ✓")
    lines = iter(answer)
    assert next(line for line in lines if line == b"event: job\n")
    next(lines)
    told = json.loads(next(lines).decode().removeprefix("data: "))
    with closing(http.client.HTTPConnection("127.0.0.1", quick.server.address.port)) as other:
        other.request("GET", f"/v1/jobs/{job.id}")
        assert json.loads(other.getresponse().read()) == told
    answer.close()
    connection.close()
