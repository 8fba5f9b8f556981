"""What holds for every broker: the suite that each of them runs."""

import pickle
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from uuid import UUID

import kombu
import pytest

from jobq.broker import TASK, VERSION, CeleryBroker, Hint, message_queue
from jobq.errors import Unavailable
from jobq.settings import Settings
from jobq.store.database import Database
from jobq.store.jobs import new_id
from scheduler.publish import Publisher
from scheduler.service import Scheduler
from tests.plugins import executed
from tests.services import Server, wait_until
from tests.stores import QUEUE, Store, ahead
from workers.app import EmbeddedWorker


class Stack:
    """A database, a broker, and what a test starts between the two."""

    def __init__(self, database_url: str, broker_url: str) -> None:
        self.settings = Settings(
            database_url=database_url, broker_url=broker_url, plugins=["tests.plugins:NoopExecutor"],
            drain_timeout=1.0, renew_every=1.0,
        )  # fmt: skip
        self._ends = ExitStack()
        self.database = Database(database_url)
        self._ends.callback(self.database.close)
        self.store = Store(self.database)
        self.broker = CeleryBroker(self.settings)
        self._ends.callback(self.broker.close)

    def close(self) -> None:
        self._ends.close()

    def worker(self, slots: int = 8) -> EmbeddedWorker:
        """A worker that listens."""
        worker = EmbeddedWorker(self.settings, {QUEUE: slots})
        self._ends.callback(worker.stop)
        worker.start()
        wait_until(lambda: worker._app.worker and worker._app.worker.lease.identity, what="the worker to register")
        return worker

    def scheduler(self) -> Scheduler:
        scheduler = Scheduler(self.settings)
        self._ends.callback(scheduler.stop)
        scheduler.start()
        return scheduler

    def wait(self, ids: list[UUID], timeout: float = 20) -> None:
        """Until these jobs are completed."""
        wait_until(
            lambda: self.store.count("jobq_jobs", "status = 'COMPLETED'") >= len(ids),
            timeout=timeout,
            what=f"{len(ids)} jobs to be completed",
        )
        assert set(self.store.states(ids)) == {"COMPLETED·succeeded"}

    @contextmanager
    def connection(self) -> Iterator[Any]:
        """A producer of any message, as whoever can reach the broker may be one."""
        url = self.settings.broker_url
        with kombu.Connection(url if url != "memory://" else "memory://localhost/") as connection:
            yield connection.Producer()


class BrokerSuite:
    """A broker's tests begin with these; a subclass has the fixture ``stack``."""

    def test_a_job_runs_from_end_to_end(self, stack: Stack) -> None:
        stack.worker()
        stack.scheduler()
        job_id = stack.store.enqueue_one()
        stack.wait([job_id])
        assert stack.store.attempts(job_id)[0].result == {"did": "nothing"}

    def test_many_jobs_are_executed_once_each_and_no_message_is_left(self, stack: Stack) -> None:
        stack.worker()
        stack.scheduler()
        ids = stack.store.enqueue(150)
        stack.wait(ids)
        assert {executed[job_id] for job_id in ids} == {1}
        assert stack.store.count("jobq_jobs", "attempt = 1") == 150
        wait_until(lambda: stack.broker.depth(QUEUE) == 0, what="the last hints to be taken")

    def test_a_hint_starts_a_job_at_once(self, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("workers.service._QUIET", 60.0)
        worker = stack.worker()._app.worker
        wait_until(lambda: worker._looks[QUEUE][0] > 0, what="its first look: without a hint, the next is in a minute")
        (job_id,) = stack.store.queued()
        stack.broker.publish([Hint(QUEUE, [job_id])])
        wait_until(lambda: stack.store.job(job_id).finished)

    def test_a_hint_that_comes_five_times_and_out_of_order_executes_nothing_twice(self, stack: Stack) -> None:
        stack.worker(50)
        ids = stack.store.queued(50)
        hints = [Hint(QUEUE, random.sample(ids, 10)) for _ in range(25)]
        hints += [Hint(QUEUE, ids[::-1])] * 5
        random.shuffle(hints)
        stack.broker.publish(hints)
        stack.wait(ids)
        wait_until(lambda: stack.broker.depth(QUEUE) == 0, what="every hint to be taken")
        assert {executed[job_id] for job_id in ids} == {1}
        assert stack.store.count("jobq_jobs", "attempt = 1") == 50

    def test_hints_wait_in_the_queue_until_somebody_takes_them(self, stack: Stack) -> None:
        assert stack.broker.depth("nobody") == 0
        with stack.connection() as producer:  # as a worker that was here once declared it
            message_queue(stack.settings, "nobody")(producer.channel).declare()
        stack.broker.publish([Hint("nobody", [new_id()]) for _ in range(3)])
        wait_until(lambda: stack.broker.depth("nobody") == 3)

    @pytest.mark.parametrize(
        "args",
        [[], [VERSION + 1, QUEUE, [new_id().hex]], [VERSION, QUEUE, ["nonsense"]], [VERSION, QUEUE, []], ["a", {}, 5]],
        ids=["nothing", "another version", "no ids", "empty", "nonsense"],
    )
    def test_a_message_that_is_no_hint_is_dropped_and_counted(self, stack: Stack, args: list[Any]) -> None:
        worker = stack.worker()
        stack.broker._app.send_task(TASK, args=args, queue=message_queue(stack.settings, QUEUE), ignore_result=True)
        wait_until(lambda: worker._app.dropped == 1)
        self.goes_on(stack)

    def test_hints_at_jobs_that_nobody_knows_start_nothing(self, stack: Stack) -> None:
        worker = stack.worker()
        waiting = stack.store.enqueue_one(scheduled_at=ahead(hours=1))
        stack.broker.publish([Hint(QUEUE, [new_id(), waiting]), Hint("another", [waiting])])
        self.goes_on(stack)
        assert stack.store.job(waiting).attempt == 0
        assert worker._app.worker is not None
        running = worker._app.worker.runner.running
        wait_until(lambda: not running, what="the job that went on to be let go of: its record comes first")

    def test_foreign_messages_are_dropped_and_counted_and_never_executed(
        self, stack: Stack, caplog: pytest.LogCaptureFixture
    ) -> None:
        worker = stack.worker()
        bomb = pickle.dumps(([VERSION, QUEUE, []], {}, {}))
        headers = {"lang": "py", "task": TASK, "id": str(new_id()), "root_id": None, "parent_id": None, "group": None}
        with stack.connection() as producer:
            route: dict[str, Any] = {"routing_key": f"jobq.{QUEUE}", "exchange": ""}
            # of a task that is not ours
            producer.publish([[], {}, {}], headers={**headers, "task": "os.system"}, serializer="json", **route)
            # in a form that could carry code
            producer.publish(
                bomb, headers=headers, content_type="application/x-python-serialize", content_encoding="binary", **route
            )
            # of no form at all
            producer.publish("hello", serializer="json", **route)
        wait_until(lambda: worker._app.dropped == 3)
        self.goes_on(stack)

    def goes_on(self, stack: Stack) -> None:
        """A hint still starts a job at once."""
        (job_id,) = stack.store.queued()
        stack.broker.publish([Hint(QUEUE, [job_id])])
        wait_until(lambda: stack.store.job(job_id).finished)
        assert stack.store.state(job_id) == "COMPLETED·succeeded"


def check_life_without_a_broker(stack: Stack, server: Server, patience: Callable[[], float]) -> None:
    """Jobs go on from the database while it is away, and by hints when it is back."""
    stack.worker()
    stack.scheduler()
    first = stack.store.enqueue_one()
    stack.wait([first])
    server.kill()
    # enqueue never asks the broker, and execution goes on within seconds
    ids = stack.store.enqueue(30)
    stack.wait([first, *ids], timeout=20)
    # who publishes gives up within seconds
    publisher = Publisher(stack.broker, 100)
    publisher.offer(QUEUE, ids)
    began = time.monotonic()
    publisher.tick()
    assert time.monotonic() - began < 10
    assert publisher.away
    with pytest.raises(Unavailable):
        stack.broker.depth(QUEUE)
    # and its return is noticed
    server.start()
    wait_until(lambda: _delivered(stack), timeout=patience(), interval=0.2, what="hints to be delivered again")


def _delivered(stack: Stack) -> bool:
    """Whether a hint at a job that nobody looks for reaches a worker: it empties the queue."""
    try:
        stack.broker.publish([Hint(QUEUE, [new_id()])])
        wait_until(lambda: stack.broker.depth(QUEUE) == 0, timeout=2)
    except (Unavailable, TimeoutError):
        return False
    job_id = stack.store.enqueue_one()
    wait_until(lambda: stack.store.job(job_id).finished, timeout=20)
    return True
