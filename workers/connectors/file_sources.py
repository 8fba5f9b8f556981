"""CSV and JSON Lines files as sources: read record by record, each with its place."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, ClassVar

from jobq.connectors import Access, Batch, InvalidConfiguration, Problem, Read
from workers.connectors.area import Area, File
from workers.connectors.file_configs import (
    CsvSourceConfig,
    FileSourceConfig,
    JsonlSourceConfig,
)
from workers.connectors.lines import CsvRecords, JsonRecords, Lines, Malformed
from workers.connectors.threads import Threads

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
