"""Hints over RabbitMQ, in quorum queues."""

from collections.abc import Iterator

import kombu
import pytest

from jobq.broker import Hint, message_queue
from jobq.store.jobs import new_id
from tests import services
from tests.integration.brokers import BrokerSuite, Stack, check_life_without_a_broker
from tests.services import wait_until
from tests.stores import QUEUE


@pytest.fixture
def stack(sqlite_url: str, rabbitmq_url: str) -> Iterator[Stack]:
    stack = Stack(sqlite_url, rabbitmq_url)
    yield stack
    stack.close()


class TestRabbitMQ(BrokerSuite):
    """On SQLite."""


def test_queues_survive_the_node_because_they_are_quorum_queues(
    stack: Stack, rabbitmq_server: services.RabbitMQ
) -> None:
    stack.worker()
    vhost = stack.settings.broker_url.rpartition("/")[2]
    listed = rabbitmq_server.control("list_queues", "-p", vhost, "name", "type", "durable")
    assert f"jobq.{QUEUE}\tquorum\ttrue" in listed.splitlines()


def test_a_publisher_that_comes_before_every_worker_declares_the_same_queue(stack: Stack) -> None:
    stack.broker.publish([Hint(QUEUE, [new_id()])])
    wait_until(lambda: stack.broker.depth(QUEUE) == 1)
    stack.worker()  # it would be refused if the two disagreed
    wait_until(lambda: stack.broker.depth(QUEUE) == 0)


@pytest.mark.parametrize("how", ["purge", "delete"])
def test_a_queue_that_was_emptied_or_deleted_midway_loses_no_job(stack: Stack, how: str) -> None:
    stack.worker(4)
    stack.scheduler()
    ids = stack.store.enqueue(60, spec={"seconds": 0.05})
    wait_until(lambda: stack.store.count("jobq_jobs", "status = 'COMPLETED'") > 10)
    with kombu.Connection(stack.settings.broker_url) as connection:
        queue = message_queue(stack.settings, QUEUE)(connection.default_channel)
        getattr(queue, how)()
    stack.wait(ids, timeout=40)


def test_jobs_go_on_while_rabbitmq_is_away_and_by_hints_when_it_is_back(
    stack: Stack, rabbitmq_server: services.RabbitMQ
) -> None:
    check_life_without_a_broker(stack, rabbitmq_server, lambda: 90)
