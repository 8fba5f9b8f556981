"""The log of a process: one configuration for every command, in lines for people or in JSON for machines.

A line that is written while a job is executed carries the job's ids, and shows asterisks where it would quote a secret
that the job was handed: ``begin`` tells whose lines they are, whoever writes them, on the job's task and its threads.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobq import telemetry
from jobq.errors import InvalidInput
from jobq.settings import LOG_FORMATS

if TYPE_CHECKING:
    from uuid import UUID

    from jobq.store.claim import Claimed
    from jobq.store.record import Report

_CHATTY = ("celery", "kombu", "alembic", "asyncio", "amqp", "redis", "uvicorn", "opentelemetry", "urllib3")


# --- whose line it is ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class About:
    """An attempt, as the lines about it name it. ``hide``: makes text fit for showing, once secrets were handed over."""

    job: Claimed | Report
    worker: UUID
    hide: Callable[[str], str] | None = None

    @property
    def fields(self) -> dict[str, Any]:
        """Made for each line: of most jobs none is written."""
        job = self.job
        return {
            "job_id": str(job.id), "attempt": job.attempt, "kind": job.kind, "queue": job.queue,
            "worker": str(self.worker),
        }  # fmt: skip


_about: ContextVar[About | None] = ContextVar("jobq_log_about", default=None)


def about(job: Claimed | Report, worker: UUID) -> About:
    """How lines name an attempt under this worker."""
    return About(job, worker)


def begin(job: Claimed, worker: UUID) -> About:
    """From here on, to the end of this task, lines are about this attempt."""
    found = about(job, worker)
    _about.set(found)
    return found


@contextmanager
def belonging(to: About | None) -> Iterator[None]:
    """Lines within are about this attempt, wherever they are written."""
    token = _about.set(to)
    try:
        yield
    finally:
        _about.reset(token)


def _of_job(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """With the ids of the attempt, if it is about one, and of the trace."""
    its = _about.get()
    if its is not None:
        event.update(its.fields)
    if (trace := telemetry.trace_id()) is not None:
        event["trace_id"] = trace
    return event


def _hidden(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Without the secrets that the job was handed, also where an exception quotes one."""
    its = _about.get()
    if its is not None and its.hide is not None:
        for name, value in event.items():
            if name not in its.fields and isinstance(value, str):
                event[name] = its.hide(value)
    return event


# --- how it looks ----------------------------------------------------------------------------------------------------------


def configure(level: str, how: str) -> None:
    """Send every logger to stderr; ``how``: one of ``LOG_FORMATS``. Libraries speak from WARNING on, unless at DEBUG."""
    if how not in LOG_FORMATS:
        raise InvalidInput(f"{how[:100]!r} is no format of a log.", hint="Write auto, console or json.")
    text = how in {"console", "text"} or (how == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(text=text, colors=text and _wants_colors()))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in _CHATTY:
        logging.getLogger(name).setLevel("DEBUG" if level == "DEBUG" else "WARNING")


def formatter(*, text: bool, colors: bool = False) -> logging.Formatter:
    """Lines for people, or JSON documents, of every logger."""
    import structlog

    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            _of_job,
            structlog.processors.format_exc_info,
            _hidden,
            *(_console(colors) if text else [structlog.processors.JSONRenderer()]),
        ],
    )


def _console(colors: bool) -> list[Any]:
    import structlog

    return [
        _harmless,
        structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback),
    ]


def _wants_colors() -> bool:
    import os

    return sys.stderr.isatty() and not os.environ.get("NO_COLOR")


def _harmless(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """What a message or an exception quotes may come from outside: it must not steer the terminal."""
    from jobq.cli.output import plain

    for name, value in event.items():
        if name == "exception":
            event[name] = "\n".join(plain(line) for line in str(value).split("\n"))
        elif isinstance(value, str):
            event[name] = plain(value)
    return event
