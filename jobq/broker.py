"""Hints over Celery: the one door to Celery, kombu and Redis for those who publish.

A message says "look at these job ids", nothing more. Losing, repeating, reordering or forging one costs latency at
the most, so nothing here waits for confirmation longer than a moment, and no setting of Celery carries a promise.
"""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID, uuid4

from celery import Celery
from celery.utils.nodenames import anon_nodename
from kombu import Exchange, Queue
from kombu.exceptions import KombuError, OperationalError

from jobq.errors import Misconfigured, Unavailable
from jobq.settings import EMBEDDED, Settings, mask_url

log = logging.getLogger(__name__)

TASK = "jobq.run"
VERSION = 1
"""Of the message's form: ``args = [VERSION, queue, [job id as 32 hex digits, …]]``."""
MAX_IDS = 1000
_PREFIX = "jobq."
_REDIS = {"redis", "rediss"}
# Publishing to a named exchange whose binding is gone (FLUSHALL) returns normally and stores nothing; the default
# exchange routes by the queue's name and needs no binding.
_DEFAULT_EXCHANGE = Exchange("")
# Who publishes has better things to do than to wait: what is not sent now is sent again. By default kombu tries for
# 7 s to connect to a port that nobody listens on.
_IMPATIENT = {
    "max_retries": 1, "interval_start": 0, "interval_step": 0.2, "interval_max": 0.2, "socket_timeout": 3,
    "socket_connect_timeout": 3,
}  # fmt: skip
_CONNECTION_ERRORS = (OperationalError, KombuError, ConnectionError, TimeoutError, OSError)


@dataclass(frozen=True, slots=True)
class Hint:
    """Jobs of one queue that can be claimed."""

    queue: str
    ids: Sequence[UUID]


class Broker(Protocol):
    """Where hints go. Both methods raise Unavailable within seconds when the broker is away."""

    def publish(self, hints: Iterable[Hint]) -> None:
        """Send each hint as one message."""

    def depth(self, queue: str) -> int:
        """How many messages lie in the queue."""

    def close(self) -> None:
        """Close the connections."""


def make_celery(settings: Settings) -> Celery:
    """The Celery app of publishers and workers alike."""
    app = Celery("jobq", set_as_current=False)
    scheme = settings.broker_url.partition("://")[0]
    rabbitmq = scheme in {"amqp", "amqps", "pyamqp"}
    app.conf.update(
        broker_url=settings.broker_url if settings.broker_url != EMBEDDED else f"{EMBEDDED}localhost/",
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # As where a queue is deleted just after it was declared: Celery's worker would exit, with all its jobs.
        broker_channel_error_retry=True,
        broker_connection_timeout=5,
        broker_heartbeat=10,  # RabbitMQ: a connection that says nothing is given up after 20 s, else after minutes
        broker_transport_options=_transport_options(scheme),
        accept_content=["json"],
        task_serializer="json",
        task_ignore_result=True,
        task_create_missing_queues=True,
        task_default_exchange="",
        task_acks_late=rabbitmq,
        task_reject_on_worker_lost=False,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=scheme in _REDIS,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_send_task_events=False,
        worker_pool="threads",
    )
    return app


def _transport_options(scheme: str) -> dict[str, Any]:
    if scheme == "memory":
        return {"polling_interval": 0.01}
    if scheme in _REDIS:
        return {
            # A message that is not acknowledged is sent again from the database: kombu need not keep copies in Redis. It
            # would also end the worker, with all its jobs, when a Redis that is full refuses the copy.
            "ack_emulation": False, "socket_timeout": 10, "socket_connect_timeout": 5, "socket_keepalive": True,
            "health_check_interval": 25,
        }  # fmt: skip
    if scheme in {"amqp", "amqps", "pyamqp"}:
        # Heartbeats are looked at by a loop that has begun: an answer that does not come before that ends the wait, too.
        return {"confirm_publish": True, "read_timeout": 15, "write_timeout": 15}
    return {}


def message_queue(settings: Settings, queue: str) -> Queue:
    """The queue of messages for a queue of jobs, as workers declare it."""
    rabbitmq = settings.broker_url.startswith(("amqp", "pyamqp"))
    arguments = {"x-queue-type": "quorum"} if rabbitmq else None
    name = _PREFIX + queue
    return Queue(name, exchange=_DEFAULT_EXCHANGE, routing_key=name, queue_arguments=arguments)


class CeleryBroker:
    """The broker behind Celery: Redis, RabbitMQ, or memory within one process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._app = make_celery(settings)
        self._app.conf.broker_transport_options |= _IMPATIENT
        self._where = mask_url(settings.broker_url)
        self._lists = RedisLists(self._app) if settings.broker_url.partition("://")[0] in _REDIS else None

    def publish(self, hints: Iterable[Hint]) -> None:
        """See ``Broker``. Hints of more than ``MAX_IDS`` ids go out in several messages."""
        messages = [message for hint in hints for message in _messages(hint)]
        try:
            if self._lists is not None:
                self._lists.push(messages)
            else:
                self._send(messages)
        except _CONNECTION_ERRORS as error:
            raise self._away(error) from error

    def _send(self, messages: Iterable[Hint]) -> None:
        """Celery's own way, for every broker that it knows."""
        with self._app.producer_pool.acquire(block=True, timeout=5) as producer:
            for message in messages:
                target: Any = message_queue(self._settings, message.queue)
                self._app.send_task(
                    TASK, args=_arguments(message), queue=target, producer=producer, retry=False, ignore_result=True
                )

    def depth(self, queue: str) -> int:
        """See ``Broker``. A queue that the broker does not know is empty."""
        try:
            with self._app.connection_for_read() as connection:
                connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0, timeout=5)
                channel: Any = connection.channel()
                try:
                    return int(channel.queue_declare(queue=_PREFIX + queue, passive=True).message_count)
                except connection.channel_errors:
                    return 0
        except _CONNECTION_ERRORS as error:
            raise self._away(error) from error

    def eviction(self) -> str | None:
        """The policy by which a Redis that is full evicts keys; None for other brokers, or where it is not told."""
        from redis.exceptions import RedisError

        try:
            with self._app.connection_for_read() as connection:
                redis = getattr(connection.default_channel, "client", None)
                return None if redis is None else str(redis.config_get("maxmemory-policy")["maxmemory-policy"])
        except (*_CONNECTION_ERRORS, RedisError, KeyError):
            return None

    def close(self) -> None:
        """See ``Broker``."""
        if self._lists is not None:
            self._lists.close()
        self._app.close()

    def _away(self, error: BaseException) -> Unavailable:
        return Unavailable(
            f"The broker {self._where} cannot be used: {error}.",
            code="broker_unavailable",
            hint="Jobs go on from the database meanwhile. Check JOBQ_BROKER_URL and the server.",
        )


class RedisLists:
    """Where Celery on Redis looks for messages: one list a queue. All that is pushed at once is one round trip.

    ``send_task`` costs more than twice as much, mostly for a new client of Redis with each message. The client here is
    kombu's too (address, TLS, credentials, timeouts, key prefix) and is kept until it fails. Messages have no priority
    and no exchange, so that the list bears the queue's name and no binding is needed.
    """

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._origin = anon_nodename()
        self._connection: Any = None
        self._client: Any = None

    def push(self, messages: Iterable[Hint]) -> None:
        """Append each as one Celery message. Used by one thread at a time; raises OperationalError."""
        from redis.exceptions import RedisError

        try:
            pipeline = (self._client or self._connect()).pipeline(transaction=False)
            for message in messages:
                pipeline.lpush(_PREFIX + message.queue, envelope(message, self._origin))
            pipeline.execute()
        except RedisError as error:
            self.close()
            raise OperationalError(str(error)) from error

    def _connect(self) -> Any:
        self.close()
        self._connection = self._app.connection_for_write()
        with self._connection.default_channel.conn_or_acquire() as client:
            self._client = client
        return client

    def close(self) -> None:
        """Close the connection; the next push opens another."""
        connection, self._connection, self._client = self._connection, None, None
        if connection is not None:
            connection.release()


def envelope(message: Hint, origin: str) -> str:
    """What ``send_task`` of Celery 5 stores in Redis (its message protocol 2): a test compares the two.

    Only what is for people to read is shorter here (``argsrepr``), and nobody is asked to reply.
    """
    task_id = str(uuid4())
    body = [_arguments(message), {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
    headers: dict[str, Any] = {
        "lang": "py", "task": TASK, "id": task_id, "root_id": task_id, "parent_id": None, "group": None,
        "group_index": None, "shadow": None, "eta": None, "expires": None, "retries": 0, "timelimit": [None, None],
        "argsrepr": f"{len(message.ids)} of {message.queue}", "kwargsrepr": "{}", "origin": origin,
        "ignore_result": True, "replaced_task_nesting": 0, "stamped_headers": None, "stamps": {},
    }  # fmt: skip
    properties = {
        "correlation_id": task_id, "delivery_tag": task_id, "reply_to": "", "delivery_mode": 2, "priority": 0,
        "delivery_info": {"exchange": "", "routing_key": _PREFIX + message.queue}, "body_encoding": "base64",
    }  # fmt: skip
    return json.dumps({
        "body": base64.b64encode(json.dumps(body).encode()).decode(), "content-type": "application/json",
        "content-encoding": "utf-8", "headers": headers, "properties": properties,
    })  # fmt: skip


def _messages(hint: Hint) -> Iterator[Hint]:
    for start in range(0, len(hint.ids), MAX_IDS):
        yield Hint(hint.queue, hint.ids[start : start + MAX_IDS])


def _arguments(message: Hint) -> list[Any]:
    return [VERSION, message.queue, [job_id.hex for job_id in message.ids]]


def require_shared(settings: Settings, what: str) -> None:
    """Raise Misconfigured if the broker only lives inside one process."""
    if settings.broker_url.startswith(EMBEDDED.partition("://")[0]):
        raise Misconfigured(
            f"A separate {what} needs a broker that other processes reach.",
            code="broker_missing",
            hint="Set JOBQ_BROKER_URL (redis://host:6379/0 or amqp://user:password@host//), or run: jobq dev",
        )


def parse_hint(args: Any) -> Hint | None:
    """The hint in a message's arguments; None for what no jobq of this version sent: it is dropped, never executed."""
    match args:
        case [int(version), str(queue), [*ids]] if version == VERSION and 0 < len(ids) <= MAX_IDS:
            try:
                return Hint(queue, [UUID(hex=job_id) for job_id in ids])
            except (ValueError, TypeError, AttributeError):
                return None
        case _:
            return None
