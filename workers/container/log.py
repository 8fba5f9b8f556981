"""The log of one container: followed while it runs, complete at its end, and continued by whoever takes it over.

The engine sends messages: a line, or a piece of at most 16 KiB of a longer one, each with its stream and the
instant it was read at. The position in the log is, per stream, the instant of the last message taken and how
many messages of that instant were taken: the pieces of one long line all carry the same one.

The position that is saved stands behind the last whole line: the beginning of one that has not ended is in this
worker's memory only, so a successor reads that line from its beginning.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from jobq.plugins import Context
from workers.container.engine import DockerEngine, EngineError, EngineRefused

log = logging.getLogger(__name__)

_HEADER = struct.Struct(">BxxxL")
_STREAMS = {1: "stdout", 2: "stderr"}
_MAX_MESSAGE = 1024 * 1024
_NEWLINE = ord("\n")
_SKEW = timedelta(seconds=0.5)
"""stdout and stderr are stamped apart and written under one lock: a message may lie behind a later instant."""
RETRY_AFTER = 1.0
CLOSE = 0.2
"""How long the follower may take to notice that the container has ended."""
DRAIN = 30.0
"""How long the rest of the log may take altogether, once the container has ended."""

Position = dict[str, tuple[str, int]]


class ContainerLog:
    """Passes a container's log on to the job's, from a saved position on."""

    def __init__(
        self,
        engine: DockerEngine,
        container: str,
        ctx: Context,
        saved: Mapping[str, Any] | None = None,
        moved: Callable[[], None] = lambda: None,
    ) -> None:
        self.container = container
        self._engine = engine
        self._ctx = ctx
        self._moved = moved
        """Called each time the position has moved, in the same breath as the log was passed on."""
        since: Mapping[str, Any] = (saved or {}).get("log_since", {})
        self._taken: Position = {stream: (str(at), int(count)) for stream, (at, count) in since.items()}
        self._whole: Position = dict(self._taken)
        self._open: dict[str, str] = {}
        self._open_before: str = (saved or {}).get("log_open", "")
        self._skip: Position = {}
        self._rest = b""
        self._ended = asyncio.Event()
        """Set while no request is under way: the last one came to an end, good or bad."""

    @property
    def position(self) -> dict[str, Any]:
        """Where a successor goes on, to be ``saved``: behind the last whole line of each stream.

        ``log_open`` is the instant of the oldest line that has not ended: it must be asked for from there on.
        """
        since = {stream: [at, count] for stream, (at, count) in self._whole.items()}
        return {"log_since": since, **({"log_open": min(self._open.values())} if self._open else {})}

    async def follow(self) -> None:
        """Pass the log on until cancelled: a follower that ends while the container runs begins again."""
        while True:
            self._ended.clear()
            try:
                await self._read(follow=True)
            except EngineRefused as refused:
                if refused.status == 404:  # removed, or taken over by another worker
                    return
            except EngineError as error:
                # Whoever waits for the container's end meets the same, and decides what it means.
                log.debug("the log of %s was interrupted: %s", self.container, error)
            finally:
                self._ended.set()
            await asyncio.sleep(RETRY_AFTER)

    async def drain(self, follower: asyncio.Task[None]) -> None:
        """Complete the log of a container that has ended; EngineError or TimeoutError: the rest cannot be had.

        The rest is always asked for once more: a follower that the container outran jumps to the engine's newest
        file, and even one that kept up often ends just before the last piece of an unfinished line.
        """
        async with asyncio.timeout(DRAIN):
            ended = asyncio.create_task(self._ended.wait())
            await asyncio.wait({follower, ended}, timeout=CLOSE, return_when=asyncio.FIRST_COMPLETED)
            follower.cancel()
            ended.cancel()
            await asyncio.wait({follower, ended})
            if not follower.cancelled() and (failed := follower.exception()):
                raise failed
            await self._read(follow=False)

    async def _read(self, *, follow: bool) -> None:
        self._rest = b""
        self._skip = dict(self._taken)
        await self._engine.logs(self.container, self.feed, follow=follow, since=self._since())

    def _since(self) -> str:
        """The instant to ask from: early enough to meet every message that was not taken yet."""
        if not self._taken:
            return ""
        last = max(at for at, _ in self._taken.values())
        last = min(last, *self._open.values(), self._open_before or last)  # its pieces all carry its first instant
        since = datetime.fromisoformat(last) - _SKEW
        return f"{int(since.timestamp())}.{since.microsecond * 1000:09}"

    def feed(self, piece: bytes) -> None:
        """Take a piece of the multiplexed log; messages of one stream in a row are passed on as one."""
        with self._ctx.at_once():
            self._take(self._rest + piece)
            self._moved()

    def _take(self, data: bytes) -> None:
        at, running = 0, 0
        run: list[bytes] = []
        while len(data) - at >= _HEADER.size:
            number, size = _HEADER.unpack_from(data, at)
            if size > _MAX_MESSAGE:
                raise EngineRefused(500, "the engine's log is not in the format that was asked for")
            start, end = at + _HEADER.size, at + _HEADER.size + size
            if end > len(data):
                break
            at = end
            space = data.find(b" ", start, end)
            if not self._is_new(number, data[start:space].decode(errors="replace")):
                continue
            if number != running:
                self._pass_on(running, run)
                run, running = [], number
            run.append(data[space + 1 : end])
            self._note_end(_STREAMS.get(number, "system"), whole=data[end - 1] == _NEWLINE)
        self._rest = data[at:]
        self._pass_on(running, run)

    def _note_end(self, stream: str, *, whole: bool) -> None:
        """The message just taken ends a line, or leaves one open."""
        if whole:
            self._whole[stream] = self._taken[stream]
            self._open.pop(stream, None)
        else:
            self._open.setdefault(stream, self._taken[stream][0])

    def _is_new(self, number: int, stamp: str) -> bool:
        """Move the position to this message; False: it was taken before."""
        stream = _STREAMS.get(number, "system")
        if skip := self._skip.get(stream):
            if stamp < skip[0]:
                return False
            if stamp == skip[0] and skip[1] > 0:
                self._skip[stream] = (stamp, skip[1] - 1)
                return False
            del self._skip[stream]
        last, count = self._taken.get(stream, ("", 0))
        self._taken[stream] = (stamp, count + 1 if stamp == last else 1)
        return True

    def _pass_on(self, number: int, run: list[bytes]) -> None:
        if run:
            self._ctx.log(b"".join(run), _STREAMS.get(number, "system"))
