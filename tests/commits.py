"""A proxy in front of PostgreSQL that knows where transactions end: it loses the reply to a COMMIT, or holds one up.

It reads what clients say in PostgreSQL's protocol (version 3, no TLS), so that it tells a transaction by its
statements, also where they were prepared long before.
"""

import asyncio
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tests.proxy import CHUNK, Proxy
from tests.proxy import _Pair as Pair
from tests.services import Postgres

_STARTUP = 196608
_WRITES = re.compile(r"\b(INSERT|UPDATE|DELETE)\b")


@dataclass
class Session:
    """What a client has said on one connection, statement by statement."""

    buffer: bytes = b""
    started: bool = False
    prepared: dict[bytes, str] = field(default_factory=dict)
    portals: dict[bytes, str] = field(default_factory=dict)
    executed: list[str] = field(default_factory=list)
    """Since the last point at which the server answers."""
    transaction: list[str] = field(default_factory=list)
    begun: bool = False

    def hear(self, data: bytes) -> Iterator[tuple[str, bool]]:
        """All statements of the present transaction, at each point where the server answers; whether it commits."""
        self.buffer += data
        for kind, body in self._messages():
            if kind == b"P":
                name, query, _ = body.split(b"\0", 2)
                self.prepared[name] = query.decode()
            elif kind == b"B":
                portal, name, _ = body.split(b"\0", 2)
                self.portals[portal] = self.prepared[name]
            elif kind == b"E":
                self.executed.append(self.portals[body.split(b"\0", 1)[0]])
            elif kind == b"Q":
                self.executed.append(body[:-1].decode())
            if kind in (b"Q", b"S") and self.executed:
                yield self._answered()

    def _messages(self) -> Iterator[tuple[bytes, bytes]]:
        while not self.started and len(self.buffer) >= 8:
            length, code = struct.unpack_from("!II", self.buffer)
            if len(self.buffer) < length:
                return
            self.started = code == _STARTUP  # before it come requests for encryption, which are declined
            self.buffer = self.buffer[length:]
        while self.started and len(self.buffer) >= 5:
            end = 1 + struct.unpack_from("!I", self.buffer, 1)[0]
            if len(self.buffer) < end:
                return
            kind, body, self.buffer = self.buffer[:1], self.buffer[5:end], self.buffer[end:]
            yield kind, body

    def _answered(self) -> tuple[str, bool]:
        said, self.executed = "\n".join(self.executed), []
        word = said.split(None, 1)[0].upper().rstrip(";")
        if word == "BEGIN":
            self.transaction, self.begun = [], True
            return "", False
        if word in ("COMMIT", "ROLLBACK"):
            whole, self.transaction, self.begun = "\n".join([*self.transaction, said]), [], False
            return whole, word == "COMMIT"
        if not self.begun:
            return said, True
        self.transaction.append(said)
        return "\n".join(self.transaction), False


class Commits(Proxy):
    """A proxy that tells transactions by a regular expression over their statements."""

    def __init__(self, server: Postgres) -> None:
        super().__init__(("127.0.0.1", server.port))
        self.swallowed: list[str] = []
        """The statements of each transaction that was committed and whose reply never arrived."""
        self.holding = 0
        """Transactions that are held open: the server has answered all that it was asked."""
        self._to_lose: list[re.Pattern[str]] = []
        self._to_hold: list[re.Pattern[str]] = []
        self._chance: Callable[[], bool] = lambda: False
        self._dooms: dict[Pair, tuple[str, re.Pattern[str] | None]] = {}
        self._gates: dict[Pair, asyncio.Event] = {}

    # --- what a test may do to it ------------------------------------------------------------------------------------

    def lose(self, pattern: str, times: int = 1) -> None:
        """The next so many transactions that match are committed; their connections are reset before the reply.

        Of statements that commit by themselves, and so have no COMMIT behind them, those that found nothing do not count.
        """
        self._call(lambda: self._to_lose.extend([re.compile(pattern, re.DOTALL)] * times))

    def lose_by(self, chance: Callable[[], bool]) -> None:
        """From now on, the same with those transactions that write for which this says so."""
        self._call(lambda: setattr(self, "_chance", chance))

    def hold(self, pattern: str) -> None:
        """The next transaction that matches stays open: its client does not get the server's last answer."""
        self._call(lambda: self._to_hold.append(re.compile(pattern, re.DOTALL)))

    def release(self) -> None:
        """What was held up arrives."""
        self._call(lambda: [gate.set() for gate in self._gates.values()])

    # --- on its own thread -------------------------------------------------------------------------------------------

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, pair: Pair, *, from_client: bool
    ) -> None:
        pass_on = self._ask if from_client else self._answer
        await pass_on(source, sink, pair)
        if sink.can_write_eof():
            sink.write_eof()

    async def _ask(self, client: asyncio.StreamReader, server: asyncio.StreamWriter, pair: Pair) -> None:
        session = Session()
        while data := await client.read(CHUNK):
            await self._thawed.wait()
            for said, commits in session.hear(data):
                if commits:
                    self._judge(pair, said)
                elif hit := _first(self._to_hold, said):
                    self._to_hold.remove(hit)
                    self._gates[pair] = asyncio.Event()
            server.write(data)
            await server.drain()

    def _judge(self, pair: Pair, said: str) -> None:
        if hit := _first(self._to_lose, said):
            self._to_lose.remove(hit)
            self._dooms[pair] = (said, hit)
        elif _WRITES.search(said) and self._chance():
            self._dooms[pair] = (said, None)

    async def _answer(self, server: asyncio.StreamReader, client: asyncio.StreamWriter, pair: Pair) -> None:
        kept = b""
        while data := await server.read(CHUNK):
            await self._thawed.wait()
            if pair in self._dooms:
                kept += data
                kinds = _kinds(kept)
                if not kinds.endswith("Z"):
                    continue
                said, pattern = self._dooms.pop(pair)
                if pattern is None or "D" in kinds or kinds == "CZ":
                    self.swallowed.append(said)
                    pair.reset()
                    return
                self._to_lose.append(pattern)
                data, kept = kept, b""
            if gate := self._gates.get(pair):
                self.holding += 1
                await gate.wait()
                self.holding -= 1
                del self._gates[pair]
            client.write(data)
            await client.drain()


def _first(patterns: list[re.Pattern[str]], said: str) -> re.Pattern[str] | None:
    return next((pattern for pattern in patterns if pattern.search(said)), None)


def _kinds(answer: bytes) -> str:
    """The kinds of the messages that are complete: "CZ" is the reply to a COMMIT, "12DCZ" one with a row."""
    kinds, place = "", 0
    while len(answer) >= place + 5:
        end = place + 1 + struct.unpack_from("!I", answer, place + 1)[0]
        if len(answer) < end:
            break
        kinds += chr(answer[place])
        place = end
    assert "E" not in kinds, f"nothing was committed: {answer!r}"
    return kinds
