"""Hints: what goes over the wire, what is taken for one on the other side, and what a broker that fails does."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest
import redis
from fakeredis import TcpFakeServer

from jobq.broker import (
    MAX_IDS,
    TASK,
    VERSION,
    CeleryBroker,
    Hint,
    make_celery,
    message_queue,
    parse_hint,
    require_shared,
)
from jobq.errors import Misconfigured, Unavailable
from jobq.settings import Settings
from tests.services import free_port

JOB = UUID("0199c0de-0000-7000-8000-000000000001")
HEX = JOB.hex


# --- reading ---------------------------------------------------------------------------------------------------------


def test_a_hint_is_a_version_a_queue_and_ids() -> None:
    assert parse_hint([1, "noop", [HEX]]) == Hint("noop", [JOB])
    assert parse_hint((1, "noop", [HEX, HEX])) == Hint("noop", [JOB, JOB])


@pytest.mark.parametrize(
    "args",
    [
        None, 0, "", "text", b"\x80\x04N.", {}, [], (),
        [1], [1, "noop"], [1, "noop", [HEX], "more"], [1, "noop", HEX], [1, "noop", {HEX: 1}], [1, "noop", None],
        [0, "noop", [HEX]], [2, "noop", [HEX]], ["1", "noop", [HEX]], [1.0, "noop", [HEX]], [None, "noop", [HEX]],
        [1, None, [HEX]], [1, 5, [HEX]], [1, ["noop"], [HEX]],
        [1, "noop", []], [1, "noop", [""]], [1, "noop", ["xyz"]], [1, "noop", [HEX[:-1]]], [1, "noop", [HEX, None]],
        [1, "noop", [5]], [1, "noop", [[HEX]]], [1, "noop", [HEX] * (MAX_IDS + 1)],
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_no_hint_of_this_version_is_none(args: Any) -> None:
    assert parse_hint(args) is None


def test_a_hint_may_name_a_thousand_jobs() -> None:
    hint = parse_hint([VERSION, "noop", [uuid4().hex for _ in range(MAX_IDS)]])
    assert hint is not None
    assert len(hint.ids) == MAX_IDS


# --- settings of Celery ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["memory://", "redis://h/0", "rediss://h/0", "amqp://h//", "amqps://h//"])
def test_celery_takes_json_only_keeps_no_results_and_obeys_no_remote_control(url: str) -> None:
    conf = make_celery(Settings(broker_url=url)).conf
    assert (conf.accept_content, conf.task_serializer, conf.task_ignore_result) == (["json"], "json", True)
    assert (conf.result_backend, conf.worker_enable_remote_control) == (None, False)
    assert (conf.task_time_limit, conf.worker_prefetch_multiplier) == (None, 1)


def test_messages_are_acknowledged_early_on_redis_and_late_on_rabbitmq() -> None:
    redis_, rabbitmq = (make_celery(Settings(broker_url=url)).conf for url in ("redis://h/0", "amqp://h//"))
    assert (redis_.task_acks_late, redis_.worker_disable_prefetch) == (False, True)
    assert (rabbitmq.task_acks_late, rabbitmq.broker_transport_options) == (
        True,
        {"confirm_publish": True, "read_timeout": 15, "write_timeout": 15},
    )


def test_a_half_open_redis_is_noticed() -> None:
    options = make_celery(Settings(broker_url="redis://h/0")).conf.broker_transport_options
    assert (options["socket_timeout"], options["socket_connect_timeout"], options["socket_keepalive"]) == (10, 5, True)


def test_queues_of_rabbitmq_are_quorum_queues_behind_the_default_exchange() -> None:
    rabbitmq = message_queue(Settings(broker_url="amqp://h//"), "noop")
    assert (rabbitmq.name, rabbitmq.routing_key, rabbitmq.exchange.name) == ("jobq.noop", "jobq.noop", "")
    assert rabbitmq.queue_arguments == {"x-queue-type": "quorum"}
    assert message_queue(Settings(broker_url="redis://h/0"), "noop").queue_arguments is None


def test_a_separate_process_needs_a_broker_that_others_reach() -> None:
    for url in ("memory://", "memory://localhost/"):
        with pytest.raises(Misconfigured) as refused:
            require_shared(Settings(broker_url=url), "worker")
        assert refused.value.code == "broker_missing"
        assert refused.value.hint is not None
        assert "JOBQ_BROKER_URL" in refused.value.hint
    require_shared(Settings(broker_url="redis://h/0"), "worker")


# --- writing ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def url() -> Iterator[str]:
    """A Redis that is made up, behind a real socket."""
    server = TcpFakeServer(("127.0.0.1", free_port()))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield f"redis://127.0.0.1:{server.server_address[1]}/0"
    server.shutdown()
    server.server_close()
    thread.join(5)


@pytest.fixture
def broker(url: str) -> Iterator[CeleryBroker]:
    broker = CeleryBroker(Settings(broker_url=url))
    yield broker
    broker.close()


@pytest.fixture
def client(url: str) -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(url)
    yield client
    client.close()


def messages(client: redis.Redis, queue: str) -> list[list[Any]]:
    """The arguments of the tasks in a queue, oldest first."""
    bodies = [json.loads(item)["body"] for item in client.lrange(f"jobq.{queue}", 0, -1)[::-1]]
    return [json.loads(base64.b64decode(body))[0] for body in bodies]


def test_a_hint_goes_out_as_one_message_that_is_read_back_as_it_was(broker: CeleryBroker, client: redis.Redis) -> None:
    ids = [uuid4() for _ in range(3)]
    broker.publish([Hint("noop", ids)])
    (args,) = messages(client, "noop")
    assert args == [VERSION, "noop", [job_id.hex for job_id in ids]]
    assert parse_hint(args) == Hint("noop", ids)


def test_a_message_is_plain_json_for_the_one_task_and_carries_nothing_else(
    broker: CeleryBroker, client: redis.Redis
) -> None:
    broker.publish([Hint("noop", [JOB])])
    message = json.loads(client.lindex("jobq.noop", 0))
    assert (message["content-type"], message["headers"]["task"]) == ("application/json", TASK)
    assert message["headers"]["eta"] is message["headers"]["expires"] is None
    assert json.loads(base64.b64decode(message["body"]))[1] == {}


def test_a_message_is_field_by_field_what_celery_itself_sends(broker: CeleryBroker, client: redis.Redis) -> None:
    broker.publish([Hint("noop", [JOB])])
    broker._send([Hint("noop", [JOB])])
    theirs, ours = (json.loads(item) for item in client.lrange("jobq.noop", 0, -1))
    assert theirs["properties"]["correlation_id"] == theirs["headers"]["root_id"] == theirs["headers"]["id"]
    assert ours["properties"]["correlation_id"] == ours["headers"]["root_id"] == ours["headers"]["id"]
    for message in (theirs, ours):  # what differs from message to message, what is for people, and who is to reply
        for field in ("id", "root_id", "argsrepr"):
            assert message["headers"].pop(field)
        for field in ("correlation_id", "delivery_tag", "reply_to"):
            assert isinstance(message["properties"].pop(field), str)
    assert ours == theirs


def test_no_two_messages_have_the_same_id_or_delivery_tag(broker: CeleryBroker, client: redis.Redis) -> None:
    broker.publish([Hint("noop", [JOB])] * 20)
    sent = [json.loads(item) for item in client.lrange("jobq.noop", 0, -1)]
    assert len({message["headers"]["id"] for message in sent}) == 20
    assert len({message["properties"]["delivery_tag"] for message in sent}) == 20


def test_a_prefix_of_all_keys_is_kept_to(broker: CeleryBroker, client: redis.Redis) -> None:
    broker._app.conf.broker_transport_options["global_keyprefix"] = "ours:"
    broker.publish([Hint("noop", [JOB])])
    broker._send([Hint("noop", [JOB])])
    assert client.llen("ours:jobq.noop") == 2
    assert not client.exists("jobq.noop")


def test_each_hint_goes_to_the_queue_of_its_jobs(broker: CeleryBroker, client: redis.Redis) -> None:
    broker.publish([Hint("a", [JOB]), Hint("b", [JOB]), Hint("a", [JOB])])
    assert (broker.depth("a"), broker.depth("b"), broker.depth("c")) == (2, 1, 0)
    assert len(messages(client, "a")) == 2


def test_more_ids_than_a_message_may_hold_go_out_in_several(broker: CeleryBroker, client: redis.Redis) -> None:
    ids = [uuid4() for _ in range(2 * MAX_IDS + 1)]
    broker.publish([Hint("noop", ids)])
    parts = [args[2] for args in messages(client, "noop")]
    assert [len(part) for part in parts] == [MAX_IDS, MAX_IDS, 1]
    assert [job_id for part in parts for job_id in part] == [job_id.hex for job_id in ids]


def test_nothing_to_say_sends_nothing(broker: CeleryBroker) -> None:
    broker.publish([])
    broker.publish([Hint("noop", [])])
    assert broker.depth("noop") == 0


def test_after_the_broker_lost_everything_hints_are_stored_again(broker: CeleryBroker, client: redis.Redis) -> None:
    broker.publish([Hint("noop", [JOB])])
    client.flushall()
    assert broker.depth("noop") == 0
    broker.publish([Hint("noop", [JOB])])
    assert broker.depth("noop") == 1


def test_a_broker_that_is_away_is_unavailable_and_its_password_stays_secret() -> None:
    broker = CeleryBroker(Settings(broker_url=f"redis://:hunter2@127.0.0.1:{free_port()}/0"))
    try:
        for ask in (lambda: broker.publish([Hint("noop", [JOB])]), lambda: broker.depth("noop")):
            with pytest.raises(Unavailable) as away:
                ask()
            assert away.value.code == "broker_unavailable"
            assert "hunter2" not in str(away.value)
            assert away.value.hint
    finally:
        broker.close()


def test_the_embedded_broker_joins_two_ends_within_the_process() -> None:
    settings, queue = Settings(broker_url="memory://"), f"q{uuid4().hex[:8]}"
    one, other = CeleryBroker(settings), CeleryBroker(settings)
    try:
        assert other.depth(queue) == 0
        one.publish([Hint(queue, [JOB]), Hint(queue, [JOB])])
        assert other.depth(queue) == 2
    finally:
        one.close()
        other.close()
