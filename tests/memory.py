"""A source and targets in memory, installed as any plugin is, that a test fills, looks at and breaks."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

from jobq.connectors import Access, Batch, Entity, InvalidPayload, NotNow, Read, Unavailable, Written
from jobq.specs import Spec


class Killed(BaseException):
    """The process is gone."""


@dataclass
class World:
    """What there is: records by key, each with the number of its last change; what targets have; what goes wrong."""

    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    changes: int = 0
    has: dict[str, dict[str, dict[str, Any]]] = field(default_factory=lambda: {"crm": {}, "erp": {}})
    sent: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    faults: deque[str] = field(default_factory=deque)
    """How the next writes end; "ok" when there are no more."""
    overtaken: list[tuple[str, Any]] = field(default_factory=list)
    """What erp got though crm, which comes before it, had never been sent it."""
    on_batch: Callable[[int], None] = lambda _: None
    """Called before each batch is read, with the number of those before it."""

    def put(self, key: str, **fields: Any) -> None:
        self.changes += 1
        self.records[key] = {"id": key, **fields, "changed": self.changes}

    def crm_was_sent(self, key: str, number: Any) -> bool:
        return any(sent[:2] == ("crm", key) and sent[2].get("number") == number for sent in self.sent)


worlds: dict[str, World] = {}


class MemoryConfig(Spec):
    world: str
    name: str = ""

    def check(self, policy: Any) -> None:
        """Nothing is forbidden here."""


class MemorySource:
    """Incremental by the number of the last change, which is its cursor, too."""

    config: ClassVar[type[Spec]] = MemoryConfig

    def __init__(self, config: MemoryConfig, _access: Access) -> None:
        self._world = worlds[config.world]

    async def read(self, request: Read) -> AsyncIterator[Batch]:
        behind = max(request.cursor or 0, request.state or 0)
        for number in range(1000):
            self._world.on_batch(number)
            rows = sorted(self._world.records.values(), key=lambda row: row["changed"])
            rows = [row for row in rows if row["changed"] > behind][: request.batch_size]
            if not rows:
                return
            behind = rows[-1]["changed"]
            yield Batch([{name: row[name] for name in row if name != "changed"} for row in rows], behind, behind)

    async def close(self) -> None:
        pass


class MemoryTarget:
    config: ClassVar[type[Spec]] = MemoryConfig

    def __init__(self, config: MemoryConfig, _access: Access) -> None:
        self._world, self._name = worlds[config.world], config.name

    async def write(self, entity: Entity) -> Written:
        match self._world.faults.popleft() if self._world.faults else "ok":
            case "unavailable":
                raise Unavailable("no answer")
            case "refuse":
                raise InvalidPayload("not like this")
            case "not now":
                raise NotNow("too many requests", timedelta(seconds=30))
        payload = dict(entity.payload)
        if self._name == "erp" and not self._world.crm_was_sent(entity.key, payload["n"]):
            self._world.overtaken.append((entity.key, payload["n"]))
        self._world.sent.append((self._name, entity.key, payload))
        self._world.has[self._name][entity.key] = payload
        return Written(external_id=f"{self._name}-{entity.key}")

    async def close(self) -> None:
        pass


def install(folder: Path) -> str:
    """Make the entry points of these connectors findable in this folder, which belongs onto ``sys.path``."""
    about = folder / "jobq_memory-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: jobq-memory\nVersion: 1\n")
    points = "[jobq.sources]\nmemory = tests.memory:MemorySource\n[jobq.targets]\nmemory = tests.memory:MemoryTarget\n"
    (about / "entry_points.txt").write_text(points)
    return str(folder)
