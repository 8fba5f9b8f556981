"""Workers and their leases.

The lease is one row per worker process, renewed with one UPDATE. A worker is dead once somebody set ``dead_at``:
from then on its claims and renewals are refused, and only then are its jobs touched. A late outcome of a worker
that was frozen is refused because its jobs no longer carry its id and attempt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row
from sqlalchemy.sql import ColumnElement

from jobq.models import Outcome
from jobq.retry import backoff, retryable, stored_policy
from jobq.states import Desired, Reason, Status, canceled, retry_or_fail
from jobq.store.claim import TAKEN, Claimed, with_data
from jobq.store.finish import Change, EndedAttempt, finish, put_back
from jobq.store.sql import Instant, id_list, insert, is_one_of, later, now, picked_once, plus
from jobq.store.tables import job_data, jobs, schedulers, workers


@dataclass(frozen=True, slots=True)
class Identity:
    """A worker process. ``boot_id``, ``pid_namespace`` and ``process_start`` make its pid unmistakable."""

    id: UUID
    name: str
    hostname: str
    pid: int
    boot_id: str
    pid_namespace: str
    process_start: str
    version: str
    queues: Mapping[str, int]
    host: str | None = None


def register(conn: Connection, identity: Identity, lease: float) -> None:
    """A new worker: a new id, at each start and after each death. Repeating a call registers nobody twice."""
    conn.execute(
        insert(conn.dialect.name, workers)
        .values(
            id=identity.id, name=identity.name, hostname=identity.hostname, pid=identity.pid,
            boot_id=identity.boot_id, pid_namespace=identity.pid_namespace, process_start=identity.process_start,
            version=identity.version, queues=dict(identity.queues), host=identity.host,
            started_at=now(), renewed_at=now(), lease_until=later(lease),
        )
        .on_conflict_do_nothing()
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Renewal:
    """What a renewal brings back. ``alive`` False: the worker was declared dead and owns nothing any more."""

    alive: bool
    draining: bool = False
    running: Mapping[UUID, tuple[int, Desired]] = None  # type: ignore[assignment]


@cache
def _renew() -> Any:
    return (
        sa.update(workers)
        .where(workers.c.id == sa.bindparam("worker", type_=sa.Uuid), workers.c.dead_at.is_(None))
        .values(
            renewed_at=now(), lease_until=later(sa.bindparam("lease", type_=sa.Float)), host=sa.bindparam("on_host")
        )
        .returning(workers.c.draining_at)
    )


@cache
def _running_of() -> Any:
    return sa.select(jobs.c.id, jobs.c.attempt, jobs.c.desired).where(
        jobs.c.worker_id == sa.bindparam("worker", type_=sa.Uuid)
    )


def renew(conn: Connection, worker_id: UUID, lease: float, host: str | None) -> Renewal:
    """Extend the lease; the reply says what the database believes this worker to run, and what is wanted of it."""
    row = conn.execute(_renew(), {"worker": worker_id, "lease": lease, "on_host": host}).first()
    if row is None:
        return Renewal(alive=False, running={})
    running = {
        job_id: (attempt, Desired(desired))
        for job_id, attempt, desired in conn.execute(_running_of(), {"worker": worker_id})
    }
    return Renewal(alive=True, draining=row.draining_at is not None, running=running)


def set_draining(conn: Connection, worker_id: UUID) -> bool:
    """The worker takes no more jobs: promotion no longer counts on it. False: there is no such live worker."""
    done = conn.execute(
        sa.update(workers)
        .where(workers.c.id == worker_id, workers.c.dead_at.is_(None))
        .values(draining_at=sa.func.coalesce(workers.c.draining_at, now()))
    )
    return bool(done.rowcount)


def sign_off(conn: Connection, worker_id: UUID) -> None:
    """The worker ends in good order; whatever it still holds is the reaper's at once."""
    conn.execute(
        sa.update(workers).where(workers.c.id == worker_id).values(dead_at=now(), stopped_at=now(), lease_until=now())
    )


_SET_BACK = 5.0
"""Seconds by which a renewal may seem to lie ahead of an instant that was read a moment before it."""


def declare_dead(conn: Connection, ids: Iterable[UUID] | None = None, *, at: datetime | None = None) -> list[UUID]:
    """Set ``dead_at`` on workers whose lease ran out (or on ``ids``, whose processes were seen to be gone).

    ``at``: the instant by the database's clock that leases are judged by; None: now. A renewal that lies ahead of it
    is from before that clock was set back, and its lease may end hours late: it has run out, too. So whoever saw the
    clock jump waits a lease before he judges, in which the living renew.
    """
    if ids is not None:
        gone: ColumnElement[bool] = workers.c.id.in_(list(ids))
    else:
        instant = now() if at is None else sa.literal(at, Instant())
        ahead = workers.c.renewed_at > plus(instant, sa.literal(_SET_BACK, sa.Float()))
        gone = sa.or_(workers.c.lease_until < instant, ahead)
    return list(
        conn.scalars(
            sa.update(workers).where(gone, workers.c.dead_at.is_(None)).values(dead_at=now()).returning(workers.c.id)
        )
    )


def neighbours(conn: Connection, boot_id: str, pid_namespace: str) -> list[Row[Any]]:
    """Live workers that share this process table: (id, pid, process_start)."""
    return list(
        conn.execute(
            sa.select(workers.c.id, workers.c.pid, workers.c.process_start).where(
                workers.c.boot_id == boot_id, workers.c.pid_namespace == pid_namespace, workers.c.dead_at.is_(None)
            )
        )
    )


def list_workers(conn: Connection, *, everything: bool = False) -> list[Row[Any]]:
    """The workers that live, newest first, each with its number of running jobs; with ``everything`` the dead too."""
    running = (
        sa.select(jobs.c.worker_id, sa.func.count().label("running"))
        .where(jobs.c.worker_id.is_not(None))
        .group_by(jobs.c.worker_id)
        .subquery("running")
    )
    query = (
        sa.select(workers, sa.func.coalesce(running.c.running, 0).label("running"), now().label("now"))
        .outerjoin(running, running.c.worker_id == workers.c.id)
        .order_by(workers.c.id.desc())
        .limit(500)
    )
    return list(conn.execute(query if everything else query.where(workers.c.dead_at.is_(None))))


# --- the jobs of the dead --------------------------------------------------------------------------------------

_LEFT = [jobs.c[name] for name in TAKEN]


def adopt(conn: Connection, worker_id: UUID, host: str, limit: int) -> list[Claimed]:
    """Take over the work that dead workers left on this host: same attempt, new owner."""
    dead = sa.select(workers.c.id).where(workers.c.dead_at.is_not(None))
    chosen = (
        sa.select(jobs.c.id)
        .where(jobs.c.worker_id.is_not(None), jobs.c.worker_id.in_(dead), jobs.c.host == host)
        .order_by(jobs.c.worker_id)  # see release_lost
        .limit(limit)
        .with_for_update(skip_locked=True, of=jobs)
    )
    alive = sa.exists().where(workers.c.id == worker_id, workers.c.dead_at.is_(None))
    rows = conn.execute(
        sa.update(jobs).where(jobs.c.id.in_(picked_once(chosen)), alive).values(worker_id=worker_id).returning(*_LEFT)
    ).all()
    return with_data(conn, rows)


def resume(conn: Connection, worker_id: UUID, host: str, ids: Sequence[UUID]) -> list[Claimed]:
    """Those of these jobs that this worker owns, and whose work lives (or was to begin) on this host.

    For what it does not hold because the reply to its claim, or to its adoption, was lost.
    """
    dialect = conn.dialect.name
    mine = (is_one_of(dialect, jobs.c.id, "ids"), jobs.c.worker_id == worker_id, jobs.c.host == host)
    return with_data(conn, conn.execute(sa.select(*_LEFT).where(*mine), {"ids": id_list(dialect, ids)}).all())


def release_lost(conn: Connection, *, reattach_grace: float, limit: int = 500) -> int:
    """End or retry the running jobs of dead workers; returns how many.

    Work that can be recovered on its host is left to a live worker there: at most ``reattach_grace`` seconds,
    counted from the death of its owner.
    """
    rows = conn.execute(
        sa.select(
            jobs.c.id, jobs.c.attempt, jobs.c.kind, jobs.c.failures, jobs.c.max_attempts, jobs.c.desired,
            jobs.c.cancel_reason, jobs.c.started_at, jobs.c.worker_id, job_data.c.retry,
        )
        .join(workers, workers.c.id == jobs.c.worker_id)
        .outerjoin(job_data, job_data.c.job_id == jobs.c.id)
        .where(
            jobs.c.worker_id.is_not(None),
            workers.c.dead_at.is_not(None),
            sa.or_(jobs.c.host.is_(None), workers.c.dead_at < later(-reattach_grace)),
        )
        .order_by(jobs.c.worker_id)  # of the index: in the order of ids all finished jobs would be walked past
        .limit(limit)
        .with_for_update(skip_locked=True, of=jobs)
    ).all()  # fmt: skip
    return len(_write_lost(conn, rows, "the worker died, and nobody can say how the attempt ended"))


def release_unheld(conn: Connection, worker_id: UUID, held: Mapping[UUID, int], ids: Sequence[UUID]) -> int:
    """Give back jobs that the database counts to a live worker that does not hold them.

    Such a row comes from a claim whose COMMIT was done but whose reply was lost.
    """
    dialect = conn.dialect.name
    rows = conn.execute(
        sa.select(
            jobs.c.id, jobs.c.attempt, jobs.c.kind, jobs.c.failures, jobs.c.max_attempts, jobs.c.desired,
            jobs.c.cancel_reason, jobs.c.started_at, jobs.c.worker_id, job_data.c.retry,
        )
        .outerjoin(job_data, job_data.c.job_id == jobs.c.id)
        .where(is_one_of(dialect, jobs.c.id, "ids"), jobs.c.worker_id == worker_id)
        .order_by(jobs.c.id)
        .with_for_update(of=jobs),
        {"ids": id_list(dialect, ids)},
    ).all()  # fmt: skip
    unheld = [row for row in rows if held.get(row.id) != row.attempt]
    return len(_write_lost(conn, unheld, "the claim was never confirmed to the worker"))


def _write_lost(conn: Connection, rows: Iterable[Any], message: str) -> set[UUID]:
    changes = [_lost(row, message) for row in rows]
    ends = finish(conn, (change for change in changes if change.to.terminal))
    return ends | put_back(conn, (change for change in changes if not change.to.terminal))


def _lost(row: Any, message: str) -> Change:
    outcome = Outcome.lost(message)
    policy = stored_policy(row.kind, row.retry)
    if Desired(row.desired) is Desired.CANCEL:
        to = canceled(Reason(row.cancel_reason) if row.cancel_reason else Reason.BY_USER)
    else:
        to = retry_or_fail(
            failure=Reason.UNRESOLVED,
            retryable=retryable(policy, outcome),
            failures=row.failures,
            max_attempts=row.max_attempts,
            desired=Desired(row.desired),
            backoff=backoff(policy, row.failures + 1, row.id.int ^ row.attempt),
        )
    ended = EndedAttempt.of(outcome, row.started_at, row.worker_id, charged=to.charged, kind="LOST")
    return Change(
        row.id, Status.RUNNING, row.attempt, to, row.worker_id,
        message=message, error_class=outcome.error_class, ended=ended,
    )  # fmt: skip


# --- schedulers ------------------------------------------------------------------------------------------------


def scheduler_seen(conn: Connection, scheduler_id: UUID, name: str, version: str) -> None:
    """A scheduler says that it does its work: nothing depends on it but ``jobq doctor`` and ``why``."""
    renewed = conn.execute(sa.update(schedulers).where(schedulers.c.id == scheduler_id).values(renewed_at=now()))
    if not renewed.rowcount:
        conn.execute(
            sa.insert(schedulers).values(
                id=scheduler_id, name=name, version=version, started_at=now(), renewed_at=now()
            )
        )


def live_schedulers(conn: Connection, within: float = 15.0) -> list[Row[Any]]:
    """The schedulers that were seen within so many seconds."""
    return list(conn.execute(sa.select(schedulers).where(schedulers.c.renewed_at > later(-within))))


def known_schedulers(conn: Connection) -> list[Row[Any]]:
    """All that were seen within the last hour or so, those that ended, too."""
    return list(conn.execute(sa.select(schedulers)))


def database_now(conn: Connection) -> datetime:
    """The database's clock."""
    return conn.execute(sa.select(now().label("now"))).scalar_one()
