"""What a SYNC is told to do: the spec of the job that reads, and of the children that it fans out.

Everything that can be judged without a database is judged here: expressions are compiled, chains are walked. What a
spec refers to (stored connectors, secrets) is looked up by ``jobq.store.connectors.check_references``.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from jobq.connections import Connection, Resolved, check_connection
from jobq.connectors import SOURCES, TARGETS
from jobq.errors import InvalidInput
from jobq.mapping import MAX_EXPRESSION, MAX_KEY_LENGTH, Conditions, Expression, Mapping, content_hash
from jobq.schedule import parse_rfc3339
from jobq.specs import Spec, Text, printable

if TYPE_CHECKING:
    from jobq.settings import Policy

STORE = "store"
"""The type of the target that is jobq's own entity store: each Sync writes to it first, whether it names it or not."""
MAX_TARGETS = 50
MAX_CONDITIONS = 100

Label = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(printable)]
EntityKey = Annotated[Text, Field(min_length=1, max_length=MAX_KEY_LENGTH)]
JmesPath = Annotated[str, Field(max_length=MAX_EXPRESSION)]
ConditionList = Annotated[list[JmesPath], Field(max_length=MAX_CONDITIONS)]
"""JMESPath expressions; an entity is taken if all of them are true of it."""
Rules = dict[str, Any]
"""Field → JMESPath expression, or an object: see ``jobq.mapping``. Without any, the record stays as it is."""


def _instant(value: object) -> datetime | None:
    if value is None:
        return None
    try:
        return parse_rfc3339(value)
    except InvalidInput as error:
        raise InvalidInput(error.message, hint=error.hint, pointer="/spec/override_start_date") from None


class SourceSpec(Connection):
    """Where the entities are read from."""


class TargetSpec(Connection):
    """Where each changed entity is written to, by a job of its own."""

    name: Label = ""
    """Unique in the Sync; with the domain, it identifies what the target has. Default: the connector, or the type."""
    conditions: ConditionList = Field(default_factory=list)
    """Judged on the entity as the Sync's own mapping made it."""
    mapping: Rules = Field(default_factory=dict)
    """Applied to the entity as the Sync's own mapping made it."""
    after: list[str] = Field(default_factory=list)
    """Names of targets that must have the entity first."""
    concurrency: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """How many entities of one Sync may be written here at once; None: as many as there is room for."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("name") is None:
            return {**data, "name": data.get("connector") or data.get("type") or "target"}
        return data

    @model_validator(mode="after")
    def _plain_store(self) -> Self:
        given = self.config or self.secrets or self.conditions or self.mapping or self.after or self.concurrency
        if self.is_store and given:
            raise ValueError("jobq's own store takes every entity as the Sync makes it, and nothing else is said of it")
        return self

    @property
    def is_store(self) -> bool:
        """Is this jobq's own entity store?"""
        return self.type == STORE

    @property
    def rules(self) -> str:
        """A fingerprint of conditions and mapping: when they change, the target gets every entity again."""
        return content_hash({"conditions": self.conditions, "mapping": self.mapping})


class Sync(Spec):
    """Read entities from a source, and write each one that is new or has changed to the targets.

    Conditions and mapping are applied to each record; what comes out is kept in jobq's entity store, under its key.
    Then each target gets the entity by a child job (REPLICATION), through its own conditions and mapping.
    """

    domain: Label
    """What the entities are, such as ``customers``: their place in the store, and that of the source's state."""
    source: SourceSpec
    key: JmesPath = "id"
    """What identifies a record, as the source delivers it: text or an integer."""
    conditions: ConditionList = Field(default_factory=list)
    mapping: Rules = Field(default_factory=dict)
    targets: Annotated[list[TargetSpec], Field(max_length=MAX_TARGETS)] = Field(default_factory=list)
    """None: the entities are kept in jobq's own store, and nothing is fanned out."""
    mode: Literal["full", "incremental"] = "full"
    """incremental: only what is newer than the state that the last run left."""
    override_start_date: Annotated[datetime | None, BeforeValidator(_instant)] = None
    """For this run: what changed at or after this instant, instead of the stored state, which stays as it is."""
    entity: EntityKey | None = None
    """Only the entity with this key."""
    dry_run: bool = False
    """Write nothing; the job's result shows the payloads that each target would get."""
    batch_size: Annotated[int, Field(ge=1, le=5000)] = 500
    max_children: Annotated[int, Field(ge=1)] | None = None
    """The job fails rather than fan out more; None: the operator's maximum (``limit_of_children``)."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        self._check_names()
        self._check_chains()
        Expression(self.key, "/spec/key")
        Conditions(self.conditions, "/spec/conditions")
        Mapping(self.mapping, "/spec/mapping")
        for number, target in enumerate(self.targets):
            Conditions(target.conditions, f"/spec/targets/{number}/conditions")
            Mapping(target.mapping, f"/spec/targets/{number}/mapping")
        return self

    def _check_names(self) -> None:
        if self.source.type == STORE:
            raise InvalidInput("jobq's own store is a target only.", pointer="/spec/source/type")
        seen: dict[str, int] = {}
        for number, target in enumerate(self.targets):
            if seen.setdefault(target.name, number) != number:
                raise InvalidInput(
                    f"Two targets are called {target.name!r}.",
                    hint="Give each a name of its own.", pointer=f"/spec/targets/{number}/name",
                )  # fmt: skip
        if len(stores := [number for number, target in enumerate(self.targets) if target.is_store]) > 1:
            raise InvalidInput("jobq's own store is named twice.", pointer=f"/spec/targets/{stores[1]}/type")

    def _check_chains(self) -> None:
        known = {target.name for target in self.targets}
        for number, target in enumerate(self.targets):
            for place, name in enumerate(target.after):
                if name == target.name or name not in known:
                    problem = (
                        "comes after itself" if name == target.name else f"comes after {name[:100]!r}, which is none"
                    )
                    raise InvalidInput(
                        f"The target {target.name!r} {problem}.",
                        hint=f"Targets: {', '.join(sorted(known))}.", pointer=f"/spec/targets/{number}/after/{place}",
                    )  # fmt: skip
        try:
            TopologicalSorter({target.name: target.after for target in self.targets}).prepare()
        except CycleError as error:
            raise InvalidInput(
                f"The targets wait for each other: {' after '.join(reversed(error.args[1]))}.", pointer="/spec/targets"
            ) from None

    @property
    def exports(self) -> list[TargetSpec]:
        """The targets that get children, those that others come after first. jobq's own store is none of them."""
        targets = {target.name: target for target in self.targets}
        order = TopologicalSorter({name: target.after for name, target in targets.items()}).static_order()
        stores = {name for name, target in targets.items() if target.is_store}
        return [
            targets[name].model_copy(update={"after": [one for one in targets[name].after if one not in stores]})
            for name in order
            if name not in stores
        ]

    def connections(self) -> Iterator[tuple[str, str, Connection]]:
        """The source and the targets: where it is in the spec, SOURCES or TARGETS, and itself."""
        yield "/spec/source", SOURCES, self.source
        for number, target in enumerate(self.targets):
            if not target.is_store:
                yield f"/spec/targets/{number}", TARGETS, target

    def limit_of_children(self, policy: Policy) -> int:
        """How many children it may have."""
        return policy.max_children if self.max_children is None else min(self.max_children, policy.max_children)

    def check(self, policy: Policy) -> None:
        """Connectors that are written here, and the operator's maximum. Stored ones need ``check_references``."""
        if self.max_children is not None and self.max_children > policy.max_children:
            raise InvalidInput(
                f"max_children: {self.max_children} is above the operator's maximum of {policy.max_children}.",
                pointer="/spec/max_children",
            )
        for pointer, group, connection in self.connections():
            if connection.type is not None:
                check_connection(
                    group, Resolved(connection.type, connection.config, connection.secrets), policy, pointer
                )


class Replication(Spec):
    """Write one entity to one target: what a child of a SYNC does. Only a SYNC makes such jobs."""

    domain: str
    target: str
    entity_key: str

    def check(self, policy: Policy) -> NoReturn:
        """Refuse it: with neither its SYNC nor the entity's place in the store, it would mean nothing."""
        raise InvalidInput(
            "A REPLICATION job is made by a SYNC only.",
            code="not_enqueuable", hint="Enqueue a Sync; its field 'entity' names a single one.", pointer="/kind",
        )  # fmt: skip
