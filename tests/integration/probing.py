"""What the tests of probes share: an executor to probe with, and servers that behave as a test wants."""

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from uuid import uuid4

from jobq.models import Outcome
from jobq.net import Address
from jobq.plugins import Context, JobRef
from jobq.settings import Policy, Settings
from jobq.specs import Heartbeat
from workers.heartbeat import HeartbeatExecutor

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
LOCAL = Settings(policy=Policy(probe_networks=["127.0.0.0/8", "::1/128"]))


@dataclass
class Names:
    """A resolver that says what the test wants, one answer after the other."""

    answers: dict[str, list[list[str]]]
    asked: list[str] = field(default_factory=list)

    async def resolve(self, name: str) -> tuple[Address, ...]:
        self.asked.append(name)
        answers = self.answers[name]
        texts = answers.pop(0) if len(answers) > 1 else answers[0]
        return tuple(ip_address(text) for text in texts)

    def waits_for_thread(self, name: str) -> bool:
        return False

    def close(self) -> None:
        self.asked.clear()


@dataclass
class Probe:
    """One executed probe: what it gave, and what it told on the way."""

    outcome: Outcome
    context: Context
    lines: list[str]
    seconds: float

    @property
    def steps(self) -> list[str]:
        return [step.name for step in self.context.steps]


@asynccontextmanager
async def opened(settings: Settings = LOCAL, **parts: Any) -> AsyncIterator[HeartbeatExecutor]:
    executor = HeartbeatExecutor(**parts)
    await executor.open(settings)
    try:
        yield executor
    finally:
        await executor.close()


async def probe(executor: HeartbeatExecutor, spec: Heartbeat, seconds: float | None = 5.0) -> Probe:
    lines: list[str] = []
    job = JobRef(uuid4(), 1, "default", "HEARTBEAT", "probe", "heartbeat", "MANUAL", seconds)
    context = Context(job, write_log=lambda text, stream: lines.append(f"{stream}: {text!s}"))
    began = time.monotonic()
    outcome = await executor.execute(spec, context)
    return Probe(outcome, context, lines, time.monotonic() - began)


async def probe_once(spec: Heartbeat, seconds: float | None = 5.0, **parts: Any) -> Probe:
    async with opened(**parts) as executor:
        return await probe(executor, spec, seconds)


@asynccontextmanager
async def serving(
    serve: Serve, *, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None, limit: int = 2**16
) -> AsyncIterator[int]:
    """A server that treats each connection as the test wants; gives its port."""

    visits: set[asyncio.Task[None]] = set()

    async def visit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # What ends a visit: the probe went away, as it may, or the test is over.
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await serve(reader, writer)
        with suppress(OSError, asyncio.CancelledError):
            writer.close()
            await writer.wait_closed()

    def come(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        visits.add(asyncio.create_task(visit(reader, writer)))

    server = await asyncio.start_server(come, host, port, ssl=tls, backlog=4096, limit=limit)
    async with server:
        yield server.sockets[0].getsockname()[1]
    for each in visits:
        each.cancel()
    await asyncio.gather(*visits, return_exceptions=True)


def answering(answer: bytes, *, asked: list[bytes] | None = None) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        if asked is not None:
            asked.append(request)
        writer.write(answer)
        await writer.drain()

    return serve


async def endless(writer: asyncio.StreamWriter, part: bytes, pause: float) -> None:
    while True:
        writer.write(part)
        await writer.drain()
        await asyncio.sleep(pause)


async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def connections_to(port: int) -> list[str]:
    """Established connections of this machine to the port."""
    wanted = f":{port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [row[1] for row in rows if row[2].endswith(wanted) and row[3] == "01"]


class full_backlog:  # noqa: N801 - reads as a verb where it is used
    """A port whose queue of connections is full: the system drops what comes then, as a firewall does."""

    def __init__(self, host: str) -> None:
        self._listener = socket.socket()
        self._listener.bind((host, 0))
        self._listener.listen(0)
        self._waiting: list[socket.socket] = []

    def __enter__(self) -> int:
        where = self._listener.getsockname()
        for _ in range(3):
            waiting = socket.socket()
            waiting.setblocking(False)
            waiting.connect_ex(where)
            self._waiting.append(waiting)
        time.sleep(0.05)
        port: int = where[1]
        return port

    def __exit__(self, *_: object) -> None:
        for each in (*self._waiting, self._listener):
            each.close()
