"""What operators do: queues, tenants and workers, for all tenants at once; each tenant's secrets and connectors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from jobq.connections import Connector, StoredConnector
from jobq.errors import InvalidInput, NotFound
from jobq.quotas import Quotas
from jobq.settings import Quota, Settings
from jobq.store import connectors, control, quotas, secrets, workers
from jobq.store.database import Connection, Database
from jobq.store.wakeup import announce, ring
from jobq.validation import parse, tenant_name
from jobq.vault import Vault

_SECRET_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_MAX_SECRET = 64 * 1024
_MOST = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue as it is now."""

    name: str
    ready: int
    """Jobs that wait for room; counting stops at 10,000."""
    in_flight: int
    slots: int
    """Worker slots of its live, undrained workers."""
    limit: int | None
    paused: bool


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant's share, limit and quota, and what it has in flight."""

    name: str
    weight: float
    limit: int | None
    in_flight: int
    quota: Quota


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A worker process."""

    id: UUID
    name: str
    queues: dict[str, int]
    running: int
    version: str
    started_at: datetime
    renewed_at: datetime
    state: str
    """live, draining, late (its lease ran out, nobody declared it dead yet), stopped or dead."""


class Queues:
    """Every change holds from the moment that the call returned, for any number of schedulers."""

    def __init__(self, database: Database, actor: str) -> None:
        self._database, self._actor = database, actor

    def list(self) -> list[Queue]:
        """Queues with jobs, workers or a setting."""
        with self._database.read() as conn:
            return [Queue(**row) for row in control.list_queues(conn)]

    def pause(self, name: str) -> None:
        """No job of the queue starts until it is resumed; running ones go on."""
        self._database.run(lambda conn: control.pause_queue(conn, _queue(name), self._actor))

    def resume(self, name: str) -> None:
        """Let its jobs start again."""
        self._change(lambda conn: control.resume_queue(conn, _queue(name), self._actor))

    def limit(self, name: str, limit: int | None) -> None:
        """At most so many of its jobs in flight; None: no limit."""
        _positive(limit)
        self._change(lambda conn: control.limit_queue(conn, _queue(name), limit, self._actor))

    def _change(self, work: Any) -> None:
        def both(conn: Any) -> None:
            work(conn)
            announce(conn)

        self._database.run(both)
        ring(self._database)


class Tenants:
    """Shares, limits and quotas of tenants."""

    def __init__(self, database: Database, quotas: Quotas, actor: str) -> None:
        self._database, self._quotas, self._actor = database, quotas, actor

    def list(self) -> list[Tenant]:
        """Tenants with a setting or with jobs in flight."""
        with self._database.read() as conn:
            found, own = control.list_tenants(conn), quotas.read_all(conn)
        default = self._quotas.settings.quota
        return [Tenant(**row, quota=default.model_copy(update=own.get(row["name"], {}))) for row in found]

    def weight(self, name: str, weight: float) -> None:
        """Its share of the room, relative to the others' (default 1)."""
        tenant_name(name, "/name")
        if not 0 < weight <= 1_000_000:
            raise InvalidInput("A weight is above 0 and at most 1,000,000.", pointer="/weight")
        self._database.run(lambda conn: control.set_tenant(conn, name, self._actor, weight=weight))

    def limit(self, name: str, limit: int | None) -> None:
        """At most so many of its jobs in flight, over all queues; None: no limit."""
        tenant_name(name, "/name")
        _positive(limit)
        self._database.run(lambda conn: control.set_tenant(conn, name, self._actor, limit=limit, unlimit=limit is None))
        ring(self._database)

    def quota(self, name: str, **changes: float | str | None) -> Quota:
        """Change what the tenant may have at once (``jobq.settings.Quota``), and return its quota then.

        None: no limit; ``"default"``: what the installation says. What is not named stays as it is. It holds at once in
        this process, within five seconds in others. It is judged at the door: what is there already stays.
        """
        tenant_name(name, "/name")
        defaults = {field for field, value in changes.items() if value == "default"}
        wanted = parse(Quota, {field: None if field in defaults else value for field, value in changes.items()})
        values = {field: getattr(wanted, field) for field in changes if field not in defaults}
        if changes:
            self._database.run(lambda conn: quotas.change(conn, name, values, defaults, self._actor))
            self._quotas.forget(name)
        return self._quotas.of(name)


class Workers:
    """The worker processes, on any number of machines."""

    def __init__(self, database: Database, actor: str) -> None:
        self._database, self._actor = database, actor

    def list(self, *, everything: bool = False) -> list[WorkerInfo]:
        """Live workers, newest first; ``everything``: those that ended too, while they are remembered."""
        with self._database.read() as conn:
            rows = workers.list_workers(conn, everything=everything)
        return [
            WorkerInfo(
                row.id, row.name, row.queues, row.running, row.version, row.started_at, row.renewed_at, _state(row)
            )
            for row in rows
        ]

    def drain(self, worker: UUID) -> None:
        """It takes no more jobs, lets the running ones end, and exits. Raises NotFound if it does not live."""

        def work(conn: Connection) -> None:
            if not workers.set_draining(conn, worker):
                raise NotFound(f"There is no live worker {worker}.", hint="jobq worker list shows them.")
            control.add_event(conn, "", f"worker:{worker}", "drain", self._actor)

        self._database.run(work)


class Secrets:
    """A tenant's secrets: written and listed here, read by workers only."""

    def __init__(self, database: Database, settings: Settings, tenant: str, actor: str) -> None:
        self._database, self._settings, self._tenant, self._actor = database, settings, tenant, actor

    def set(self, name: str, value: str) -> None:
        """Store a secret, encrypted. Jobs that start from now on get the new value."""
        if not _SECRET_NAME.fullmatch(name):
            raise InvalidInput(
                f"{name!r} is no name of a secret.", hint="Letters, digits, '_', '.', '-'.", pointer="/name"
            )
        if not value or len(value.encode()) > _MAX_SECRET:
            raise InvalidInput("A secret has 1 byte to 64 KiB.", pointer="/value")
        sealed = Vault(self._settings).seal(self._tenant, name, value)

        def work(conn: Connection) -> None:
            secrets.put(conn, self._tenant, name, sealed)
            control.add_event(conn, self._tenant, f"secret:{name}", "set", self._actor)

        self._database.run(work)

    def list(self) -> Sequence[tuple[str, datetime]]:
        """Names and the instants of their last change; never a value."""
        with self._database.read() as conn:
            return secrets.list_names(conn, self._tenant)

    def remove(self, name: str) -> None:
        """Forget a secret. Raises NotFound."""

        def work(conn: Connection) -> None:
            if not secrets.remove(conn, self._tenant, name):
                raise NotFound(f"There is no secret {name!r}.")
            control.add_event(conn, self._tenant, f"secret:{name}", "remove", self._actor)

        self._database.run(work)


@dataclass(frozen=True, slots=True)
class AppliedConnector:
    """What ``Connectors.apply`` did with one: ``created``, ``updated`` or ``unchanged``."""

    connector: StoredConnector
    what: str


class Connectors:
    """A tenant's stored connectors: where Syncs read and write, said once. They hold names of secrets, never secrets."""

    def __init__(self, database: Database, settings: Settings, tenant: str, actor: str) -> None:
        self._database, self._settings, self._tenant, self._actor = database, settings, tenant, actor

    def put(self, **fields: Any) -> StoredConnector:
        """Store one, new or in place of the one of that name; ``fields``: those of ``jobq.connections.Connector``.

        Syncs that start from now on use it. Raises InvalidInput ``unknown_connector``, ``secret_in_config``, ….
        """
        return self.apply([parse(Connector, fields)])[0].connector

    def apply(self, asked: Iterable[Connector]) -> list[AppliedConnector]:
        """Bring connectors to what is said, by name, all or none; those that are not named are left alone."""
        checked = list(asked)
        for connector in checked:
            connector.check(self._settings.policy)
        return self._database.run(lambda conn: [self._apply_one(conn, connector) for connector in checked])

    def _apply_one(self, conn: Connection, connector: Connector) -> AppliedConnector:
        what = connectors.put(conn, self._tenant, connector)
        if what != "unchanged":
            control.add_event(conn, self._tenant, f"connector:{connector.name}", what, self._actor)
        stored = connectors.get(conn, self._tenant, connector.name)
        assert stored is not None
        return AppliedConnector(stored, what)

    def get(self, name: str) -> StoredConnector:
        """Raises NotFound."""
        with self._database.read() as conn:
            if (found := connectors.get(conn, self._tenant, name)) is None:
                raise _no_connector(name)
            return found

    def list(self) -> Sequence[StoredConnector]:
        """All, by name."""
        with self._database.read() as conn:
            return connectors.list_all(conn, self._tenant)

    def remove(self, name: str) -> None:
        """Forget one. Raises NotFound. A Sync that names it fails from now on."""

        def work(conn: Connection) -> None:
            if not connectors.remove(conn, self._tenant, name):
                raise _no_connector(name)
            control.add_event(conn, self._tenant, f"connector:{name}", "remove", self._actor)

        self._database.run(work)


def _no_connector(name: str) -> NotFound:
    return NotFound(f"There is no connector {name[:100]!r}.", hint="jobq connector list shows them.")


def _state(row: Any) -> str:
    if row.stopped_at is not None:
        return "stopped"
    if row.dead_at is not None:
        return "dead"
    if row.lease_until < row.now:
        return "late"
    return "live" if row.draining_at is None else "draining"


def _queue(name: str) -> str:
    if not name or len(name) > 63:
        raise InvalidInput(f"{name!r} is no name of a queue.", pointer="/queue")
    return name


def _positive(limit: int | None) -> None:
    if limit is not None and limit > _MOST:
        raise InvalidInput(f"A limit is at most {_MOST:,}; null is none.", pointer="/limit")
    if limit is not None and limit < 1:
        raise InvalidInput("A limit is at least 1.", hint="To stop everything, pause the queue.", pointer="/limit")
