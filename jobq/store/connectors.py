"""Stored connectors of tenants, and what a Sync refers to: looked up when it is accepted, and again when it runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from jobq.connections import Connection as Reference
from jobq.connections import Connector, Resolved, StoredConnector, check_connection
from jobq.errors import InvalidInput
from jobq.settings import Policy
from jobq.store import secrets
from jobq.store.sql import insert, now
from jobq.store.tables import connectors
from jobq.sync import Sync

_SHOWN = [column for column in connectors.c if column.name != "tenant"]


def put(conn: Connection, tenant: str, connector: Connector) -> Literal["created", "updated", "unchanged"]:
    """Store a connector, new or in place of the one of that name; what is the same is not touched."""
    values: dict[str, Any] = {"type": connector.type, "config": connector.config, "secrets": connector.secrets}
    before = get(conn, tenant, connector.name)
    if before is not None and all(getattr(before, name) == value for name, value in values.items()):
        return "unchanged"
    values["updated_at"] = now()
    conn.execute(
        insert(conn.dialect.name, connectors)
        .values(tenant=tenant, name=connector.name, created_at=now(), **values)
        .on_conflict_do_update(index_elements=["tenant", "name"], set_=values)
    )
    return "created" if before is None else "updated"


def get(conn: Connection, tenant: str, name: str) -> StoredConnector | None:
    """The connector of that name; None: there is none."""
    return find(conn, tenant, [name]).get(name)


def find(conn: Connection, tenant: str, names: Iterable[str]) -> dict[str, StoredConnector]:
    """Those of the names that exist."""
    query = sa.select(*_SHOWN).where(connectors.c.tenant == tenant, connectors.c.name.in_(sorted(set(names))))
    return {row.name: _as_connector(row) for row in conn.execute(query)}


def list_all(conn: Connection, tenant: str) -> list[StoredConnector]:
    """All of a tenant, by name."""
    query = sa.select(*_SHOWN).where(connectors.c.tenant == tenant).order_by(connectors.c.name)
    return [_as_connector(row) for row in conn.execute(query)]


def remove(conn: Connection, tenant: str, name: str) -> bool:
    """Forget a connector; False: there was none of that name."""
    mine = sa.and_(connectors.c.tenant == tenant, connectors.c.name == name)
    return bool(conn.execute(sa.delete(connectors).where(mine)).rowcount)


def _as_connector(row: Row[Any]) -> StoredConnector:
    return StoredConnector(**row._asdict())


# --- what a Sync refers to -------------------------------------------------------------------------------------------


def resolve(conn: Connection, tenant: str, references: Sequence[tuple[str, Reference]]) -> list[Resolved]:
    """Each connection with what its stored connector adds; ``references``: where it is in the spec, and itself.

    Fields of the connection win over those of the stored connector. InvalidInput ``unknown_connector``.
    """
    names = [reference.connector for _, reference in references if reference.connector is not None]
    stored = find(conn, tenant, names) if names else {}
    found = []
    for pointer, reference in references:
        config, named = reference.config, reference.secrets
        type_ = reference.type
        if reference.connector is not None:
            base = stored.get(reference.connector)
            if base is None:
                raise InvalidInput(
                    f"There is no connector {reference.connector!r}.", code="unknown_connector",
                    hint="jobq connector list shows them, jobq connector apply -f FILE makes some.",
                    pointer=f"{pointer}/connector",
                )  # fmt: skip
            type_, config, named = base.type, {**base.config, **config}, {**base.secrets, **named}
        assert type_ is not None  # a connection has either
        found.append(Resolved(type_, config, named))
    return found


def check_references(conn: Connection, tenant: str, sync: Sync | dict[str, Any], policy: Policy) -> None:
    """Everything that a Sync names is there, and fits. ``sync``: the spec, or it as JSON.

    InvalidInput ``unknown_connector`` and ``unknown_secret``, and whatever the connector's class or the operator say of
    its whole configuration. A worker meets them again if they are removed later.
    """
    sync = sync if isinstance(sync, Sync) else Sync.model_validate(sync)
    ends = list(sync.connections())
    found = resolve(conn, tenant, [(pointer, reference) for pointer, _, reference in ends])
    for (pointer, group, reference), one in zip(ends, found, strict=True):
        if reference.connector is not None:  # the others were judged with the spec itself
            check_connection(group, one, policy, pointer)
    known = secrets.find(conn, tenant, {name for one in found for name in one.secrets.values()})
    for (pointer, _, reference), one in zip(ends, found, strict=True):
        for name, secret in one.secrets.items():
            if secret not in known:
                place = f"/secrets/{name}" if name in reference.secrets else "/connector"
                raise InvalidInput(
                    f"There is no secret {secret!r}.", code="unknown_secret", pointer=pointer + place,
                    hint=f"jobq secret set {secret} stores it.",
                )  # fmt: skip
