"""HTTP/1.1 as a client that asks once per connection speaks it: bytes of a request, parts of an answer. No I/O.

Connections are never used twice, so leniency costs nothing here: bare line feeds, folded headers and chunk
extensions are read. What may grow without end has a bound: the head, the body, the lines and number of chunks.
Nothing is decompressed, and requests ask for no compression.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field

from jobq.net import Target

MAX_HEAD = 32 * 1024
MAX_BODY = 64 * 1024
MAX_CHUNKS = 8192  # a server that sends single bytes must not keep the event loop busy
MAX_CHUNK_LINE = 1024
MAX_INTERIM = 8  # answers 1xx before the real one

RESERVED_HEADERS = frozenset(
    {"connection", "content-length", "expect", "keep-alive", "proxy-connection", "te", "trailer"}
    | {"transfer-encoding", "upgrade"}
)
"""Headers that frame the message itself: set here, never by the caller."""

_DEFAULTS = {"user-agent": "jobq", "accept": "*/*", "accept-encoding": "identity"}
_BLANK_LINE = re.compile(rb"\r?\n\r?\n")
_STATUS_LINE = re.compile(rb"HTTP/1\.[0-9] ([1-9][0-9]{2})(?: (.*))?", re.DOTALL)
_FOLD = re.compile(rb"\r?\n[ \t]+")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,12})[ \t]*(?:;.*)?", re.DOTALL)
_NO_BODY = frozenset({101, 204, 304})


class InvalidAnswer(ValueError):
    """What came back is no HTTP, or breaks its rules; the message says how."""


class IncompleteAnswer(EOFError):
    """The connection ended before the answer did; the message says where."""


def _always(_status: int) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Request:
    """What to ask. Header names must be tokens and no value may hold CR, LF or NUL (specs see to it)."""

    target: Target
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    max_body: int = MAX_BODY
    """Bytes of the answer's body that are read; then the connection is closed."""
    wants_body: Callable[[int], bool] = _always
    """Asked with the status of the answer: is its body of any interest?"""
    keep_body: bool = True
    """False: the body is read and counted, but not kept."""
    confidential: bool = False
    """True: the headers hold secrets, which a server may echo: problems quote next to nothing of what came."""

    def encode(self) -> bytes:
        """The bytes to send. ``Connection: close``: each request has its own connection."""
        given = {name.lower() for name in self.headers}
        lines = [f"{self.method} {self.target.path} HTTP/1.1"]
        if "host" not in given:
            lines.append(f"Host: {self.target.authority}")
        lines += [f"{name}: {text}" for name, text in _DEFAULTS.items() if name not in given]
        lines += [f"{name}: {text}" for name, text in self.headers.items() if name.lower() not in RESERVED_HEADERS]
        if self.body or self.method not in {"GET", "HEAD"}:
            lines.append(f"Content-Length: {len(self.body)}")
        lines.append("Connection: close\r\n\r\n")
        return "\r\n".join(lines).encode() + self.body


class Answer:
    """One answer, read as its bytes come in."""

    __slots__ = (
        "_buffer",
        "_reading",
        "_request",
        "body",
        "headers",
        "phrase",
        "size",
        "status",
        "truncated",
    )

    def __init__(self, request: Request) -> None:
        self.status = 0
        """0 until the head has come."""
        self.phrase = ""
        """As the server wrote it: not fit for showing."""
        self.headers: dict[str, str] = {}
        """Names in lower case; repeated ones are joined with a comma."""
        self.body = bytearray()
        self.size = 0
        """Bytes of the body that were read."""
        self.truncated = False
        """True: the body is longer than what was read."""
        self._request = request
        self._buffer = bytearray()
        self._reading = self._read()
        next(self._reading)

    def feed(self, data: bytes) -> bool:
        """Take what came in; True once the answer is complete. ``b""``: the connection has ended.

        Raises InvalidAnswer or IncompleteAnswer.
        """
        try:
            self._reading.send(data)
        except StopIteration:
            return True
        return False

    def _read(self) -> Generator[None, bytes, None]:
        for _ in range(MAX_INTERIM):
            self._parse_head((yield from self._head()))
            if self.status >= 200 or self.status == 101:
                break
        else:
            raise InvalidAnswer(f"more than {MAX_INTERIM} interim answers")
        if self._request.method == "HEAD" or self.status in _NO_BODY or not self._request.wants_body(self.status):
            return
        coding = self.headers.get("transfer-encoding", "").lower()
        if coding.endswith("chunked"):
            yield from self._chunked_body()
        elif not coding and "content-length" in self.headers:
            yield from self._take(self._content_length())
        else:
            yield from self._body_until_the_end()

    def _head(self) -> Generator[None, bytes, bytes]:
        buffer = self._buffer
        seen = 0
        while not (end := _BLANK_LINE.search(buffer, max(0, seen - 3))):
            seen = len(buffer)
            if not buffer.startswith(b"HTTP/"[:seen]):
                raise self._no_http(bytes(buffer))
            if seen > MAX_HEAD:
                raise InvalidAnswer(f"its headers exceed {MAX_HEAD // 1024} KiB")
            yield from self._more("in the middle of the headers" if buffer else "without an answer")
        if end.start() > MAX_HEAD:
            raise InvalidAnswer(f"its headers exceed {MAX_HEAD // 1024} KiB")
        head = bytes(buffer[: end.start()])
        del buffer[: end.end()]
        return head

    def _no_http(self, data: bytes) -> InvalidAnswer:
        return InvalidAnswer(f"it begins with {data[: 2 if self._request.confidential else 24]!r}")

    def _parse_head(self, head: bytes) -> None:
        first, *lines = _FOLD.sub(b" ", head).split(b"\n")
        found = _STATUS_LINE.fullmatch(first.rstrip(b"\r"))
        if not found:
            raise self._no_http(first)
        self.status = int(found[1])
        self.phrase = (found[2] or b"").decode("latin-1").strip()
        self.headers.clear()
        for line in lines:
            name, colon, text = line.decode("latin-1").partition(":")
            if not colon:
                raise InvalidAnswer("one of its header lines has no colon")
            name, text = name.strip().lower(), text.strip()
            self.headers[name] = f"{self.headers[name]}, {text}" if name in self.headers else text

    def _content_length(self) -> int:
        lengths = {part.strip() for part in self.headers["content-length"].split(",")}
        length = lengths.pop()
        if lengths or not (length.isascii() and length.isdigit() and len(length) <= 18):
            raise InvalidAnswer("its Content-Length is no number")
        return int(length)

    def _take(self, count: int) -> Generator[None, bytes, None]:
        """Read ``count`` bytes of the body; if the limit is lower, only up to the limit."""
        left = min(count, self._request.max_body - self.size)
        self.truncated = count > left
        while (left := left - self._move(left)) > 0:
            yield from self._more(f"after {self.size} bytes of a longer body")

    def _move(self, limit: int) -> int:
        """Count what has come as body, and keep it if it is wanted."""
        part = self._buffer[:limit]
        del self._buffer[:limit]
        self.size += len(part)
        if self._request.keep_body:
            self.body += part
        return len(part)

    def _body_until_the_end(self) -> Generator[None, bytes, None]:
        while True:
            self._move(self._request.max_body - self.size)
            if self._buffer:
                self.truncated = True
                return
            data = yield
            if not data:
                return
            self._buffer += data

    def _chunked_body(self) -> Generator[None, bytes, None]:
        for _ in range(MAX_CHUNKS):
            size = _CHUNK_SIZE.fullmatch((yield from self._line()))
            if not size:
                raise InvalidAnswer("one of its chunks has no size")
            if not (count := int(size[1], 16)):
                return  # trailers are of no interest, and the connection is not used again
            yield from self._take(count)
            if self.truncated:
                return
            if (yield from self._line()):
                raise InvalidAnswer("one of its chunks is longer than its size")
        self.truncated = True

    def _line(self) -> Generator[None, bytes, bytes]:
        buffer = self._buffer
        while (end := buffer.find(b"\n")) < 0:
            if len(buffer) > MAX_CHUNK_LINE:
                raise InvalidAnswer("one of its chunks has no size")
            yield from self._more(f"after {self.size} bytes of a longer body")
        line = bytes(buffer[:end]).rstrip(b"\r")
        del buffer[: end + 1]
        return line

    def _more(self, where: str) -> Generator[None, bytes, None]:
        data = yield
        if not data:
            raise IncompleteAnswer(where)
        self._buffer += data
