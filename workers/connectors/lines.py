"""Records of a text file, one by one, each with the place behind it; a malformed one costs one line.

Lines end with LF or CRLF. Reading is bounded: a record takes at most ``MAX_RECORD`` bytes, and a longer line is passed
over without being held.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

from workers.connectors.values import read_json

MAX_RECORD = 1024 * 1024
_CHUNK = 64 * 1024
_BOM = b"\xef\xbb\xbf"

csv.field_size_limit(max(csv.field_size_limit(), MAX_RECORD))  # the module's own limit is lower, and for all


class Malformed(ValueError):
    """A record is not what it should be; the message says how, ``line`` where it begins."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


@dataclass(slots=True)
class Lines:
    """Lines of a file from ``offset`` on, the first of which is line ``number + 1``."""

    file: IO[bytes]
    encoding: str
    offset: int = 0
    number: int = 0

    def __post_init__(self) -> None:
        if self.offset:
            self.file.seek(self.offset)

    def next(self) -> str | None:
        """The next line with its ending; None at the end. Raises Malformed, and goes on behind the line."""
        raw = self.file.readline(MAX_RECORD + 1)
        if not raw:
            return None
        self.number += 1
        start, self.offset = self.offset, self.offset + len(raw)
        if len(raw) > MAX_RECORD:
            while raw and not raw.endswith(b"\n"):
                raw = self.file.readline(_CHUNK)
                self.offset += len(raw)
            raise Malformed(f"the line is longer than {MAX_RECORD // 1024} KiB", self.number)
        if start == 0 and self.encoding == "utf-8":
            raw = raw.removeprefix(_BOM)
        try:
            return raw.decode(self.encoding)
        except UnicodeDecodeError as error:
            raise Malformed(f"byte {error.start + 1} of the line is not {self.encoding}", self.number) from None

    def back_to(self, offset: int, number: int) -> None:
        """Read these lines once more."""
        self.file.seek(offset)
        self.offset, self.number = offset, number


class JsonRecords:
    """One JSON object in each line; empty lines are passed over."""

    def __init__(self, lines: Lines) -> None:
        self.lines = lines

    def next(self) -> dict[str, Any] | None:
        """The next record; None at the end. Raises Malformed."""
        while (line := self.lines.next()) is not None:
            if not line.strip():
                continue
            try:
                value = read_json(line)
            except ValueError as error:
                raise Malformed(str(error), self.lines.number) from None
            if not isinstance(value, dict):
                raise Malformed("it is no JSON object", self.lines.number)
            return value
        return None


class CsvRecords:
    """Rows of a CSV file (RFC 4180) as objects of text. ``columns``: None until the header has been read."""

    def __init__(self, lines: Lines, delimiter: str, columns: Sequence[str] | None = None) -> None:
        self.lines = lines
        self.columns = None if columns is None else list(columns)
        self._delimiter = delimiter
        self._reader: Iterator[list[str]] | None = None
        self._taken = 0
        self._start = (0, 0)

    def header(self) -> bool:
        """Read the names of the columns; False: the file is empty. Raises Malformed if they cannot be used."""
        row = self._row()
        if row is None:
            return False
        if not all(name.strip() for name in row):
            raise Malformed("a column has no name", self._start[1] + 1)
        if twice := sorted({name for name in row if row.count(name) > 1}):
            raise Malformed(f"the column {twice[0]!r} comes twice", self._start[1] + 1)
        self.columns = row
        return True

    def next(self) -> dict[str, Any] | None:
        """The next record; None at the end. Raises Malformed, and goes on behind its first line."""
        assert self.columns is not None, "the header comes first"
        row = self._row()
        if row is None:
            return None
        if len(row) != len(self.columns):
            if self.lines.number > self._start[1] + 1:  # a stray quote may have joined what are several records
                self._restart()
            raise Malformed(f"it has {len(row)} fields, the header has {len(self.columns)}", self._start[1] + 1)
        return dict(zip(self.columns, row, strict=True))

    def _row(self) -> list[str] | None:
        """The next row that is not empty."""
        while True:
            self._start = (self.lines.offset, self.lines.number)
            self._taken = 0
            if self._reader is None:
                self._reader = csv.reader(self._feed(), delimiter=self._delimiter, strict=True)
            try:
                row = next(self._reader, None)
            except (csv.Error, Malformed) as error:
                self._restart()
                raise Malformed(_words(error), self._start[1] + 1) from None
            if row is None or row:
                return row

    def _feed(self) -> Iterator[str]:
        while (line := self.lines.next()) is not None:
            self._taken += len(line)
            if self._taken > MAX_RECORD:
                raise Malformed(f"a quote is not closed within {MAX_RECORD // 1024} KiB", self._start[1] + 1)
            yield line

    def _restart(self) -> None:
        """Go on behind the first line of a record that is malformed: its next lines may be records of their own."""
        self._reader = None
        self.lines.back_to(*self._start)
        try:
            self.lines.next()
        except Malformed:
            return  # it is behind that line all the same


def _words(error: Exception) -> str:
    text = str(error)
    if "unexpected end of data" in text:
        return "a quote is not closed"
    if "expected after" in text:
        return "text follows a closing quote"
    return text
