"""A source that counts and a target that does nothing: what is left of a SYNC is the cost of the platform."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from jobq.connectors import Access, Batch, Entity, Read, Written
from jobq.specs import Spec

_POINTS = """\
[jobq.sources]
bench = bench.ends:NumberSource
[jobq.targets]
bench = bench.ends:NoopTarget
"""


def installed() -> str:
    """A folder that, on PYTHONPATH, makes both known as connectors of the type ``bench``."""
    folder = Path(tempfile.mkdtemp(prefix="jobq-bench-"))
    info = folder / "jobq_bench-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: jobq-bench\nVersion: 0\n")
    (info / "entry_points.txt").write_text(_POINTS)
    return str(folder)


class Numbers(Spec):
    count: int
    """How many entities there are."""
    generation: int = 0
    """Another one: every entity has changed."""


class NumberSource:
    config = Numbers

    def __init__(self, config: Numbers, access: Access) -> None:
        self._config = config

    async def read(self, request: Read) -> AsyncIterator[Batch]:
        size, made = request.batch_size, self._config.generation
        for start in range(request.cursor or 0, self._config.count, size):
            end = min(start + size, self._config.count)
            rows = [{"id": f"c{number}", "name": f"customer {number}", "of": made} for number in range(start, end)]
            yield Batch(rows, end)

    async def close(self) -> None:
        pass


class Nothing(Spec):
    pass


class NoopTarget:
    config = Nothing

    def __init__(self, config: Nothing, access: Access) -> None:
        pass

    async def write(self, entity: Entity) -> Written:
        return Written(entity.key)

    async def close(self) -> None:
        pass
