"""Hints over Redis: what may happen to them costs latency, never a job."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from celery import Celery
from celery.contrib.testing.worker import start_worker

from jobq.broker import TASK, VERSION, Hint
from jobq.errors import Unavailable
from jobq.store.jobs import new_id
from scheduler.publish import Publisher
from tests import services
from tests.integration.brokers import BrokerSuite, Stack, check_life_without_a_broker
from tests.services import wait_until
from tests.stores import QUEUE


@pytest.fixture
def stack(sqlite_url: str, redis_url: str) -> Iterator[Stack]:
    stack = Stack(sqlite_url, redis_url)
    yield stack
    stack.close()


class TestRedis(BrokerSuite):
    """On SQLite."""


class TestRedisAndPostgreSQL(BrokerSuite):
    """The usual pair."""

    @pytest.fixture
    def stack(self, postgres_url: str, redis_url: str) -> Iterator[Stack]:
        stack = Stack(postgres_url, redis_url)
        yield stack
        stack.close()


def test_jobs_go_on_while_redis_is_away_and_by_hints_when_it_is_back(
    stack: Stack, redis_server: services.Redis
) -> None:
    check_life_without_a_broker(stack, redis_server, lambda: 60)


def test_a_redis_that_lost_everything_midway_delays_jobs_by_seconds(stack: Stack, redis_server: services.Redis) -> None:
    stack.worker(4)
    stack.scheduler()
    ids = stack.store.enqueue(60, spec={"seconds": 0.05})
    wait_until(lambda: stack.store.count("jobq_jobs", "status = 'COMPLETED'") > 10)
    redis_server.flush()
    began = time.monotonic()
    stack.wait(ids)
    later = stack.store.enqueue_one()
    wait_until(lambda: stack.store.job(later).finished, timeout=10)
    assert time.monotonic() - began < 20


def test_a_redis_that_does_not_answer_is_given_up_within_seconds(stack: Stack, redis_server: services.Redis) -> None:
    stack.broker.publish([Hint(QUEUE, [new_id()])])
    publisher = Publisher(stack.broker, 100)
    publisher.offer(QUEUE, [new_id()])
    redis_server.freeze()
    try:
        began = time.monotonic()
        publisher.tick()
        assert publisher.away
        assert time.monotonic() - began < 10
        # what is offered meanwhile is dropped and not waited for
        publisher.offer(QUEUE, [new_id()])
        began = time.monotonic()
        publisher.tick()
        assert time.monotonic() - began < 2  # to give up takes three
    finally:
        redis_server.thaw()
    wait_until(lambda: not publisher.away)
    before = stack.broker.depth(QUEUE)
    publisher.offer(QUEUE, [new_id()])
    publisher.tick()
    assert stack.broker.depth(QUEUE) == before + 1


def test_a_redis_that_is_full_is_away_and_says_why(stack: Stack, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.config_set("maxmemory", 1)
    with pytest.raises(Unavailable, match="maxmemory"):
        stack.broker.publish([Hint(QUEUE, [new_id()])])


NO_MESSAGES = [
    b"\x80garbage", b"", b"5", b"[1]", b"{}", b"[" * 100_000, b"9" * 5_000, b'{"properties": {}}',
    b'{"properties": {"delivery_tag": "a"}, "body": 7}',
]  # fmt: skip


def test_items_that_are_no_messages_are_dropped_and_counted_and_the_worker_listens_on(
    stack: Stack, redis_url: str
) -> None:
    worker = stack.worker()
    with redis.Redis.from_url(redis_url) as client:
        for count, item in enumerate(NO_MESSAGES, 1):
            client.lpush(f"jobq.{QUEUE}", item)
            wait_until(lambda: worker._app.dropped == count, what=f"{item[:50]!r} to be counted")  # noqa: B023
    (job_id,) = stack.store.queued()
    stack.broker.publish([Hint(QUEUE, [job_id])])
    wait_until(lambda: stack.store.job(job_id).finished)
    assert worker._thread.is_alive()
    assert stack.broker.depth(QUEUE) == 0


def test_a_queue_whose_key_is_no_list_is_as_if_redis_were_away(stack: Stack, redis_url: str) -> None:
    worker = stack.worker()
    stack.scheduler()
    with redis.Redis.from_url(redis_url) as client:
        client.set(f"jobq.{QUEUE}", "text")
        stack.wait(stack.store.enqueue(10))
        client.delete(f"jobq.{QUEUE}")
    stack.broker.publish([Hint(QUEUE, [new_id()])])
    wait_until(lambda: stack.broker.depth(QUEUE) == 0, timeout=20, what="the worker to listen again")
    assert worker._thread.is_alive()


def test_a_celery_worker_that_knows_nothing_of_jobq_takes_both_forms(stack: Stack, redis_url: str) -> None:
    stock, taken = Celery(broker=redis_url, set_as_current=False), list[Any]()
    stock.conf.update(task_ignore_result=True, task_default_queue=f"jobq.{QUEUE}", worker_hijack_root_logger=False)

    @stock.task(name=TASK, shared=False)
    def run(*args: Any) -> None:
        taken.append(list(args))

    hints = [Hint(QUEUE, [new_id()]) for _ in range(4)]
    stack.broker.publish(hints[:2])
    stack.broker._send(hints[2:])
    with start_worker(stock, pool="solo", perform_ping_check=False):
        wait_until(lambda: len(taken) == 4)
    assert sorted(taken) == sorted([VERSION, QUEUE, [hint.ids[0].hex]] for hint in hints)


def test_hints_go_over_one_connection_which_is_replaced_when_redis_closed_it(stack: Stack, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        for _ in range(5):
            stack.broker.publish([Hint(QUEUE, [new_id()])])
        connections = {one["id"] for one in client.client_list()}
        stack.broker.publish([Hint(QUEUE, [new_id()])])
        assert {one["id"] for one in client.client_list()} == connections
        client.client_kill_filter(_type="normal", skipme=True)
        stack.broker.publish([Hint(QUEUE, [new_id()])])
        assert client.llen(f"jobq.{QUEUE}") == 7
