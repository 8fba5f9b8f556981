"""The log of a service, on stderr: JSON lines for machines, text for a person at a terminal."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from jobq.cli.output import plain
from jobq.errors import InvalidInput

_CHATTY = ("celery", "kombu", "alembic", "asyncio", "amqp", "redis", "uvicorn")


def configure(level: str, how: str) -> None:
    """Send every logger to stderr; ``how``: auto, text or json. Libraries speak from WARNING on, unless at DEBUG."""
    if how not in {"auto", "text", "json"}:
        raise InvalidInput(f"{how[:100]!r} is no format of a log.", hint="Write auto, text or json.")
    text = how == "text" or (how == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
            ],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *(_text() if text else _json())],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in _CHATTY:
        logging.getLogger(name).setLevel("DEBUG" if level == "DEBUG" else "WARNING")


def _json() -> list[Any]:
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]


def _text() -> list[Any]:
    import os

    colors = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    renderer = structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)
    return [structlog.processors.format_exc_info, _harmless, renderer]


def _harmless(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """What a message or an exception quotes may come from outside: it must not steer the terminal."""
    event["event"] = plain(event["event"])
    if "exception" in event:
        event["exception"] = "\n".join(plain(line) for line in str(event["exception"]).split("\n"))
    return event
