"""The entity store: the last known content of each entity of a domain, and what each target has of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from jobq.models import Replicated
from jobq.store.sql import Json, id_list, incoming, insert, is_one_of, now, rows_json
from jobq.store.tables import entities, sync_states, watermarks


@dataclass(frozen=True, slots=True)
class Content:
    """An entity as a SYNC mapped it. ``hash`` decides whether it changed; ``body`` is its JSON text."""

    key: str
    hash: str
    body: Any


def upsert(conn: Connection, tenant: str, domain: str, job_id: UUID, found: Sequence[Content]) -> dict[str, int]:
    """Store what is new or changed; returns the versions of exactly those: 1 is a new entity.

    Every entity of ``found`` is locked until the transaction ends, in the order of the keys, changed or not: two
    SYNCs of one domain take turns at each entity.
    """
    if not found:
        return {}
    rows = [
        {"key": each.key, "hash": each.hash, "body": each.body} for each in sorted(found, key=lambda each: each.key)
    ]
    parameters = {"tenant": tenant, "domain": domain, "job": job_id, "found": rows_json(rows)}
    return {row.key: row.version for row in conn.execute(_upsert(conn.dialect.name), parameters)}


@cache
def _upsert(dialect: str) -> Any:
    new = incoming(dialect, "found", {"key": sa.Text(), "hash": sa.Text(), "body": Json})
    rows = sa.select(
        sa.bindparam("tenant", type_=sa.Text), sa.bindparam("domain", type_=sa.Text), new.c.key,
        sa.literal_column("1"), new.c.hash, new.c.body, sa.bindparam("job", type_=sa.Uuid), now(), now(),
    ).where(new.c.key.is_not(None))  # fmt: skip
    columns = ["tenant", "domain", "key", "version", "hash", "body", "job_id", "created_at", "updated_at"]
    statement = insert(dialect, entities).from_select(columns, rows)
    changed = statement.excluded
    return statement.on_conflict_do_update(
        index_elements=["tenant", "domain", "key"],
        set_={
            "version": entities.c.version + 1, "hash": changed.hash, "body": changed.body, "job_id": changed.job_id,
            "updated_at": changed.updated_at,
        },
        where=entities.c.hash != changed.hash,
    ).returning(entities.c.key, entities.c.version)  # fmt: skip


def lock(conn: Connection, tenant: str, domain: str, keys: Sequence[str]) -> None:
    """Lock stored entities until the transaction ends, as ``upsert`` does."""
    if keys:
        conn.execute(_lock(conn.dialect.name), {"asked": each_at(Place(tenant, domain, ""), keys)}).all()


@cache
def _lock(dialect: str) -> Any:
    asked, e = incoming(dialect, "asked", PLACES).c, entities.c
    stored = sa.and_(e.tenant == asked.tenant, e.domain == asked.domain, e.key == asked.key)
    return (
        sa.select(e.key)
        .select_from(asked.key.table.join(entities, stored))
        .order_by(e.key)
        .with_for_update(of=entities)
    )


def get(conn: Connection, tenant: str, domain: str, key: str) -> Row[Any] | None:
    """The stored entity."""
    c = entities.c
    return conn.execute(sa.select(entities).where(c.tenant == tenant, c.domain == domain, c.key == key)).first()


def hashes(conn: Connection, tenant: str, domain: str, keys: Iterable[str]) -> dict[str, str]:
    """The content hashes of those of the keys that are stored."""
    parameters = {"tenant": tenant, "domain": domain, "keys": id_list(conn.dialect.name, keys)}
    return {row.key: row.hash for row in conn.execute(_hashes(conn.dialect.name), parameters)}


@cache
def _hashes(dialect: str) -> Any:
    c = entities.c
    return sa.select(c.key, c.hash).where(
        c.tenant == sa.bindparam("tenant", type_=sa.Text),
        c.domain == sa.bindparam("domain", type_=sa.Text),
        is_one_of(dialect, c.key, "keys"),
    )


# --- watermarks ------------------------------------------------------------------------------------------------


class Place(NamedTuple):
    """A target, for the entities of one domain."""

    tenant: str
    domain: str
    target: str


def lacking(conn: Connection, at: Place, rules: str, keys: Iterable[str]) -> tuple[set[str], set[str]]:
    """Which of these stored entities the target does not have as they are now; and which its conditions filtered.

    ``rules``: the fingerprint of its mapping and conditions; what was written by others is written again.
    """
    parameters = {"rules": rules, "asked": each_at(at, keys)}
    rows = conn.execute(_lacking(conn.dialect.name), parameters).all()
    behind = {row.key for row in rows if not row.current}
    return behind, {row.key for row in rows if row.current and row.skipped}


PLACES: dict[str, Any] = {"tenant": sa.Text(), "domain": sa.Text(), "target": sa.Text(), "key": sa.Text()}


def each_at(at: Place, keys: Iterable[str]) -> str:
    """The parameter that ``incoming`` reads as ``PLACES``.

    Each row says all of its place. Of a tenant and a domain that come as values of their own a planner without
    statistics believes that they hold next to nothing, and walks over them.
    """
    return rows_json([{**at._asdict(), "key": key} for key in sorted(keys)])


@cache
def _lacking(dialect: str) -> Any:
    """Stored entities without a watermark that is current and was written: behind, or filtered as they are."""
    asked, e, w = incoming(dialect, "asked", PLACES).c, entities.c, watermarks.c
    stored = sa.and_(e.tenant == asked.tenant, e.domain == asked.domain, e.key == asked.key)
    mark = sa.and_(
        w.tenant == asked.tenant, w.domain == asked.domain, w.key == asked.key, w.target == asked.target,
        w.version >= e.version, w.rules == sa.bindparam("rules", type_=sa.Text),
    )  # fmt: skip
    current = sa.case((w.key.is_not(None), 1), else_=0)
    return (
        sa.select(e.key, current.label("current"), w.skipped)
        .select_from(asked.key.table.join(entities, stored).outerjoin(watermarks, mark))
        .where(sa.or_(w.key.is_(None), w.skipped))
    )


_MARK: dict[str, Any] = {
    "tenant": sa.Text(), "domain": sa.Text(), "target": sa.Text(), "key": sa.Text(), "version": sa.Integer(),
    "rules": sa.Text(), "skipped": sa.Boolean(), "external_id": sa.Text(), "job_id": sa.Uuid(),
}  # fmt: skip


def advance(conn: Connection, marks: Iterable[tuple[UUID, Replicated]]) -> None:
    """What targets have now, and from which job. A watermark never goes back, and keeps the external id it knows.

    Of several marks for one place the one with the highest version counts.
    """
    newest: dict[tuple[str, str, str, str], dict[str, Any]] = {}
    for job_id, mark in marks:
        place = (mark.tenant, mark.domain, mark.key, mark.target)
        if place not in newest or newest[place]["version"] <= mark.version:
            newest[place] = {
                "tenant": mark.tenant, "domain": mark.domain, "target": mark.target, "key": mark.key,
                "version": mark.version, "rules": mark.rules, "skipped": mark.what == "skipped",
                "external_id": mark.external_id, "job_id": job_id,
            }  # fmt: skip
    if newest:
        conn.execute(_advance(conn.dialect.name), {"marks": rows_json([newest[place] for place in sorted(newest)])})


@cache
def _advance(dialect: str) -> Any:
    new = incoming(dialect, "marks", _MARK)
    columns = {**{name: new.c[name] for name in _MARK}, "written_at": now()}
    rows = sa.select(*(value.label(name) for name, value in columns.items())).where(new.c.key.is_not(None))
    statement = insert(dialect, watermarks).from_select(list(columns), rows)
    mark = statement.excluded
    return statement.on_conflict_do_update(
        index_elements=["tenant", "domain", "key", "target"],
        set_={
            "version": mark.version, "rules": mark.rules, "skipped": mark.skipped, "job_id": mark.job_id,
            "external_id": sa.func.coalesce(mark.external_id, watermarks.c.external_id),
            "written_at": mark.written_at,
        },
        where=watermarks.c.version <= mark.version,
    )  # fmt: skip


# --- the state of a source ---------------------------------------------------------------------------------------


def get_state(conn: Connection, tenant: str, domain: str) -> Row[Any] | None:
    """How far the domain was read: ``state`` is the source's own word for it."""
    c = sync_states.c
    return conn.execute(sa.select(sync_states).where(c.tenant == tenant, c.domain == domain)).first()


def list_states(conn: Connection, tenant: str) -> list[Row[Any]]:
    """The domains of a tenant that were read to their end, by name."""
    c = sync_states.c
    return list(conn.execute(sa.select(sync_states).where(c.tenant == tenant).order_by(c.domain)))


def set_state(conn: Connection, tenant: str, domain: str, job_id: UUID, state: Mapping[str, Any] | Any) -> None:
    """A SYNC has read everything up to here."""
    values = {"tenant": tenant, "domain": domain, "state": state, "job_id": job_id, "updated_at": now()}
    statement = insert(conn.dialect.name, sync_states).values(**values)
    conn.execute(
        statement.on_conflict_do_update(
            index_elements=["tenant", "domain"], set_={name: values[name] for name in ("state", "job_id", "updated_at")}
        )
    )


def reset_state(conn: Connection, tenant: str, domain: str) -> bool:
    """The next incremental SYNC reads everything; what targets have is still known. False: there was no state."""
    c = sync_states.c
    done = conn.execute(sa.delete(sync_states).where(c.tenant == tenant, c.domain == domain))
    return bool(done.rowcount)


# --- what a child of a SYNC is to write ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Payload:
    """An entity as it is stored when a child begins, and what the child's target has of it (``mark_…``)."""

    version: int
    body: Any
    mark_version: int | None
    mark_rules: str | None
    mark_skipped: bool | None
    external_id: str | None
    others: Mapping[str, tuple[int, bool]] = field(default_factory=dict)
    """What the domain's other targets have of it: the version, and whether their conditions kept it from them."""


def read_payloads(conn: Connection, children: Sequence[Row[Any]]) -> dict[UUID, Payload]:
    """What these children (rows of jobs) are to write: one statement for all."""
    if not children:
        return {}
    rows = [
        {"id": row.id, "tenant": row.tenant, "domain": row.domain, "target": row.target, "key": row.entity_key}
        for row in children
    ]
    found = conn.execute(_payloads(conn.dialect.name), {"children": rows_json(rows)})
    return {
        row.id: Payload(
            row.version, row.body, row.mark_version, row.mark_rules, row.mark_skipped, row.external_id,
            _marks(row.others),
        )
        for row in found
    }  # fmt: skip


def _marks(others: str | None) -> dict[str, tuple[int, bool]]:
    marks = (mark.split(" ", 2) for mark in others.split("\n")) if others else ()
    return {target: (int(version), skipped == "1") for version, skipped, target in marks}


@cache
def _payloads(dialect: str) -> Any:
    columns: dict[str, Any] = {
        "id": sa.Uuid(), "tenant": sa.Text(), "domain": sa.Text(), "target": sa.Text(), "key": sa.Text()
    }  # fmt: skip
    child, e, w = incoming(dialect, "children", columns), entities.c, watermarks.c
    same_entity = sa.and_(e.tenant == child.c.tenant, e.domain == child.c.domain, e.key == child.c.key)
    mark = sa.and_(
        w.tenant == child.c.tenant, w.domain == child.c.domain, w.key == child.c.key, w.target == child.c.target
    )  # fmt: skip
    other = watermarks.alias("other")
    skipped = sa.case((other.c.skipped, " 1 "), else_=" 0 ")
    mark_of_other = sa.cast(other.c.version, sa.Text).concat(skipped).concat(other.c.target)
    others = sa.select(sa.func.aggregate_strings(mark_of_other, "\n")).where(
        other.c.tenant == child.c.tenant, other.c.domain == child.c.domain, other.c.key == child.c.key,
        other.c.target != child.c.target,
    )  # fmt: skip
    return sa.select(
        child.c.id, e.version, e.body, w.version.label("mark_version"), w.rules.label("mark_rules"),
        w.skipped.label("mark_skipped"), w.external_id, others.correlate(child).scalar_subquery().label("others"),
    ).select_from(child.join(entities, same_entity).outerjoin(watermarks, mark))  # fmt: skip
