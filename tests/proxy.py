"""A proxy that stands between a client and a server and spoils what goes through it, as a test says.

It runs on a thread of its own, so a test changes its mode at any moment, from any thread; a change holds for what goes
through from the moment the call returned, on the connections that are open as on new ones.
"""

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias, TypeVar
from urllib.parse import urlsplit

T = TypeVar("T")
Address: TypeAlias = tuple[str, int] | Path
"""Host and port, or the path of a Unix socket."""
Mode: TypeAlias = Literal["pass", "freeze", "reset", "slow"]
CHUNK = 64 * 1024


class Proxy:
    """Listens on a port of its own (or the Unix socket ``listen``) and passes everything on to ``upstream``.

    ``address`` is where it listens; ``url(...)`` is a server's URL that leads through it. ``accepted`` counts
    connections since the start, ``open`` those that are open, ``lost`` the replies that ``lose_reply`` swallowed.
    """

    def __init__(self, upstream: Address, *, listen: Path | None = None) -> None:
        self.upstream = upstream
        self.mode: Mode = "pass"
        self.accepted = 0
        self.lost = 0
        self._listen = listen
        self._delay = 0.0
        self._bandwidth: float | None = None
        self._doomed: list[bytes] = []
        self._pairs: set[_Pair] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._do(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def open(self) -> int:
        return len(self._pairs)

    @property
    def port(self) -> int:
        assert not isinstance(self.address, Path)
        return self.address[1]

    def url(self, url: str) -> str:
        """The URL of the server behind it, with this proxy's port in the place of the server's own."""
        parts = urlsplit(url)
        userinfo, at, _host = parts.netloc.rpartition("@")
        return parts._replace(netloc=f"{userinfo}{at}127.0.0.1:{self.port}").geturl()

    # --- what a test may do to it ------------------------------------------------------------------------------------

    def heal(self) -> None:
        """Pass everything on; what a freeze held back arrives now, in order."""
        self._change("pass")

    def freeze(self) -> None:
        """Half-open: connections stay and new ones are accepted, but no byte goes either way, as if packets fell."""
        self._change("freeze")

    def freeze_open(self, sent: bytes) -> int:
        """Freeze for ever those connections that lately sent these bytes; all others live. Return how many those are."""

        def freeze() -> int:
            chosen = [pair for pair in self._pairs if sent in pair.sent]
            for pair in chosen:
                pair.frozen = True
            return len(chosen)

        return self._call(freeze)

    def reset(self) -> None:
        """Reset every connection, and from now on each new one as soon as it is accepted."""
        self._change("reset")
        self.cut()

    def slow(self, latency: float, bandwidth: float | None = None) -> None:
        """Delay whatever goes through by so many seconds, and by its bytes at so many bytes a second."""
        self._change("slow", latency, bandwidth)

    def cut(self) -> int:
        """Reset every open connection, once; new ones live. Return how many there were."""
        return self._call(self._cut)

    def silence(self) -> int:
        """From now on nothing that the open connections say arrives anywhere, nor their end; new ones live.

        As where a firewall has forgotten them. Return how many there were.
        """
        return self._call(self._silence)

    def lose_reply(self, to: bytes) -> None:
        """The next request that contains these bytes reaches the server; its connection is reset when it replies."""
        self._call(lambda: self._doomed.append(to))

    # --- on its own thread -------------------------------------------------------------------------------------------

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def _call(self, function: Callable[[], T]) -> T:
        async def call() -> T:
            return function()

        return self._do(call())

    def _change(self, mode: Mode, latency: float = 0.0, bandwidth: float | None = None) -> None:
        def change() -> None:
            self.mode, self._delay, self._bandwidth = mode, latency, bandwidth
            (self._thawed.clear if mode == "freeze" else self._thawed.set)()

        self._call(change)

    async def _start(self) -> None:
        self._thawed = asyncio.Event()
        self._thawed.set()
        if self._listen is not None:
            self._server: asyncio.Server = await asyncio.start_unix_server(self._accept, self._listen)
            self.address: Address = self._listen
        else:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
            self.address = self._server.sockets[0].getsockname()[:2]

    async def _stop(self) -> None:
        self._server.close()
        self._cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0.01)  # for what was accepted meanwhile, and for connections to be closed

    def _cut(self) -> int:
        pairs = list(self._pairs)
        for pair in pairs:
            pair.reset()
        return len(pairs)

    def _silence(self) -> int:
        for pair in self._pairs:
            pair.silent = True
        return len(self._pairs)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._server.is_serving():  # it was just accepted when the end came
            writer.transport.abort()
            return
        self.accepted += 1
        pair = _Pair(writer)
        self._pairs.add(pair)
        task = self._loop.create_task(self._serve(reader, pair))
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._left(task, pair))

    def _left(self, task: asyncio.Task[None], pair: "_Pair") -> None:
        """Called for every connection, also for one that ends before it was served at all."""
        self._tasks.discard(task)
        self._pairs.discard(pair)
        pair.close()

    async def _serve(self, reader: asyncio.StreamReader, pair: "_Pair") -> None:
        try:
            await self._thawed.wait()
            if self.mode == "reset":
                return
            answers, pair.upstream = await self._connect()
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(reader, pair.upstream, pair, from_client=True))
                both.create_task(self._pump(answers, pair.client, pair, from_client=False))
            pair.ended = True
        except* OSError:
            pass  # either end went away, or nobody listens upstream: the other end learns it by a reset

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self.upstream, Path):
            return await asyncio.open_unix_connection(self.upstream)
        return await asyncio.open_connection(*self.upstream)

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, pair: "_Pair", *, from_client: bool
    ) -> None:
        tail = b""
        while data := await source.read(self._chunk()):
            if self._delay or self._bandwidth:
                await asyncio.sleep(self._delay + len(data) / (self._bandwidth or float("inf")))
            await self._thawed.wait()
            if pair.silent:
                continue
            if pair.frozen:
                await asyncio.Event().wait()
            if pair.doomed and not from_client:
                self.lost += 1
                pair.reset()
                return
            if from_client:
                pair.sent = (pair.sent + data)[-4096:]
            if from_client and self._doomed:
                seen = tail + data
                tail = seen[-256:]
                pair.doomed |= self._condemned(seen)
            sink.write(data)
            await sink.drain()
        await self._thawed.wait()
        if sink.can_write_eof() and not pair.silent:
            sink.write_eof()

    def _condemned(self, seen: bytes) -> bool:
        hits = [pattern for pattern in self._doomed if pattern in seen]
        for pattern in hits:
            self._doomed.remove(pattern)
        return bool(hits)

    def _chunk(self) -> int:
        return CHUNK if self._bandwidth is None else max(1, min(CHUNK, int(self._bandwidth / 10)))


class _Pair:
    """A client's connection and the one that was opened for it."""

    def __init__(self, client: asyncio.StreamWriter) -> None:
        self.client = client
        self.upstream: asyncio.StreamWriter | None = None
        self.sent = b""  # the last that the client sent
        self.frozen = False
        self.doomed = False  # its next reply is swallowed
        self.silent = False  # what it says falls on the way
        self.ended = False  # both sides closed it in good order

    def reset(self) -> None:
        """Both ends see a reset (of a Unix socket: an end), whatever was under way."""
        for writer in filter(None, (self.client, self.upstream)):
            connection = writer.get_extra_info("socket")
            if connection is not None and connection.family != socket.AF_UNIX and connection.fileno() >= 0:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    def close(self) -> None:
        if not self.ended:
            self.reset()
        for writer in filter(None, (self.client, self.upstream)):
            writer.close()
