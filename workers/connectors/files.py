"""CSV and JSON Lines files: read record by record, and written one per entity or one per domain."""

from __future__ import annotations

import csv
import io
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any, ClassVar

from jobq.connectors import Access, Batch, Entity, InvalidConfiguration, InvalidPayload, Problem, Read, Written
from workers.connectors.area import Area, File, copy, file_name, spooled
from workers.connectors.configs import (
    CsvSourceConfig,
    CsvTargetConfig,
    FileSourceConfig,
    FileTargetConfig,
    JsonlSourceConfig,
    JsonlTargetConfig,
)
from workers.connectors.lines import CsvRecords, JsonRecords, Lines, Malformed
from workers.connectors.threads import Threads
from workers.connectors.values import write_json

MAX_BATCH_BYTES = 8 * 1024 * 1024
MAX_FILES = 1000
"""Files whose state can be kept; more are for ``incremental: name``."""
_THREADS = 4

Records = JsonRecords | CsvRecords


@dataclass(slots=True)
class _Reading:
    """One file while it is read."""

    file: File
    handle: IO[bytes]
    records: Records
    ended: bool = False


@dataclass(slots=True)
class _Part:
    """What was read of a file in one go."""

    records: list[dict[str, Any]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    ended: bool = False


class _FileSource(ABC):
    """What CSV and JSON Lines have in common: which files are read, in which order, and how it goes on.

    A cursor names the file, the byte behind the last record, and which version of the file that is: a file that has
    changed meanwhile is read from its start.
    """

    is_file = True

    def __init__(self, config: FileSourceConfig, access: Access) -> None:
        self._settings = config
        self._area = Area(config.path, config, access)
        self._threads = Threads("files", _THREADS)

    async def read(self, request: Read) -> AsyncIterator[Batch]:
        """The records of all files, in the order of their names. Malformed ones are problems, with file and line."""
        cursor, seen = self._begin(request)
        files, names = await self._threads.run(self._wanted, request, cursor)
        if self._settings.incremental == "changed":  # files that are gone need no memory
            seen = {name: mark for name, mark in seen.items() if name in names}
        if cursor:  # there may be nothing more, and what has been seen must not be forgotten
            yield Batch([], dict(cursor), seen)
        for file in files:
            reading = await self._threads.run(self._open, file, cursor)
            try:
                part = _Part()
                while not part.ended:
                    part = await self._threads.run(self._part, reading, request.batch_size)
                    seen = self._seen(seen, file) if part.ended else seen
                    yield Batch(part.records, self._cursor(reading, seen), seen, part.problems)
            finally:
                reading.handle.close()

    async def close(self) -> None:
        """Give up the threads."""
        self._threads.close()

    # --- which files (the state: every file that was read with its mark, or the last one's name)

    def _begin(self, request: Read) -> tuple[Mapping[str, Any], Any]:
        try:
            cursor = dict(request.cursor or {})
            state = cursor["state"] if cursor else request.state
            if state is not None and isinstance(state, str) != (self._settings.incremental == "name"):
                raise ValueError
            return cursor, state if self._settings.incremental == "name" else dict(state or {})
        except (TypeError, ValueError, KeyError):
            raise InvalidConfiguration("the cursor or state does not come from this source: start anew") from None

    def _wanted(self, request: Read, cursor: Mapping[str, Any]) -> tuple[list[File], frozenset[str]]:
        """The files that are still to be read, and the names of all that there are."""
        files = self._area.files(self._settings.path)
        if self._settings.incremental == "changed" and len(files) > MAX_FILES:
            raise InvalidConfiguration(
                f"the pattern names {len(files)} files, and the state of at most {MAX_FILES} can be kept: "
                "write `incremental: name`, and give later files greater names"
            )
        names = frozenset(file.name for file in files)
        if request.since is not None:
            since = request.since.timestamp()
            files = [file for file in files if file.changed is None or file.changed >= since]
        elif request.state is not None:
            files = [file for file in files if self._is_new(file, request.state)]
        return [file for file in files if file.name >= cursor.get("file", "") and not _is_done(file, cursor)], names

    def _is_new(self, file: File, state: Any) -> bool:
        if self._settings.incremental == "name":
            return bool(file.name > state)
        return bool(state.get(file.name) != file.mark)

    def _seen(self, seen: Any, file: File) -> Any:
        return file.name if self._settings.incremental == "name" else {**seen, file.name: file.mark}

    # --- reading (in a thread)

    def _open(self, file: File, cursor: Mapping[str, Any]) -> _Reading:
        begun = cursor if (cursor.get("file"), cursor.get("mark")) == (file.name, file.mark) else {}
        handle = self._area.read(file)
        try:
            with self._area.translated():
                lines = Lines(handle, self._settings.encoding, begun.get("offset", 0), begun.get("line", 0))
            return _Reading(file, handle, self._records(lines, begun.get("columns")))
        except BaseException:
            handle.close()
            raise

    def _part(self, reading: _Reading, size: int) -> _Part:
        """The next records of a file, at most ``size`` of them and of bounded length."""
        part, records = _Part(), reading.records
        began = records.lines.offset
        with self._area.translated():
            while not part.ended and len(part.records) + len(part.problems) < size:
                try:
                    record = self._next(reading)
                except Malformed as error:
                    part.problems.append(Problem(f"{reading.file.name}, line {error.line}", str(error)))
                else:
                    reading.ended = record is None
                    part.records += [record] if record is not None else []
                part.ended = reading.ended
                if records.lines.offset - began >= MAX_BATCH_BYTES:
                    break
        return part

    def _next(self, reading: _Reading) -> dict[str, Any] | None:
        return reading.records.next()

    def _cursor(self, reading: _Reading, seen: Any) -> dict[str, Any]:
        lines, columns = reading.records.lines, getattr(reading.records, "columns", None)
        return {
            "file": reading.file.name, "mark": reading.file.mark, "offset": lines.offset, "line": lines.number,
            "columns": columns, "ended": reading.ended, "state": seen,
        }  # fmt: skip

    @abstractmethod
    def _records(self, lines: Lines, columns: Sequence[str] | None) -> Records: ...


def _is_done(file: File, cursor: Mapping[str, Any]) -> bool:
    return bool(cursor.get("ended")) and (file.name, file.mark) == (cursor["file"], cursor["mark"])


class JsonlSource(_FileSource):
    """Reads JSON Lines files."""

    config: ClassVar[type[JsonlSourceConfig]] = JsonlSourceConfig

    def _records(self, lines: Lines, columns: Sequence[str] | None) -> Records:
        return JsonRecords(lines)


class CsvSource(_FileSource):
    """Reads CSV files. A file whose header cannot be used is one problem, and is passed over."""

    config: ClassVar[type[CsvSourceConfig]] = CsvSourceConfig

    def __init__(self, config: CsvSourceConfig, access: Access) -> None:
        super().__init__(config, access)
        self._csv = config

    def _records(self, lines: Lines, columns: Sequence[str] | None) -> Records:
        return CsvRecords(lines, self._csv.delimiter, columns or self._csv.columns)

    def _next(self, reading: _Reading) -> dict[str, Any] | None:
        records = reading.records
        if isinstance(records, CsvRecords) and records.columns is None:
            try:
                if not records.header():
                    return None
            except Malformed as error:
                reading.ended = True
                raise Malformed(f"the header cannot be used, so the file is passed over: {error}", error.line) from None
        return records.next()


# --- targets -----------------------------------------------------------------------------------------------------


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
