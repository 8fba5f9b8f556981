"""A SYNC's own transactions: one per batch, for its entities, its children and its cursor.

Each is guarded by the SYNC's attempt, its worker and ``desired = RUN``, on the SYNC's own locked row. So a batch of a
worker that lost its job, or of a SYNC that somebody just paused or canceled, writes nothing and is told so; and a
SYNC that is killed goes on behind its last committed batch, with each (entity, target) created once.

Lanes: the children of one SYNC for one target wait in a lane of their own (``fanin.of_lane``), so that promotion passes
over all of them in one step while the SYNC is paused or the target asked for patience.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from jobq import metrics, telemetry
from jobq.states import Desired, Reason, Status
from jobq.store import after, entities
from jobq.store.commits import after_commit
from jobq.store.entities import Content
from jobq.store.fanin import COUNTS, delta
from jobq.store.jobs import new_id
from jobq.store.siblings import Live, live_children, own_children
from jobq.store.sql import incoming, now, rows_json
from jobq.store.tables import fanout_deltas, fanout_targets, fanouts, jobs, sync_problems
from jobq.store.wakeup import announce
from jobq.store.webhook_events import CREATED, News, is_heard, tell, tell_stage

QUEUE = "replication"
TOO_LARGE = "fanout_too_large"
"""The error class of a SYNC whose limit of children was reached."""
TWICE = "duplicate_key"
"""The error class of an entity that comes again with other content when it has its child: it has to be taken up again."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Who may write a SYNC's batches: this attempt of it, under this worker."""

    job_id: UUID
    attempt: int
    worker_id: UUID


@dataclass(frozen=True, slots=True)
class TargetPlan:
    """What a batch must know of a target; targets come in an order in which ``after`` points backwards."""

    name: str
    rules: str
    after: tuple[str, ...] = ()
    concurrency: int | None = None


@dataclass(frozen=True, slots=True)
class ChildPolicy:
    """What all children of a SYNC have in common."""

    timeout: float
    max_attempts: int
    limit: int
    """Of children of one SYNC."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An entity that failed before it had children. ``where``: its key, or the place of a record without one."""

    where: str
    error_class: str
    message: str


@dataclass(frozen=True, slots=True)
class Sifted:
    """A batch of the source after conditions and mapping."""

    found: Sequence[Content]
    """Each key once."""
    cursor: Any
    state: Any = None
    read: int = 0
    filtered: int = 0
    failures: Sequence[Failure] = ()
    again: Sequence[str] = ()
    """Keys of stored entities that targets may still lack, though the source said nothing new of them."""
    behind: int | None = None
    """How much this SYNC had read before: where it has read more by now, the batch is stored, and nobody was told."""


@dataclass(frozen=True, slots=True)
class Added:
    """What a batch came to. ``too_many``: the limit of children would be exceeded, only its entities are stored."""

    new: int = 0
    updated: int = 0
    existing: int = 0
    children: int = 0
    too_many: bool = False


def open_fanout(conn: Connection, owner: Owner, domain: str, targets: Iterable[TargetPlan]) -> Row[Any] | None:
    """The fan-out of a SYNC, made when it first starts: how far it has read. None: the SYNC is not the owner's."""
    job = _guard(conn, owner)
    if job is None:
        return None
    query = sa.select(fanouts).where(fanouts.c.job_id == owner.job_id)
    if conn.execute(query).first() is None:
        counts = dict.fromkeys(("read", "filtered", "new", "updated", "existing", "invalid"), 0)
        conn.execute(
            sa.insert(fanouts).values(job_id=owner.job_id, tenant=job.tenant, domain=domain, reading=True, **counts)
        )
        _stage(conn, owner, job, "sync.started")
        none = dict.fromkeys(("total", *COUNTS), 0)
        for target in targets:
            values = {"parent_id": owner.job_id, "target": target.name, "concurrency": target.concurrency, **none}
            conn.execute(sa.insert(fanout_targets).values(**values))
    opened: Row[Any] = conn.execute(query).one()
    return opened


def _guard(conn: Connection, owner: Owner) -> Any:
    """The SYNC's row, locked, if it still is the owner's and nobody asked for anything but to run it; else None.

    With how far it has read: who repeats a transaction finds there what the first try did.
    """
    return conn.execute(
        sa.select(
            jobs.c.tenant, jobs.c.domain, jobs.c.trigger, jobs.c.priority, jobs.c.stale_after, fanouts.c.read,
            fanouts.c.reading, jobs.c.hooked, is_heard(jobs.c.tenant, child=True).label("hooks_children"),
        )
        .outerjoin(fanouts, fanouts.c.job_id == jobs.c.id)
        .where(
            jobs.c.id == owner.job_id, jobs.c.attempt == owner.attempt, jobs.c.worker_id == owner.worker_id,
            jobs.c.status == Status.RUNNING.value, jobs.c.desired == Desired.RUN.value,
        )
        .with_for_update(of=jobs)
    ).first()  # fmt: skip


def _stage(conn: Connection, owner: Owner, job: Row[Any], stage: str) -> None:
    if job.hooked is not None:
        tell_stage(conn, owner.job_id, stage)


class _Place(NamedTuple):
    """A SYNC and what it syncs."""

    job_id: UUID
    tenant: str
    domain: str


# --- a batch -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Children:
    """The children that a batch makes, target by target."""

    read: set[str]
    """The entities that the source gave."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    begun: set[UUID] = field(default_factory=set)
    """Those of them that will write: no other job stands in for them."""
    of: dict[str, dict[str, UUID]] = field(default_factory=dict)
    """target → entity → the job that a later target's child waits for."""
    filtered: dict[str, set[str]] = field(default_factory=dict)
    """target → entities that it does not get, because its conditions or those of an earlier target say so."""
    waits: list[tuple[UUID, UUID]] = field(default_factory=list)
    behind: list[tuple[UUID, UUID]] = field(default_factory=list)
    totals: dict[str, int] = field(default_factory=dict)
    duplicates: dict[str, int] = field(default_factory=dict)
    existing: dict[str, int] = field(default_factory=dict)
    twice: set[str] = field(default_factory=set)
    """Entities that came before in this run, and have their child."""


def add_batch(
    conn: Connection, owner: Owner, batch: Sifted, targets: Sequence[TargetPlan], policy: ChildPolicy
) -> Added | None:
    """Store a batch and its children, and move the cursor. None: nothing was written, the SYNC is to stop.

    Stored again, it changes nothing: ``batch.behind`` keeps it from being counted twice.
    """
    job = _guard(conn, owner)
    if job is None:
        return None
    if batch.behind is not None and (job.read or 0) > batch.behind:
        return Added()
    changed = entities.upsert(conn, job.tenant, job.domain, owner.job_id, batch.found)
    entities.lock(conn, job.tenant, job.domain, batch.again)
    versions = {**dict.fromkeys(batch.again, 0), **dict.fromkeys((each.key for each in batch.found), 0), **changed}
    made = _Children({each.key for each in batch.found})
    for target in targets:
        _plan(conn, _Place(owner.job_id, job.tenant, job.domain), target, versions, made)
    if made.rows:
        before = _children_so_far(conn, owner)
        if before + len(made.rows) > policy.limit:
            return Added(too_many=True)
        if not before:
            _stage(conn, owner, job, "export.started")
    _write(conn, owner, job, made, policy)
    twice = [
        Failure(key, TWICE, "the source gave this entity twice in one run; the last content was kept")
        for key in sorted(made.twice & changed.keys())
    ]
    new = sum(version == 1 for version in changed.values())
    batch = replace(batch, failures=[*batch.failures, *twice]) if twice else batch
    added = Added(new, len(changed) - new, len(batch.found) - len(changed), len(made.rows))
    _move_on(conn, owner, batch, added)
    if made.rows:
        announce(conn)
    return added


def _plan(conn: Connection, place: _Place, target: TargetPlan, versions: dict[str, int], made: _Children) -> None:
    """Decide which entities need a child for this target, and what each of them must wait for."""
    known = [key for key, version in versions.items() if version != 1]
    behind, filtered, mine = set[str](), set[str](), set[str]()
    live: dict[str, Live] = {}
    if known:
        at = entities.Place(place.tenant, place.domain, target.name)
        behind, filtered = entities.lacking(conn, at, target.rules, known)
        mine = own_children(conn, place.job_id, target.name, known)
        made.twice |= mine
        behind -= mine
        if behind:
            live = live_children(conn, at, target.rules, behind)
    for earlier in target.after:
        filtered |= made.filtered.get(earlier, set())
    made.filtered[target.name] = filtered
    children = made.of.setdefault(target.name, {})
    count = duplicates = 0
    for key, version in versions.items():
        if (version != 1 and key not in behind) or key in filtered:
            continue  # the target has it, or is not to have it
        child: dict[str, Any] = {"id": new_id(), "target": target.name, "key": key, "reason": Reason.READY.value}
        upstreams = [made.of[name][key] for name in target.after if key in made.of.get(name, {})]
        other = live.get(key)
        # One that was free to go before its target's predecessor got this content would overtake it: it stands in for none.
        if other is not None and other.stands_in and made.begun.isdisjoint(upstreams):
            child |= {"reason": Reason.DUPLICATE.value, "duplicate_of": other.id}
            children[key] = other.id  # it will read what this one would
            duplicates += 1
        else:
            children[key] = child["id"]
            made.begun.add(child["id"])
            if upstreams or other is not None:
                child["reason"] = Reason.BLOCKED.value
            made.waits += [(child["id"], upstream) for upstream in upstreams]
            made.behind += [(child["id"], other.id)] if other is not None else []
        made.rows.append(child)
        count += 1
    made.totals[target.name] = count
    made.duplicates[target.name] = duplicates
    made.existing[target.name] = len(made.read - filtered - mine - children.keys())  # what has a child is its to report


def _children_so_far(conn: Connection, owner: Owner) -> int:
    total = sa.select(sa.func.coalesce(sa.func.sum(fanout_targets.c.total), 0))
    return int(conn.scalar(total.where(fanout_targets.c.parent_id == owner.job_id)) or 0)


def _write(conn: Connection, owner: Owner, job: Row[Any], made: _Children, policy: ChildPolicy) -> None:
    if made.rows:
        parameters = {
            "parent": owner.job_id, "parent_hex": owner.job_id.hex, "tenant": job.tenant, "domain": job.domain,
            "trigger": job.trigger, "priority": job.priority, "timeout": policy.timeout,
            "stale_after": job.stale_after, "max_attempts": policy.max_attempts, "children": rows_json(made.rows),
            "traceparent": telemetry.traceparent(),
            "hooked": 1 if job.hooks_children else None,
        }  # fmt: skip
        conn.execute(_insert(conn.dialect.name), parameters)
        if job.hooks_children:
            _tell_children(conn, made)
        after.wait_for(conn, made.waits)
        after.wait_for(conn, made.behind, any_end=True)
    for target, total in made.totals.items():
        if total or made.existing[target]:
            conn.execute(_grow(), {"of": owner.job_id, "to": target, "more": total, "had": made.existing[target]})
        if number := made.duplicates[target]:
            after_commit(conn, partial(metrics.ended_at_once, number, "REPLICATION", QUEUE, Reason.DUPLICATE.value))
            conn.execute(
                sa.insert(fanout_deltas).values(
                    **delta(owner.job_id, target, canceled=made.duplicates[target], duplicate=made.duplicates[target])
                )
            )


def _tell_children(conn: Connection, made: _Children) -> None:
    duplicates = [row["id"] for row in made.rows if row["reason"] == Reason.DUPLICATE.value]
    recorded_only = set(duplicates)
    tell(conn, [News(row["id"], CREATED, int(row["id"] in recorded_only)) for row in made.rows])
    tell(conn, [News(job_id, "job.canceled") for job_id in duplicates])


@cache
def _insert(dialect: str) -> Any:
    """Children are narrow: their spec, retry policy and target are their parent's."""
    columns: dict[str, Any] = {
        "id": sa.Uuid(), "target": sa.Text(), "key": sa.Text(), "reason": sa.Text(), "duplicate_of": sa.Uuid()
    }  # fmt: skip
    new = incoming(dialect, "children", columns)
    text, number = sa.Text, sa.Float

    def of_all(name: str, type_: Any) -> Any:
        return sa.bindparam(name, type_=type_)

    duplicate, ready = new.c.reason == Reason.DUPLICATE.value, new.c.reason == Reason.READY.value
    domain = of_all("domain", text)
    values: dict[str, Any] = {
        "id": new.c.id, "tenant": of_all("tenant", text), "kind": sa.literal_column("'REPLICATION'"),
        "name": domain.concat("/").concat(new.c.key), "queue": sa.literal_column(f"'{QUEUE}'"),
        "lane": of_all("parent_hex", text).concat("/").concat(new.c.target),
        "status": sa.case((duplicate, Status.CANCELED.value), else_=Status.PENDING.value), "reason": new.c.reason,
        "trigger": of_all("trigger", text), "priority": of_all("priority", sa.SmallInteger),
        "max_attempts": of_all("max_attempts", sa.Integer), "timeout": sa.cast(of_all("timeout", number), sa.Float),
        "stale_after": sa.cast(of_all("stale_after", number), sa.Float), "created_at": now(),
        "ready_at": sa.case((ready, now())), "finished_at": sa.case((duplicate, now())),
        "parent_id": of_all("parent", sa.Uuid), "duplicate_of": new.c.duplicate_of, "domain": domain,
        "domain_end": sa.literal_column("'target'"), "target": new.c.target, "entity_key": new.c.key,
        "traceparent": of_all("traceparent", text),
        "hooked": sa.cast(of_all("hooked", sa.Integer), sa.Integer) + sa.case((duplicate, 1), else_=0),
    }  # fmt: skip
    rows = sa.select(*(value.label(name) for name, value in values.items())).where(new.c.id.is_not(None))
    return sa.insert(jobs).from_select(list(values), rows, include_defaults=False)


@cache
def _grow() -> Any:
    c = fanout_targets.c
    return (
        sa.update(fanout_targets)
        .where(c.parent_id == sa.bindparam("of", type_=sa.Uuid), c.target == sa.bindparam("to", type_=sa.Text))
        .values(
            total=c.total + sa.bindparam("more", type_=sa.BigInteger),
            existing=c.existing + sa.bindparam("had", type_=sa.BigInteger),
        )
    )


def _move_on(conn: Connection, owner: Owner, batch: Sifted, added: Added) -> None:
    c = fanouts.c
    first = conn.execute(
        sa.update(fanouts)
        .where(c.job_id == owner.job_id)
        .values(
            cursor=batch.cursor, state=batch.state, read=c.read + batch.read, filtered=c.filtered + batch.filtered,
            new=c.new + added.new, updated=c.updated + added.updated, existing=c.existing + added.existing,
            invalid=c.invalid + len(batch.failures),
        )
        .returning(c.invalid)
    ).scalar_one() - len(batch.failures)  # fmt: skip
    if batch.failures:
        rows = [
            {"job_id": owner.job_id, "number": number, "entity_key": failure.where, "error_class": failure.error_class,
             "message": failure.message}
            for number, failure in enumerate(batch.failures, first + 1)
        ]  # fmt: skip
        conn.execute(sa.insert(sync_problems), rows)


def end_reading(conn: Connection, owner: Owner, *, state: Any = None, keep_state: bool) -> bool:
    """All is read: there will be no more children. ``keep_state``: the next incremental run begins at ``state``.

    False: nothing was written, the SYNC is to stop.
    """
    job = _guard(conn, owner)
    if job is None:
        return False
    conn.execute(sa.update(fanouts).where(fanouts.c.job_id == owner.job_id).values(reading=False))
    if job.reading:
        _stage(conn, owner, job, "sync.succeeded")
    if keep_state:
        entities.set_state(conn, job.tenant, job.domain, owner.job_id, state)
    announce(conn)
    return True


def add_files(conn: Connection, owner: Owner, batch: Sifted, written: Mapping[str, int]) -> bool:
    """So many entities went to each target in one file, without children. False: nothing was written.

    The same transaction ends the reading: once that is done, nothing is counted again.
    """
    job = _guard(conn, owner)
    if job is None:
        return False
    if not job.reading:
        return True
    _stage(conn, owner, job, "export.started")
    _move_on(conn, owner, batch, Added())
    for target, count in written.items():
        conn.execute(sa.insert(fanout_deltas).values(**delta(owner.job_id, target, success=count)))
    return True


# --- what is left of an earlier fan-out --------------------------------------------------------------------------


def unfinished_business(conn: Connection, parent_id: UUID, behind: UUID | None, limit: int) -> list[Row[Any]]:
    """Children of an earlier SYNC that failed, or have not come to an end, in the order of their ids, behind one of them.

    Those that still live may fail yet: whoever takes them up stands behind them, and is taken up next.
    """
    query = (
        sa.select(jobs.c.id, jobs.c.entity_key)
        .where(
            jobs.c.parent_id == parent_id,
            jobs.c.entity_key.is_not(None),
            jobs.c.status != Status.COMPLETED.value,
        )
        .order_by(jobs.c.id)
        .limit(limit)
    )
    if behind is not None:
        query = query.where(jobs.c.id > behind)
    return list(conn.execute(query))


def changed_meanwhile(conn: Connection, parent_id: UUID, behind: int, limit: int) -> list[Row[Any]]:
    """Entities that changed while an earlier SYNC read, and had their child by then, behind the problem of that number."""
    query = (
        sa.select(sync_problems.c.number, sync_problems.c.entity_key)
        .where(
            sync_problems.c.job_id == parent_id,
            sync_problems.c.number > behind,
            sync_problems.c.error_class == TWICE,
        )
        .order_by(sync_problems.c.number)
        .limit(limit)
    )
    return list(conn.execute(query))


def partly_done(conn: Connection, job_id: UUID) -> Row[Any] | None:
    """The fan-out of a SYNC that ended FAILED·partial (invalid, cursor); None: it ended otherwise, or is gone."""
    found: Any = conn.execute(
        sa.select(fanouts.c.invalid, fanouts.c.cursor)
        .join(jobs, jobs.c.id == fanouts.c.job_id)
        .where(jobs.c.id == job_id, jobs.c.status == Status.FAILED.value, jobs.c.reason == Reason.PARTIAL.value)
    ).first()
    return None if found is None else found
