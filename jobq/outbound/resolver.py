"""Names to addresses through the system's resolver, for thousands of askers at once.

``getaddrinfo`` blocks a thread, for many seconds if a name server is away, and cannot be interrupted. Hence:

- its own threads, at most ``MAX_THREADS``: dead names hold up neither the store nor the log, which have theirs;
- one lookup per name, however many ask: a dead name costs one thread;
- an answer is good for ``KEEP`` seconds, a failure only for those who already wait. Keeping addresses opens no
  door to rebinding: whoever connects checks the address, and connects to that address;
- daemon threads: a hanging lookup does not hold up the end of the process.

One resolver belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import queue
import socket
import threading
import time
from collections.abc import Callable
from ipaddress import ip_address
from typing import Protocol

from jobq.net import Address

KEEP = 2.0
"""Seconds: long enough for a burst of jobs, short beside any schedule."""
MAX_THREADS = 64
MAX_KEPT = 4096

Lookup = Callable[[str], tuple[Address, ...]]


class Resolves(Protocol):
    """The port: what ``Outbound`` needs to know of a resolver."""

    async def resolve(self, name: str) -> tuple[Address, ...]:
        """Every address of the name, the preferred one first. Raises ``socket.gaierror``."""
        ...

    def waits_for_thread(self, name: str) -> bool:
        """True while the lookup of the name has not begun, because too many others hang."""
        ...

    def close(self) -> None: ...


def system_lookup(name: str) -> tuple[Address, ...]:
    """Ask the system (hosts file, DNS, as it is configured); blocks."""
    # As bytes: names are ASCII here, and nothing may map them to other names on the way.
    found = socket.getaddrinfo(name.encode("ascii"), None, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(ip_address(str(address[0])) for *_, address in found))


class Resolver:
    """The resolver of the system, asked from daemon threads."""

    def __init__(self, lookup: Lookup = system_lookup, *, keep: float = KEEP, threads: int = MAX_THREADS) -> None:
        self._lookup = lookup
        self._keep = keep
        self._max_threads = threads
        self._kept: dict[str, tuple[float, tuple[Address, ...]]] = {}
        self._asked: dict[str, asyncio.Future[tuple[Address, ...]]] = {}
        self._work: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._begun: set[str] = set()
        self._threads = 0
        self._loop: asyncio.AbstractEventLoop | None = None

    async def resolve(self, name: str) -> tuple[Address, ...]:
        """Every address of the name, the preferred one first. Raises ``socket.gaierror``."""
        kept = self._kept.get(name)
        if kept and kept[0] > time.monotonic():
            return kept[1]
        asked = self._asked.get(name)
        if asked is None:
            asked = self._ask(name)
        return await asyncio.shield(asked)  # the lookup is shared: one asker's timeout must not end it

    def waits_for_thread(self, name: str) -> bool:
        """True while the lookup of the name has not begun, because too many others hang."""
        return name in self._asked and name not in self._begun

    def close(self) -> None:
        """Let the threads end when their lookups do; whoever still waits is told."""
        for name in list(self._asked):
            self._answer(name, socket.gaierror(socket.EAI_AGAIN, "the resolver was closed"))
        for _ in range(self._threads):
            self._work.put(None)
        self._threads = 0

    def _ask(self, name: str) -> asyncio.Future[tuple[Address, ...]]:
        self._loop = asyncio.get_running_loop()
        asked = self._asked[name] = self._loop.create_future()
        self._work.put(name)
        if len(self._asked) > self._threads < self._max_threads:
            self._threads += 1
            threading.Thread(target=self._serve, name="jobq-resolver", daemon=True).start()
        return asked

    def _serve(self) -> None:
        while (name := self._work.get()) is not None:
            self._begun.add(name)
            answer: tuple[Address, ...] | Exception
            try:
                answer = self._lookup(name)
            except Exception as error:  # noqa: BLE001 - it is raised in whoever asked
                answer = error
            try:
                assert self._loop is not None
                self._loop.call_soon_threadsafe(self._answer, name, answer)
            except RuntimeError:  # the loop is closed: nobody waits any more
                return

    def _answer(self, name: str, answer: tuple[Address, ...] | Exception) -> None:
        self._begun.discard(name)
        asked = self._asked.pop(name, None)
        if isinstance(answer, Exception):
            if asked and not asked.done():
                asked.set_exception(answer)
                asked.exception()  # those who asked may all be gone by now
            return
        now = time.monotonic()
        if len(self._kept) >= MAX_KEPT:
            self._kept = {name: kept for name, kept in self._kept.items() if kept[0] > now}
            if len(self._kept) >= MAX_KEPT:
                self._kept.clear()
        self._kept[name] = (now + self._keep, answer)
        if asked and not asked.done():
            asked.set_result(answer)
