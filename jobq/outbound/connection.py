"""One HTTP request and its answer, on a socket of its own, with TLS where the target wants it.

Straight on the event loop's readiness callbacks: asyncio's transports cost as much again as the system calls do,
and asyncio's TLS sets aside 256 KiB for each connection and does not tell when its handshake begins. What is
asked for here is so little (one message out, one bounded message in) that it fits below them.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_address

from jobq.net import Address
from jobq.outbound.causes import RequestFailed, answer_invalid, tls_failed, words
from jobq.outbound.http1 import Answer, IncompleteAnswer, InvalidAnswer, Request

_PIECE = 64 * 1024
_TLS_RECORD = 16 * 1024


class Phases:
    """Where a request is (dns, connect, tls, first_byte, body), and how long each part took."""

    __slots__ = ("current", "done", "since")

    def __init__(self) -> None:
        self.current = ""
        self.since = 0.0
        self.done: list[tuple[str, float, float]] = []
        """Name, begin and end in seconds of ``time.monotonic``."""

    def enter(self, name: str) -> None:
        """End the current part and begin another; an empty name begins none."""
        now = time.monotonic()
        if self.current:
            self.done.append((self.current, self.since, now))
        self.current, self.since = name, now


class Connection:
    """``open``, then wait for ``answered``, then ``close``, whatever happened."""

    def __init__(self, request: Request, phases: Phases, address: Address, tls: ssl.SSLContext) -> None:
        self.answer = Answer(request)
        self.address = address
        self._host = str(address)
        self._request = request
        self._phases = phases
        self._tls = Tls(tls, request.target.host) if request.target.scheme == "https" else None
        self._loop = asyncio.get_running_loop()
        self._socket: socket.socket | None = None
        self._unsent = bytearray()
        self._writing = False
        self._open = False
        self._wakes_when_open = False
        self._ended = False
        self._failure: OSError | RequestFailed | None = None
        self._waiter: asyncio.Future[None] | None = None

    def open(self) -> None:
        """Begin to connect; everything else follows by itself. Raises OSError."""
        family = socket.AF_INET if self.address.version == 4 else socket.AF_INET6
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        number = self._socket.connect_ex((self._host, self._request.target.port))
        if number not in {0, errno.EINPROGRESS}:
            raise OSError(number, os.strerror(number))
        self._watch_writing()

    async def connected(self) -> None:
        """Wait until the other side took the connection. Raises OSError."""
        self._wakes_when_open = True
        await self._wait()
        self._wakes_when_open = False
        if isinstance(self._failure, OSError):
            raise self._failure

    async def answered(self) -> Answer:
        """Wait for the end of the answer. Raises RequestFailed, or OSError if there was no connection."""
        if not self._ended:
            await self._wait()
        if self._failure:
            raise self._failure
        return self.answer

    def close(self) -> None:
        """At once, whatever is still to be sent: a server that reads nothing must not keep it open."""
        if self._socket:
            if self._tls and self._ended and not self._failure:
                with suppress(OSError):
                    self._socket.send(self._tls.goodbye())
            self._unwatch()
            self._socket.close()
            self._socket = None

    # --- what the event loop tells -----------------------------------------------------------------------------------

    def _writable(self) -> None:
        if self._ended or not self._socket:
            return
        if self._open:
            self._send()
            return
        if number := self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._end(OSError(number, os.strerror(number)))
            return
        self._open = True
        if self._wakes_when_open:
            self._wake()
        try:
            peer = str(self._socket.getpeername()[0])
        except OSError:
            self._end(RequestFailed("connection_lost", "the server closed the connection at once"))
            return
        if peer != self._host and ip_address(peer) != self.address:
            message = "the connection leads to another address than the one that was checked"
            self._end(RequestFailed("blocked", message, retry=False))
            return
        self._loop.add_reader(self._socket.fileno(), self._readable)
        if self._tls:
            self._phases.enter("tls")
            self._shake_hands(self._tls)
        else:
            self._phases.enter("first_byte")
            self._send(self._request.encode())

    def _readable(self) -> None:
        if self._ended or not self._socket:
            return
        try:
            data = self._socket.recv(_PIECE)
        except BlockingIOError:
            return
        except OSError as error:
            self._lost(words(error))
            return
        if not data and self._phases.current == "tls":
            self._lost("the server closed the connection")
        elif data and self._tls:
            self._receive(self._tls, data)
        else:
            self._read(data)

    # --- sending -----------------------------------------------------------------------------------------------------

    def _send(self, data: bytes = b"") -> None:
        assert self._socket
        self._unsent += data
        try:
            sent = self._socket.send(self._unsent) if self._unsent else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            self._unsent.clear()  # what the server answered before it went away is still to be read
            sent = 0
        del self._unsent[:sent]
        if not self._unsent and self._writing:
            self._writing = False
            self._loop.remove_writer(self._socket.fileno())
        elif self._unsent and not self._writing and not self._ended:
            self._watch_writing()

    def _watch_writing(self) -> None:
        assert self._socket
        self._writing = True
        self._loop.add_writer(self._socket.fileno(), self._writable)

    def _unwatch(self) -> None:
        assert self._socket
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._socket.fileno())
        if self._open:
            self._loop.remove_reader(self._socket.fileno())

    # --- TLS ---------------------------------------------------------------------------------------------------------

    def _shake_hands(self, tls: Tls) -> bool:
        """Go on with the handshake; True once it is done and the request is on its way."""
        done = False
        try:
            if done := tls.handshake():
                self._phases.enter("first_byte")
                tls.encrypt(self._request.encode())
            self._send(tls.to_send())
        except ssl.SSLError as error:
            self._send(tls.to_send())  # an alert: the server's log says why
            self._end(tls_failed(error, self._request.target))
        return done

    def _receive(self, tls: Tls, data: bytes) -> None:
        tls.received(data)
        if self._phases.current == "tls" and not self._shake_hands(tls):
            return
        try:
            for part in tls.decrypted():
                if self._read(part):
                    return
            self._send(tls.to_send())
        except ssl.SSLError as error:
            self._end(tls_failed(error, self._request.target))

    # --- the end -----------------------------------------------------------------------------------------------------

    def _read(self, data: bytes) -> bool:
        """Take a part of the answer; True if it was the last one. ``b""``: the server has ended the connection."""
        if data and self._phases.current == "first_byte":
            self._phases.enter("body")
        try:
            if self.answer.feed(data):
                self._end(None)
        except IncompleteAnswer as error:
            self._end(RequestFailed("connection_lost", f"the server closed the connection {error}"))
        except InvalidAnswer as error:
            self._end(answer_invalid(str(error), self._request.target))
        return self._ended

    def _lost(self, how: str) -> None:
        if self._phases.current == "tls":
            hint = "it may want another version of TLS, or no TLS at all"
            self._end(RequestFailed("tls", f"TLS failed: {how}; {hint}"))
        else:
            self._end(RequestFailed("connection_lost", f"the connection broke: {how}"))

    def _end(self, failure: OSError | RequestFailed | None) -> None:
        self._failure = failure
        self._ended = True
        self._unwatch()
        self._open = False
        self._wake()

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        await self._waiter

    def _wake(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)


class Tls:
    """The client's end of TLS, between two memory buffers."""

    __slots__ = ("_incoming", "_outgoing", "_session")

    def __init__(self, context: ssl.SSLContext, host: str) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._session = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)

    def received(self, data: bytes) -> None:
        """Take what came over the connection."""
        self._incoming.write(data)

    def to_send(self) -> bytes:
        """Give what must go over the connection."""
        return self._outgoing.read()

    def handshake(self) -> bool:
        """Go on; True once it is done. Raises SSLError."""
        try:
            self._session.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def encrypt(self, data: bytes) -> None:
        """Put a message into what must be sent."""
        self._session.write(data)

    def decrypted(self) -> Iterator[bytes]:
        """What can be read of what came; an empty part is the server's end. Raises SSLError."""
        while True:
            try:
                part = self._session.read(_TLS_RECORD)
            except ssl.SSLWantReadError:
                return
            yield part
            if not part:
                return

    def goodbye(self) -> bytes:
        """The notice that a polite client sends before it closes."""
        with suppress(ssl.SSLError):  # it wants the server's own notice, for which nobody waits
            self._session.unwrap()
        return self._outgoing.read()
