"""CSV and JSON Lines files as targets: one per entity, or one per domain; each appears whole or not at all."""

from __future__ import annotations

import csv
import io
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, ClassVar

from jobq.connectors import Access, Entity, InvalidConfiguration, InvalidPayload, Written
from workers.connectors.area import Area, copy, file_name, spooled
from workers.connectors.file_configs import CsvTargetConfig, FileTargetConfig, JsonlTargetConfig
from workers.connectors.threads import Threads
from workers.connectors.values import write_json

_THREADS = 4


class _FileTarget(ABC):
    """What CSV and JSON have in common: where files go, and that they appear whole."""

    takes_files = True
    entity_ending: ClassVar[str]
    domain_ending: ClassVar[str]

    def __init__(self, config: FileTargetConfig, access: Access) -> None:
        self._area = Area(config.area, config, access)
        self._encoding = config.encoding
        self._threads = Threads("files", _THREADS)

    async def write(self, entity: Entity) -> Written:
        """One file for the entity, named after its key; ``external_id`` is its address."""
        return await self._threads.run(self._write, entity)

    async def write_file(self, domain: str, records: AsyncIterator[Sequence[Mapping[str, Any]]]) -> Written:
        """All records as one file; what was there before stays until they have all come."""
        with spooled() as draft:
            page = self._page(draft)
            async for batch in records:
                await self._threads.run(self._add, page, batch)
            await self._threads.run(self._add, page, ())
            address, is_new = await self._threads.run(
                self._area.write, file_name(domain, self.domain_ending), lambda handle: copy(draft, handle)
            )
        return Written(address, is_new)

    async def close(self) -> None:
        """Give up the threads."""
        self._threads.close()

    def _write(self, entity: Entity) -> Written:
        with self._refused():
            content = self._entity(entity.payload)
        address, is_new = self._area.write(
            file_name(entity.key, self.entity_ending), lambda handle: _write_all(handle, content)
        )
        return Written(address, is_new)

    def _add(self, page: _Page, batch: Sequence[Mapping[str, Any]]) -> None:
        with self._refused():
            text = page.text(batch)
        with self._area.translated():
            _write_all(page.handle, text)

    @contextmanager
    def _refused(self) -> Iterator[None]:
        try:
            yield
        except UnicodeEncodeError as error:
            raise InvalidPayload(f"text in it cannot be written as {self._encoding}: {error.reason}") from None
        except (ValueError, TypeError) as error:
            raise InvalidPayload(f"it cannot be written: {error}") from None

    @abstractmethod
    def _entity(self, payload: Mapping[str, Any]) -> bytes: ...

    @abstractmethod
    def _page(self, handle: IO[bytes]) -> _Page: ...


@dataclass(slots=True)
class _Page:
    """A file of a whole domain while it is written."""

    handle: IO[bytes]
    encoding: str
    delimiter: str = ""
    columns: Sequence[str] | None = None
    strict: bool = True
    """Refuse what has no column; False: leave it out."""
    _has_header: bool = False

    def text(self, batch: Sequence[Mapping[str, Any]]) -> bytes:
        """The records as bytes to add to the file; an empty batch ends it."""
        if not self.delimiter:
            return b"".join(_line(record, self.encoding) for record in batch)
        if self.columns is None and batch:
            self.columns = list(dict.fromkeys(name for record in batch for name in record))
        columns = self.columns or []
        if self.strict and (further := {name for record in batch for name in record} - set(columns)):
            raise InvalidConfiguration(f"{min(further)!r} is not among the columns of the first batch: set `columns`")
        rows = [[_cell(record.get(name)) for name in columns] for record in batch]
        header = [] if self._has_header or not columns else [list(columns)]
        self._has_header = True if columns else self._has_header
        return _csv(header + rows, self.delimiter).encode(self.encoding)


class JsonlTarget(_FileTarget):
    """Writes an entity as one JSON file, a domain as one JSON Lines file."""

    config: ClassVar[type[JsonlTargetConfig]] = JsonlTargetConfig
    entity_ending, domain_ending = ".json", ".jsonl"

    def _entity(self, payload: Mapping[str, Any]) -> bytes:
        return _line(payload, self._encoding)

    def _page(self, handle: IO[bytes]) -> _Page:
        return _Page(handle, self._encoding)


class CsvTarget(_FileTarget):
    """Writes an entity as a CSV file of one row, a domain as one CSV file. null is empty, lists and objects are JSON."""

    config: ClassVar[type[CsvTargetConfig]] = CsvTargetConfig
    entity_ending = domain_ending = ".csv"

    def __init__(self, config: CsvTargetConfig, access: Access) -> None:
        super().__init__(config, access)
        self._csv = config

    def _entity(self, payload: Mapping[str, Any]) -> bytes:
        return self._page(io.BytesIO()).text([payload])

    def _page(self, handle: IO[bytes]) -> _Page:
        columns = self._csv.columns
        return _Page(handle, self._encoding, self._csv.delimiter, columns, strict=columns is None)


def _write_all(handle: IO[bytes], content: bytes) -> None:
    handle.write(content)


def _line(record: Mapping[str, Any], encoding: str) -> bytes:
    return write_json(dict(record)).decode().encode(encoding) + b"\n"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else write_json(value).decode()


def _csv(rows: Sequence[Sequence[str]], delimiter: str) -> str:
    text = io.StringIO(newline="")
    # CRLF as RFC 4180 has it; the writer then quotes a lone CR, too.
    csv.writer(text, delimiter=delimiter, lineterminator="\r\n").writerows(rows)
    return text.getvalue()
