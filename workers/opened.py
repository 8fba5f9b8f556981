"""Connectors that are open in this worker: made from a spec, the stored connectors and the tenant's secrets.

Targets are kept open between jobs, and looked up anew after a minute, so that a changed connector or a rotated secret
is used from then on; what nobody uses any more is closed.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from jobq.connections import Connection, Resolved, configuration
from jobq.connectors import SOURCES, TARGETS, Access, ConnectorError, Source, Target, connector_class
from jobq.settings import Settings
from jobq.store.connectors import resolve
from jobq.store.database import Database
from workers.keyring import Keyring
from workers.redaction import Redaction

_FRESH = 60.0


@dataclass(slots=True)
class _Open:
    """A target, its secrets, how many jobs use it now, and since when it is open."""

    target: Target
    redaction: Redaction
    opened: float = field(default_factory=time.monotonic)
    users: int = 0
    dropped: bool = False


class Opened:
    """Opens sources and targets. Used from the worker's event loop; the database is read in threads."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings, self._database = settings, database
        self._keyring = Keyring(settings, database)
        self._targets: dict[str, _Open] = {}
        self._opening: dict[str, asyncio.Lock] = {}

    @asynccontextmanager
    async def source(self, tenant: str, spec: Connection, access_log: Any) -> AsyncIterator[Source]:
        """A source of its own for one SYNC. Raises JobQError for what is not there or not allowed."""
        source: Source
        source, redaction = await self._make(SOURCES, tenant, spec, access_log)
        try:
            with _concealing(redaction):
                yield source
        finally:
            await source.close()

    @asynccontextmanager
    async def target(self, tenant: str, spec: Connection) -> AsyncIterator[Target]:
        """A target that jobs share."""
        key = json.dumps([tenant, spec.connector, spec.type, spec.config, spec.secrets], sort_keys=True)
        found = self._targets.get(key)
        if found is None or time.monotonic() - found.opened > _FRESH:
            found = await self._renewed(key, tenant, spec)
        found.users += 1
        try:
            with _concealing(found.redaction):
                yield found.target
        finally:
            found.users -= 1
            if found.dropped and not found.users:
                await found.target.close()

    async def _renewed(self, key: str, tenant: str, spec: Connection) -> _Open:
        lock = self._opening.setdefault(key, asyncio.Lock())
        async with lock:
            before = self._targets.get(key)
            if before is not None and time.monotonic() - before.opened <= _FRESH:
                return before
            self._targets[key] = made = _Open(*await self._make(TARGETS, tenant, spec, None))
            if before is not None:
                await self._drop(before)
        return made

    @staticmethod
    async def _drop(old: _Open) -> None:
        old.dropped = True
        if not old.users:
            await old.target.close()

    async def _make(self, group: str, tenant: str, spec: Connection, access_log: Any) -> tuple[Any, Redaction]:
        resolved, secrets = await asyncio.to_thread(self._look_up, tenant, spec)
        found = connector_class(group, resolved.type)
        config = configuration(found.config, resolved.config, resolved.secrets)
        config.check(self._settings.policy)
        redaction = Redaction(secrets.values())
        logged = {} if access_log is None else {"log": lambda text: access_log(redaction.hide(text))}
        return found(config, Access(self._settings.policy, secrets, **logged)), redaction

    def _look_up(self, tenant: str, spec: Connection) -> tuple[Resolved, dict[str, str]]:
        with self._database.read() as conn:
            resolved = resolve(conn, tenant, [("", spec)])[0]
        values = self._keyring.read(tenant, resolved.secrets.values()) if resolved.secrets else {}
        return resolved, {name: values[secret] for name, secret in resolved.secrets.items()}

    def target_class(self, tenant: str, spec: Connection) -> type[Any]:
        """The class of a target that may not be open. Reads the database: call it in a thread."""
        with self._database.read() as conn:
            return connector_class(TARGETS, resolve(conn, tenant, [("", spec)])[0].type)

    async def close(self) -> None:
        """Close every target."""
        for each in self._targets.values():
            await self._drop(each)
        self._targets.clear()


@contextmanager
def _concealing(redaction: Redaction) -> Iterator[None]:
    """No error leaves a connector with one of its secrets, whoever wrote the connector, and whoever it quotes."""
    try:
        yield
    except ConnectorError as error:
        error.args = (redaction.hide_cut(str(error)),)
        raise
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
        if (hidden := redaction.hide(told)) == told:
            raise
        raise ConnectorError(hidden, error_class=type(error).__name__) from None
