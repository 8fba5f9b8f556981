"""What the contracts of sources and targets share: reading to the end, JSON as the database keeps it, and secrecy."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from jobq.connectors import Batch, ConnectorError, Problem, Read

Result = TypeVar("Result")
Record = Mapping[str, Any]


@dataclass(slots=True)
class Seen:
    """What was read."""

    batches: list[Batch] = field(default_factory=list)

    @property
    def records(self) -> list[Record]:
        """All records, in the order in which they came."""
        return [record for batch in self.batches for record in batch.records]

    @property
    def problems(self) -> list[Problem]:
        """All problems, in the order in which they came."""
        return [problem for batch in self.batches for problem in batch.problems]

    @property
    def state(self) -> Any:
        """What the last batch says has been seen."""
        return self.batches[-1].state if self.batches else None


def read_all(source: Any, request: Read | None = None) -> Seen:
    """Read a source to its end and close it. Not for use within a running event loop."""
    return run_and_close(source, lambda: seen_by(source, request or Read()))


async def seen_by(source: Any, request: Read) -> Seen:
    """Read a source to its end; it stays open."""
    return Seen([batch async for batch in source.read(request)])


def run_and_close(connector: Any, work: Callable[[], Awaitable[Result]]) -> Result:
    """Work with a connector on an event loop of its own, and close it at the end."""

    async def run() -> Result:
        try:
            return await work()
        finally:
            await connector.close()

    return asyncio.run(run())


def canonical(records: Sequence[Record]) -> list[str]:
    """Records in a form in which they can be compared whatever their order."""
    return sorted(json_text(record) for record in records)


def json_text(value: object) -> str:
    """The value as strict JSON. Raises ValueError or TypeError for what is none."""
    text = json.dumps(value, sort_keys=True, allow_nan=False, ensure_ascii=False)
    text.encode()  # no halves of surrogate pairs
    return text


def through_json(value: Any) -> Any:
    """As it comes back from the database."""
    return json.loads(json_text(value))


class Secrecy:
    """What nobody may ever see."""

    secrets: ClassVar[Sequence[str]] = ()
    """Values of the secrets that the connectors of this suite are given: they must not show anywhere."""

    def logged(self) -> str:
        """What the connectors of this test have logged, as far as it was kept."""
        return ""

    def _assert_secret(self, *texts: str) -> None:
        for text in (*texts, self.logged()):
            for secret in self.secrets:
                assert secret not in text, "a secret is shown"

    def _assert_fails_well(self, run: Callable[[], object]) -> None:
        failure: BaseException | None = None
        try:
            run()
        except ConnectorError as error:
            failure = error
        assert isinstance(failure, ConnectorError), "it did not fail"
        assert str(failure), "a person reads the message"
        assert failure.error_class, "reports name the error class"
        while failure is not None:
            self._assert_secret(str(failure), repr(failure))
            failure = failure.__cause__ or (None if failure.__suppress_context__ else failure.__context__)


async def nothing() -> None:
    """Only close."""
