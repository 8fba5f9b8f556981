"""Is the worker, or the scheduler, of this machine ready? What a supervisor's health check asks, without HTTP.

Asked is the database, which both write to as they live: so the answer is right for a process that is frozen, cut off or
stuck as well. "Of this machine" is what shares the process table of the asking command, as in a container.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from jobq.cli.output import ago
from jobq.cli.problems import load
from jobq.store.workers import database_now, known_schedulers, list_workers

if TYPE_CHECKING:
    from jobq.cli.checks import Examination

_MISSED = 3
"""Renewals that may be missing before a process is called not ready."""
Told = tuple[bool, str, str]
"""Ready? What there is to say; what to do about it."""


def worker(look: Examination, pid: int | None) -> Iterator[Told]:
    """Each worker of this process table, or that of the process ``pid``: its lease is renewed, and it takes jobs."""
    identity = load("workers.identity")
    here = (identity.boot_id(), identity.pid_namespace(), socket.gethostname())
    with look.database.read() as conn:
        now, rows = database_now(conn), list_workers(conn)
    found = [
        row
        for row in rows
        if (row.boot_id, row.pid_namespace, row.hostname) == here
        and (identity.process_start(row.pid) or "") == row.process_start
        and pid in {None, row.pid}
    ]
    if not found:
        yield False, f"no worker {_which(pid)} is registered", "Start one (jobq worker -Q …), or look at its log."
    for row in found:
        if late := _late(row.renewed_at, now, look):
            yield False, f"{row.name}: its lease was last renewed {late}", "Look at its log."
        elif row.draining_at is not None:
            yield False, f"{row.name} drains: it takes no more jobs", ""
        else:
            yield True, f"{row.name} takes jobs of {', '.join(sorted(row.queues))}", ""


def scheduler(look: Examination, pid: int | None) -> Iterator[Told]:
    """Each scheduler of this machine, or that of the process ``pid``: it was seen promoting lately."""
    process_start = load("workers.identity").process_start
    with look.database.read() as conn:
        now, rows = database_now(conn), known_schedulers(conn)
    host, seen = socket.gethostname(), dict[int, datetime]()
    for row in rows:
        its_host, _, its_pid = row.name.rpartition(":")
        if its_host == host and process_start(int(its_pid)) is not None and pid in {None, int(its_pid)}:
            seen[int(its_pid)] = max(row.renewed_at, seen.get(int(its_pid), row.renewed_at))  # a restart may share it
    if not seen:
        yield False, f"no scheduler {_which(pid)} is known", "Start one (jobq scheduler), or look at its log."
    for its_pid, renewed_at in seen.items():
        if late := _late(renewed_at, now, look):
            yield False, f"{host}:{its_pid} was last seen {late}", "Look at its log."
        else:
            yield True, f"{host}:{its_pid} promotes, or stands by", ""


def _which(pid: int | None) -> str:
    return "of this machine" if pid is None else f"with the process id {pid}"


def _late(renewed_at: datetime, now: datetime, look: Examination) -> str:
    """How long ago, if that is too long."""
    allowed = _MISSED * max(look.settings.renew_every, timedelta(seconds=1))
    return ago(renewed_at) or "" if now - renewed_at > allowed else ""


PROCESSES: Mapping[str, Callable[[Any, int | None], Iterator[Told]]] = {"worker": worker, "scheduler": scheduler}
