"""Kombu's transport over Redis, which here outlives whatever Redis holds or says in the place of a message.

Celery's worker would exit at the first item that is not JSON or not of a message's shape: each stray ``LPUSH`` would
end one worker, with all its jobs. And it would exit at each refusal: of a Redis that is full, or that has become a
replica, or whose key is no list. Here that is as if Redis were away.
"""

from __future__ import annotations

import logging
from typing import Any
from uuid import uuid4

from kombu.transport import redis
from redis.exceptions import ConnectionError as Lost
from redis.exceptions import ResponseError

log = logging.getLogger(__name__)

_NOT_A_MESSAGE = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What comes of reading one; errors of the connection are none of these."""


class Channel(redis.Channel):
    """Reads messages from the lists."""

    def _brpop_read(self, **options: Any) -> Any:
        """What cannot be read becomes a message that says nothing: the consumer refuses and counts it as any other."""
        try:
            return super()._brpop_read(**options)  # type: ignore[misc]  # the stubs lack it
        except ResponseError as error:  # to Celery that is the end, while a lost connection is opened again
            self.client.connection.disconnect()
            raise Lost(str(error)) from error
        except _NOT_A_MESSAGE as error:
            log.warning("an item of the queue is no message: %s", error)
            queue = next(iter(self.active_queues))
            where = {"exchange": "", "routing_key": queue}
            nothing = {
                "body": "null", "content-type": "application/json", "content-encoding": "utf-8", "headers": {},
                "properties": {"delivery_tag": str(uuid4()), "delivery_info": where},
            }  # fmt: skip
            self.connection._deliver(nothing, queue)  # noqa: SLF001 - as the method that this one is around does
            return True

    def _size(self, queue: str) -> int:
        """Asked at each connect, and of no interest to a consumer: a Redis that is full refuses the transaction."""
        try:
            return int(super()._size(queue))
        except ResponseError:
            return 0


class Transport(redis.Transport):
    """Named in the setting ``broker_transport`` of workers on Redis."""

    Channel = Channel
