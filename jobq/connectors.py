"""Connectors: where a SYNC reads entities from, and where its children write them to.

A plugin is a class registered under the entry point group ``jobq.sources`` or ``jobq.targets`` (the entry point's name
is the connector's type). It is made once per worker and configuration, used from the worker's event loop by many jobs
at once, and closed when it has not been used for a while::

    class CountrySource:
        config = CountryConfig                      # a Spec: the fields that users write

        def __init__(self, config: CountryConfig, access: Access) -> None: ...

        async def read(self, request: Read) -> AsyncIterator[Batch]:
            yield Batch([{"id": "NL"}, {"id": "BE"}], cursor=None, state="2026-01-01")

        async def close(self) -> None: ...

``jobq.testing.SourceContract`` and ``TargetContract`` are the suites that every connector passes.

How a target fails decides what becomes of the child job::

    ConnectorError            tried again with backoff, charged; at the end FAILED·error with its ``error_class``
    ├── Unavailable           no answer, 5xx, refused: as above, error_class Unavailable
    ├── NotNow                a known "not now" (429, 503, a rule of the connector): requeued, not charged
    ├── InvalidCredentials    401, 403, a password that is refused: never tried again
    ├── InvalidPayload        the target refuses this entity: never tried again
    └── InvalidConfiguration  the connector cannot work as it is configured: never tried again
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from jobq.errors import InvalidInput, Misconfigured

if TYPE_CHECKING:
    from jobq.settings import Policy
    from jobq.specs import Spec

SOURCES, TARGETS = "jobq.sources", "jobq.targets"


def _no_log(text: str) -> None:
    """Where the log of an access goes that nobody reads."""


@dataclass(frozen=True, slots=True)
class Access:
    """What a connector may use. ``secrets``: values by the names that its configuration gives them; never log them."""

    policy: Policy
    """The operator's: which networks and which file areas may be reached."""
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    log: Callable[[str], None] = _no_log


# --- sources ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Read:
    """What a SYNC wants to read."""

    cursor: Any = None
    """Go on behind the batch that came with this cursor, in a new process; None: from the start."""
    state: Any = None
    """Only what is newer than this: the ``state`` of the last run's batches. None: everything."""
    since: datetime | None = None
    """Instead of ``state``: only what changed at or after this instant (``override_start_date``)."""
    entity: str | None = None
    """Only the entity with this key, if the source can pick it; else everything, and the SYNC picks."""
    batch_size: int = 500


@dataclass(frozen=True, slots=True)
class Problem:
    """A record that could not be read: ``where`` it is (a line, a page), and what is wrong with it."""

    where: str
    message: str


@dataclass(frozen=True, slots=True)
class Batch:
    """Some records, as JSON values. Delivery is at least once: what was read twice is told apart by its key."""

    records: Sequence[Mapping[str, Any]]
    cursor: Any
    """A JSON value: ``Read(cursor=…)`` goes on behind this batch."""
    state: Any = None
    """A JSON value: what an incremental run that ends here has seen. None: this source reads everything each time.

    Who goes on at a cursor begins without it: the first batch then tells it, if need be without a record.
    """
    problems: Sequence[Problem] = ()


@runtime_checkable
class Source(Protocol):
    """Reads entities. ``read`` raises ConnectorError; what it has yielded before stays read.

    ``is_file`` (optional, False): the records come from files, so a target that ``takes_files`` is written directly.
    """

    config: ClassVar[type[Spec]]

    def read(self, request: Read) -> AsyncIterator[Batch]: ...

    async def close(self) -> None: ...


# --- targets ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Entity:
    """One entity, mapped for this target."""

    key: str
    payload: Mapping[str, Any]
    idempotency_key: str
    """The child job's id: the same in each of its attempts."""
    external_id: str | None = None
    """What the target called it when it was written before; None: this target has not had it from us."""


@dataclass(frozen=True, slots=True)
class Written:
    """What the target said. ``created``: None if it does not tell a new entity from a known one."""

    external_id: str | None = None
    created: bool | None = None


@runtime_checkable
class Target(Protocol):
    """Writes entities: at least once each, so writing one again must leave the target as writing it once does.

    ``takes_files`` (optional, False): it also is a ``FileTarget``.
    """

    config: ClassVar[type[Spec]]

    async def write(self, entity: Entity) -> Written: ...

    async def close(self) -> None: ...


@runtime_checkable
class FileTarget(Protocol):
    """A target that takes a whole domain as one file: all of it, or nothing of it, becomes visible."""

    async def write_file(self, domain: str, records: AsyncIterator[Sequence[Mapping[str, Any]]]) -> Written:
        """Write all records into one file, named after the domain; ``external_id`` is its address."""
        ...


# --- errors ----------------------------------------------------------------------------------------------------


class ConnectorError(Exception):
    """The other side could not be read or written. The message states the cause, without any secret."""

    error_class: str = "ConnectorError"
    """What retry rules and reports name: the class's own, unless a connector knows a better word (a rule, say)."""
    retry: ClassVar[bool] = True

    def __init__(self, message: str, *, error_class: str | None = None) -> None:
        super().__init__(message)
        if error_class:
            self.error_class = error_class


class Unavailable(ConnectorError):
    """No connection, no answer in time, or an answer that says that the other side is broken."""

    error_class = "Unavailable"


class NotNow(ConnectorError):
    """The other side is well and asks to come later. ``after``: how long; None: the connector does not know."""

    error_class = "Unavailable"

    def __init__(self, message: str, after: timedelta | None = None, *, error_class: str | None = None) -> None:
        super().__init__(message, error_class=error_class)
        self.after = after


class InvalidCredentials(ConnectorError):
    """The other side knows us not, or not for this."""

    error_class = "InvalidCredentials"
    retry = False


class InvalidPayload(ConnectorError):
    """The other side refuses this entity as it is."""

    error_class = "InvalidPayload"
    retry = False


class InvalidConfiguration(ConnectorError):
    """The connector cannot work as it is configured: no such table, page or file, or the operator forbids it."""

    error_class = "InvalidConfiguration"
    retry = False


# --- the registry ----------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def connector_class(group: str, type_: str) -> type[Any]:
    """The class of a connector type in ``SOURCES`` or ``TARGETS``. Raises InvalidInput or Misconfigured."""
    for point in entry_points(group=group, name=type_):
        try:
            found: type[Any] = point.load()
        except (ImportError, AttributeError) as error:
            raise Misconfigured(
                f"The connector {type_!r} cannot be imported: {error}.",
                hint="Install what it needs (for the built-in ones: pip install 'jobq[worker]').",
            ) from error
        return found
    known = sorted({point.name for point in entry_points(group=group)})
    raise InvalidInput(
        f"There is no {group.removeprefix('jobq.')[:-1]} of type {type_!r}.",
        hint=f"Known types: {', '.join(known)}.",
        code="unknown_connector",
    )
