"""The log of one attempt on its way to the database: lines, cut and capped, head and tail kept."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from uuid import UUID

from jobq.store.logs import Chunk
from workers.redaction import Redaction

MAX_LINE = 16 * 1024
"""Bytes of one stored line; a longer one is cut, and says so."""
_MAX_LINES_PER_CHUNK = 2000
_CUT = "… [cut: the line is longer than 16 KiB]"


def _size(text: str) -> int:
    """Bytes of a line with its newline."""
    return (len(text) if text.isascii() else len(text.encode())) + 1


@dataclass(slots=True)
class _Partial:
    """A line that has not ended yet. ``skipping``: it was cut, and the rest of it is dropped."""

    parts: list[bytes] = field(default_factory=list)
    size: int = 0
    skipping: bool = False


@dataclass(slots=True)
class Flushed:
    """What a flush hands over: chunks to store, and the first lines of stored chunks to remove."""

    chunks: list[Chunk]
    drop: list[int]


class JobLog:
    """Takes output as it comes and hands it over in chunks. Used from one thread at a time; bounded memory.

    The first half of ``budget`` bytes is the head and stays. What follows is the tail: the newest half is kept, and a
    line at the seam says how many bytes were dropped. Numbers of dropped lines are not used again.
    """

    def __init__(self, job_id: UUID, attempt: int, budget: int, first_line: int = 1) -> None:
        self._job_id, self._attempt = job_id, attempt
        self._head_left = budget // 2
        self._tail_budget = budget - budget // 2
        self._next = first_line
        self._head: list[tuple[int, str, str]] = []
        self._head_first = first_line
        self._seam: int | None = None
        self._seam_stored = 0
        self._tail: deque[tuple[int, str, str]] = deque()
        self._tail_bytes = 0
        self._tail_first = 0
        self._overrun = False  # lines of the tail were dropped before they were ever flushed
        self._stored: deque[tuple[int, int]] = deque()
        self._stored_bytes = 0
        self._dropped = 0
        self._partial: dict[str, _Partial] = {}
        self.redaction: Redaction | None = None
        """Puts asterisks in the place of secrets, line by line."""

    def write(self, output: str | bytes, stream: str) -> None:
        """Append output; a line ends at its newline or at ``close``."""
        data = output.encode("utf-8", "backslashreplace") if isinstance(output, str) else output
        *ended, rest = data.split(b"\n")
        partial = self._partial.setdefault(stream, _Partial())
        for part in ended:
            self._extend(partial, part)
            self._end_line(partial, stream)
        if rest:
            self._extend(partial, rest)

    @staticmethod
    def _extend(partial: _Partial, part: bytes) -> None:
        if partial.skipping:
            return
        room = MAX_LINE - partial.size
        if len(part) > room:
            partial.skipping = True
            part = part[:room]
        partial.parts.append(part)
        partial.size += len(part)

    def _end_line(self, partial: _Partial, stream: str) -> None:
        text = b"".join(partial.parts).decode("utf-8", "backslashreplace").rstrip("\r").replace("\x00", "\\x00")
        if self.redaction is not None:
            text = self.redaction.hide_cut(text) if partial.skipping else self.redaction.hide(text)
        self._add(text + _CUT if partial.skipping else text, stream)
        partial.parts, partial.size, partial.skipping = [], 0, False

    def _add(self, text: str, stream: str) -> None:
        line, size = (time.time_ns() // 1000, stream, text), _size(text)
        if self._seam is None and size <= self._head_left:
            self._head.append(line)
            self._head_left -= size
            self._next += 1
            return
        if self._seam is None:
            self._seam, self._next = self._next, self._next + 1
        if not self._tail:
            self._tail_first = self._next
        self._tail.append(line)
        self._tail_bytes += size
        self._next += 1
        while self._tail_bytes > self._tail_budget and len(self._tail) > 1:
            gone = _size(self._tail.popleft()[2])
            self._tail_bytes -= gone
            self._dropped += gone
            self._tail_first += 1
            self._overrun = True

    def flush(self) -> Flushed:
        """What has come since the last flush."""
        flushed = Flushed([], [])
        if self._head:
            flushed.chunks += self._chunks(self._head_first, self._head)
            self._head_first += len(self._head)
            self._head = []
        if self._tail:
            self._flush_tail(flushed)
        if self._dropped and self._seam is not None and self._dropped != self._seam_stored:
            self._flush_seam(flushed, self._seam)
        return flushed

    def _flush_tail(self, flushed: Flushed) -> None:
        if self._overrun:  # what is stored is older than what was dropped: kept, it would leave a hole in the tail
            self._drop_stored(flushed, 0)
            self._overrun = False
        chunks = self._chunks(self._tail_first, list(self._tail))
        flushed.chunks += chunks
        self._stored.extend((chunk.first_line, chunk.bytes) for chunk in chunks)
        self._stored_bytes += sum(chunk.bytes for chunk in chunks)
        self._tail.clear()
        self._tail_bytes = 0
        self._drop_stored(flushed, max(self._tail_budget, 1))  # the newest chunk stays

    def _drop_stored(self, flushed: Flushed, keep: int) -> None:
        """Remove the oldest stored chunks of the tail, as far as the others hold ``keep`` bytes."""
        while self._stored and self._stored_bytes - self._stored[0][1] >= keep:
            first_line, size = self._stored.popleft()
            self._stored_bytes -= size
            self._dropped += size
            flushed.drop.append(first_line)

    def _flush_seam(self, flushed: Flushed, seam: int) -> None:
        """The line that stands for what is missing: written anew when more went missing."""
        if self._seam_stored:
            flushed.drop.append(seam)
        text = f"[{self._dropped:,} bytes of output were dropped here: the log keeps its head and its tail]"
        flushed.chunks.append(Chunk(self._job_id, self._attempt, seam, 0, [(time.time_ns() // 1000, "system", text)]))
        self._seam_stored = self._dropped

    def close(self) -> Flushed:
        """End the lines that are still open, and flush."""
        for stream, partial in self._partial.items():
            if partial.parts or partial.skipping:
                self._end_line(partial, stream)
        return self.flush()

    def _chunks(self, first_line: int, lines: list[tuple[int, str, str]]) -> list[Chunk]:
        return [
            Chunk(
                self._job_id, self._attempt, first_line + start,
                sum(_size(line[2]) for line in lines[start : start + _MAX_LINES_PER_CHUNK]),
                lines[start : start + _MAX_LINES_PER_CHUNK],
            )
            for start in range(0, len(lines), _MAX_LINES_PER_CHUNK)
        ]  # fmt: skip
