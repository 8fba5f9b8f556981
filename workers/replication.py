"""REPLICATION: one entity to one target. Conditions, then mapping, then the write; the rest is the runner's."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from datetime import timedelta
from typing import Any
from uuid import UUID

from jobq.connectors import ConnectorError, Entity, NotNow
from jobq.mapping import MappingError
from jobq.models import Outcome, Replicated
from jobq.plugins import BUILT_IN, Context
from jobq.settings import Settings
from jobq.store.database import Database
from jobq.store.entities import Payload
from jobq.store.jobs import get_data
from jobq.sync import Replication, Sync
from jobq.validation import parse
from workers.opened import Opened
from workers.plan import Export, Plan

_PLANS = 256
_NOTHING = (0, False)
_PATIENCE = timedelta(seconds=30)
"""How long a target is spared that says "not now" without saying until when."""


class ReplicationExecutor:
    """Writes what the child's SYNC says, as it is stored when the child begins."""

    kind = BUILT_IN["REPLICATION"]
    with_store = True

    def __init__(self) -> None:
        self._plans: OrderedDict[UUID, Plan] = OrderedDict()

    async def open(self, settings: Settings, database: Database) -> None:
        """Called once, before the first job."""
        self._database = database
        self._opened = Opened(settings, database)

    async def close(self) -> None:
        """Close the targets."""
        await self._opened.close()

    async def execute(self, spec: Replication, ctx: Context) -> Outcome:
        """Skipped where the target has the entity, or its conditions filter it; else what the target said."""
        assert ctx.job.parent_id is not None
        payload: Payload | None = ctx.job.payload
        if payload is None:
            return Outcome.invalid(f"The entity {spec.entity_key!r} is not in the store any more.")
        plan = await self._plan(ctx.job.parent_id)
        export = plan.exports[spec.target]
        mark = _Mark(spec, ctx, export, payload)
        if mark.is_current:
            return mark.skipped() if payload.mark_skipped else mark.succeeded("existing", payload.external_id)
        marks = {name: payload.others.get(name, _NOTHING) for name in export.spec.after}
        if behind := tuple(name for name, (version, _) in marks.items() if version < payload.version):
            return Outcome.overtook(behind, f"{', '.join(behind)} has not got this content of the entity yet")
        if any(skipped for _, skipped in marks.values()):
            return Outcome.skipped("the target before it filtered the entity")
        try:
            if not export.takes(payload.body):
                return mark.skipped()
            entity = Entity(
                spec.entity_key, export.payload(payload.body), str(ctx.job.id), payload.external_id
            )  # fmt: skip
            async with self._opened.target(ctx.job.tenant, export.spec) as target:
                with ctx.step("write"):
                    written = await target.write(entity)
        except MappingError as error:
            return Outcome.failed(error.message, error_class=error.error_class, retry=False)
        except NotNow as error:
            return mark.not_now(error)
        except ConnectorError as error:
            return mark.failed(error)
        known = payload.external_id is not None or payload.mark_version is not None
        created = not known if written.created is None else written.created
        return mark.succeeded("success" if created else "updated", written.external_id)

    async def _plan(self, parent_id: UUID) -> Plan:
        """The SYNC's spec, compiled: it never changes."""
        plan = self._plans.get(parent_id)
        if plan is None:
            plan = self._plans[parent_id] = await asyncio.to_thread(self._read_plan, parent_id)
            if len(self._plans) > _PLANS:
                self._plans.popitem(last=False)
        self._plans.move_to_end(parent_id)
        return plan

    def _read_plan(self, parent_id: UUID) -> Plan:
        with self._database.read() as conn:
            return Plan(parse(Sync, get_data(conn, parent_id).spec, "/spec"))


class _Mark:
    """The outcomes of one child, each with what its target has now."""

    def __init__(self, spec: Replication, ctx: Context, export: Export, payload: Payload) -> None:
        self._spec, self._tenant, self._export, self._payload = spec, ctx.job.tenant, export, payload

    @property
    def is_current(self) -> bool:
        """Has the target this version already, by these rules?"""
        version = self._payload.mark_version
        return (
            version is not None
            and version >= self._payload.version
            and self._payload.mark_rules == self._export.rules
        )  # fmt: skip

    def _replicated(self, what: str, external_id: str | None) -> Replicated:
        return Replicated(
            self._tenant, self._spec.domain, self._spec.target, self._spec.entity_key, self._payload.version,
            self._export.rules, what, external_id,
        )  # fmt: skip

    def succeeded(self, what: str, external_id: str | None) -> Outcome:
        """The target has it."""
        external_id = external_id or self._payload.external_id
        result: dict[str, Any] = {"report": what, "external_id": external_id, "version": self._payload.version}
        return Outcome.succeeded(result, target=self._target, replicated=self._replicated(what, external_id))

    def skipped(self) -> Outcome:
        """Its conditions keep it from the target."""
        message = f"the conditions of {self._spec.target} do not take this entity"
        return Outcome.skipped(message, replicated=self._replicated("skipped", None))

    def not_now(self, error: NotNow) -> Outcome:
        """The target asked to wait: this child, and for the time all others of the target."""
        return Outcome.requeued(
            error.after or _PATIENCE, str(error), error_class=error.error_class, target=self._target
        )  # fmt: skip

    def failed(self, error: ConnectorError) -> Outcome:
        """The target was asked, and this is what became of it: a structured report, see jobq.vocabulary."""
        result = {"report": "fail", "error_class": error.error_class, "version": self._payload.version}
        return Outcome.failed(
            str(error), error_class=error.error_class, retry=error.retry, result=result, target=self._target
        )  # fmt: skip

    @property
    def _target(self) -> tuple[str, str]:
        return self._tenant, self._spec.target
