"""Celery's consumer, which here meets hints only: everything else is dropped before Celery looks at it.

Whoever can write to the broker can write any message. Celery would obey much that a message may say: run one of its
own tasks (``celery.map`` runs any other), hold it until an ETA in a worker's memory, send further messages at its end
(``callbacks``, ``chain``), and write all of it into the log. So a message is read here first: of a hint only its ids
go on, and nothing of its headers; what is no hint is counted, and one line of the log says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any
from uuid import uuid4

from celery.signals import task_rejected
from celery.worker.consumer import Consumer

from jobq.broker import TASK, Hint, parse_hint

log = logging.getLogger(__name__)


class HintConsumer(Consumer):
    """Named in the setting ``worker_consumer``."""

    def create_task_handler(self, *args: Any, **parts: Any) -> Callable[[Any], None]:
        """Celery calls this for what it calls with each message."""
        take = super().create_task_handler(*args, **parts)
        broken: Any = self.connection_errors  # type: ignore[attr-defined]  # the stubs lack it

        def on_message(message: Any) -> None:
            if read_hint(message) is None:
                log.warning("a message was dropped: it is no hint of this version")
                message.reject_log_error(log, broken)
                task_rejected.send(sender=self, message=message, exc=None)
                return
            message.headers = {"task": TASK, "id": str(uuid4()), "lang": "py"}
            take(message)

        return on_message


def read_hint(message: Any) -> Hint | None:
    """The hint in a Celery message (its protocol 2) that asks for nothing else; None for everything else."""
    headers = message.headers
    if not isinstance(headers, dict) or headers.get("task") != TASK:
        return None
    if headers.get("eta") is not None or headers.get("expires") is not None:
        return None
    try:
        payload = message.decode()
    except Exception:  # noqa: BLE001 - whatever it is that cannot be decoded: pickle, half a character, brackets without end
        return None
    match payload:
        case [args, {**keywords}, {**embedded}] if not keywords and not any(embedded.values()):
            return parse_hint(args)
    return None
