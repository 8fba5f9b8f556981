"""A Sync, compiled: what is made of each record, and what its targets are. Pure; made once per SYNC and worker."""

from __future__ import annotations

from collections.abc import Mapping as Map
from typing import Any

from jobq.connectors import Batch
from jobq.mapping import Conditions, Expression, Mapping, MappingError, entity_key
from jobq.store.entities import Content
from jobq.store.fanout import Failure, Sifted, TargetPlan
from jobq.sync import Sync, TargetSpec


class Export:
    """A target: which entities it takes, and what it is sent of them."""

    def __init__(self, spec: TargetSpec) -> None:
        self.spec = spec
        self.rules = spec.rules
        self.plan = TargetPlan(spec.name, self.rules, tuple(spec.after), spec.concurrency)
        self._conditions = Conditions(spec.conditions)
        self._mapping = Mapping(spec.mapping)

    def takes(self, body: Map[str, Any]) -> bool:
        """Do its conditions let this entity pass? Raises MappingError."""
        return self._conditions.hold(body)

    def payload(self, body: Map[str, Any]) -> dict[str, Any]:
        """What it is sent of this entity. Raises MappingError."""
        return self._mapping.apply(body)


class Plan:
    """What a Sync makes of records."""

    def __init__(self, spec: Sync) -> None:
        self.spec = spec
        self.exports = {target.name: Export(target) for target in spec.exports}
        self.targets = [export.plan for export in self.exports.values()]
        self._key = Expression(spec.key)
        self._conditions = Conditions(spec.conditions)
        self._mapping = Mapping(spec.mapping)

    def sift(self, batch: Batch) -> Sifted:
        """Filter and map a batch. What is wrong with a record fails that record, and nothing else."""
        found: dict[str, Content] = {}
        failures = [Failure(problem.where, "unreadable", problem.message) for problem in batch.problems]
        filtered = 0
        for number, record in enumerate(batch.records):
            try:
                taken = self.take(record)
            except MappingError as error:
                failures.append(Failure(self._place(record, number), error.error_class, error.message))
                continue
            if taken is None:
                filtered += 1
                continue
            if taken.key in found:
                message = "the source gave this entity twice in one run; the last content was kept"
                failures.append(Failure(taken.key, "duplicate_key", message))
            found[taken.key] = taken
        return Sifted(
            list(found.values()),
            batch.cursor,
            batch.state,
            len(batch.records) + len(batch.problems),
            filtered,
            failures,
        )

    def take(self, record: Map[str, Any]) -> Content | None:
        """The entity that a record is, None if it is filtered. Raises MappingError."""
        key = entity_key(record, self._key)
        if self.spec.entity is not None and key != self.spec.entity:
            return None
        if not self._conditions.hold(record):
            return None
        body, digest = self._mapping.apply_and_hash(record)
        return Content(key, digest, body)

    def _place(self, record: Any, number: int) -> str:
        """What to call a record that failed: its key, if it has one."""
        try:
            return entity_key(record, self._key)
        except MappingError:
            return f"record {number + 1} of a batch"
