"""The only way in which jobq asks what strangers name: an HTTP request to an address that was checked.

    resolve → check every address → connect to one of them → check the peer → TLS → send → read, bounded

over one deadline, so that neither a silent server nor one that drips bytes outlasts it. Redirects are answers,
never followed; proxies and environment variables are ignored; nothing is decompressed; each request has a
connection of its own, because a kept one proves less and cannot be timed.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable, Iterator

from jobq.net import Address, Network, Target, is_blocked
from jobq.outbound.causes import RequestFailed, connect_failed, dns_failed
from jobq.outbound.connection import Connection, Phases
from jobq.outbound.http1 import Answer, Request
from jobq.outbound.resolver import Resolver, Resolves

MAX_ADDRESSES = 4  # that are tried; all are checked


class Outbound:
    """Sends requests: one per event loop, used concurrently."""

    def __init__(
        self,
        allowed_networks: Iterable[Network] = (),
        *,
        resolver: Resolves | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.allowed_networks = tuple(allowed_networks)
        self._resolver = resolver or Resolver()
        self._tls = tls or _tls_context()

    def close(self) -> None:
        """Give up the resolver's threads."""
        self._resolver.close()

    async def send(self, request: Request, *, seconds: float | None, phases: Phases | None = None) -> Answer:
        """The answer to a request, within ``seconds`` for everything. Raises RequestFailed."""
        phases = phases or Phases()
        tried: list[Connection] = []
        try:
            async with asyncio.timeout(seconds) as deadline:
                addresses = await self._addresses(request.target, phases)
                return await self._ask(addresses, request, phases, deadline.when(), tried)
        except TimeoutError:
            doing = self._doing(request.target, phases.current, tried)
            raise RequestFailed("timed_out", f"timed out after {seconds:g} s while {doing}") from None
        finally:
            phases.enter("")
            for connection in tried:
                connection.close()

    async def _addresses(self, target: Target, phases: Phases) -> tuple[Address, ...]:
        """Where to connect to; if one address of a name is forbidden, the name is."""
        if target.address:
            addresses: tuple[Address, ...] = (target.address,)
        else:
            phases.enter("dns")
            try:
                addresses = await self._resolver.resolve(target.lookup)
            except OSError as error:
                raise dns_failed(target.host, error) from None
        for address in addresses:
            if why := is_blocked(address, self.allowed_networks):
                whose = "" if target.address else f", to which {target.host} resolves,"
                raise RequestFailed("blocked", f"{address}{whose} is {why}: not reached", retry=False)
        return addresses[:MAX_ADDRESSES]

    async def _ask(
        self,
        addresses: tuple[Address, ...],
        request: Request,
        phases: Phases,
        deadline: float | None,
        tried: list[Connection],
    ) -> Answer:
        """The answer of the first address that takes a connection; a silent one gets its share of the time only."""
        phases.enter("connect")
        failure = OSError("there is no address")
        for address, share in _shares(addresses, deadline):
            connection = Connection(request, phases, address, self._tls)
            tried.append(connection)
            try:
                connection.open()
                if share is not None:
                    async with asyncio.timeout_at(share):
                        await connection.connected()
                return await connection.answered()
            except OSError as error:
                failure = error
                connection.close()
        raise connect_failed(failure, request.target, [each.address for each in tried]) from None

    def _doing(self, target: Target, phase: str, tried: list[Connection]) -> str:
        """What a request was waiting for, for its message."""
        match phase:
            case "dns":
                if self._resolver.waits_for_thread(target.lookup):
                    return f"waiting to resolve {target.host}: too many other names get no answer"
                return f"resolving {target.host}: the name server does not answer"
            case "connect":
                where = " or ".join(str(each.address) for each in tried)
                return f"connecting to {where} port {target.port}: a firewall may drop it, or the host is down"
            case "tls":
                return "waiting for the TLS handshake"
            case "first_byte":
                return "waiting for the first byte of the answer"
        return f"reading the answer ({tried[-1].answer.size} bytes of its body had come)"


def _tls_context() -> ssl.SSLContext:
    """Verifies against the system's authorities, or those of SSL_CERT_FILE and SSL_CERT_DIR."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def _shares(addresses: tuple[Address, ...], deadline: float | None) -> Iterator[tuple[Address, float | None]]:
    """Each address, and the instant (of the loop's clock) at which the next one is tried; the last one has none."""
    loop = asyncio.get_running_loop()
    for left, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
        if deadline is None or left == 1:
            yield address, None
        else:
            yield address, loop.time() + (deadline - loop.time()) / left
