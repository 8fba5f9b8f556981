"""Requests to one HTTP service: connections are kept alive, and lead to checked addresses only.

The guard against requests into the operator's network (``jobq.net``) stands in three places: the URL as it is written,
every address that its name resolves to, and the very address that a socket is made for. Redirects are answers, proxies
of the environment are not used, cookies are not kept. Messages name scheme and host, never a path, a query or a header.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping, Sequence

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from jobq import telemetry
from jobq.connectors import Access, InvalidConfiguration, InvalidCredentials, Unavailable
from jobq.errors import InvalidInput
from jobq.net import Network, Target, check_url, is_blocked
from jobq.outbound.causes import dns_failed, tls_failed, words
from jobq.outbound.resolver import Resolver, Resolves
from workers.connectors.answers import Answer
from workers.connectors.http_configs import Basic, Bearer, Header, HttpConfig
from workers.redaction import Redaction

MAX_COMPLAINT = 64 * 1024
"""Bytes that are read of an answer that is no success."""
_CONNECTIONS = 100
_CHUNK = 64 * 1024
_PLAIN = {"Accept": "application/json", "User-Agent": "jobq"}


class Session:
    """One service as one connector meets it. Used by many jobs at once, on one event loop."""

    def __init__(
        self, config: HttpConfig, access: Access, max_answer: int, *, resolver: Resolves | None = None
    ) -> None:
        self._config, self._access = config, access
        self._max_answer = max_answer
        self._allowed = access.policy.networks_allowed()
        self._resolver = resolver or Resolver()
        self._client: aiohttp.ClientSession | None = None
        self.hide = Redaction([*access.secrets.values(), _basic_pair(config, access)])
        """Makes text of the service fit for showing."""

    async def ask(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        credentials: bool = True,
    ) -> Answer:
        """The answer, whatever its status. A body over the limit is cut: see ``Answer.body`` and ``max_answer``.

        Raises InvalidConfiguration (a URL that is malformed or leads where it must not), InvalidCredentials (a secret
        is missing or cannot be sent) and Unavailable (no answer). ``credentials``: send the configured headers too.
        """
        target = self._checked(url)
        given = {**_PLAIN, **(self._config.headers | self._authorization() if credentials else {}), **(headers or {})}
        where = URL(target.origin + target.path, encoded=True)
        try:
            with telemetry.request(method, target) as span:
                headers = {**given, **telemetry.outgoing()}
                request = self._opened().request(method, where, data=body, headers=headers, allow_redirects=False)
                async with request as response:
                    telemetry.answered(span, response.status)
                    limit = self._max_answer if response.status < 300 else MAX_COMPLAINT
                    content = await _read(response, limit)
                    return Answer(response.status, _headers(response), content, target.origin, method, url)
        except TimeoutError:
            problem = f"no answer within {self._config.timeout:g} s"
        except aiohttp.ClientError as error:
            problem = _problem(error, target)
        raise Unavailable(f"{method} {target.origin}: {problem}")

    async def close(self) -> None:
        """Close all connections. May be called again."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()
        self._resolver.close()

    def _opened(self) -> aiohttp.ClientSession:
        if self._client is None:
            connector = aiohttp.TCPConnector(
                limit=_CONNECTIONS,
                use_dns_cache=False,  # the resolver has its own, shorter one
                resolver=_CheckedResolver(self._resolver, self._allowed),
                socket_factory=self._socket,
            )
            self._client = aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(total=self._config.timeout),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
            )
        return self._client

    def _socket(self, info: aiohttp.AddrInfoType) -> socket.socket:
        family, kind, protocol, _, address = info
        _refuse_blocked(str(address[0]), "", self._allowed)
        return socket.socket(family, kind, protocol)

    def _checked(self, url: str) -> Target:
        try:
            return check_url(url, self._allowed)
        except InvalidInput as error:
            raise InvalidConfiguration(str(error)) from None

    def _authorization(self) -> dict[str, str]:
        auth = self._config.auth
        if auth is None:
            return {}
        secret = self._access.secrets.get(auth.secret)
        if secret is None:
            raise InvalidCredentials(f"the secret {auth.secret!r} was not given to the connector")
        if any(char in secret for char in "\r\n\x00"):
            raise InvalidCredentials(f"the secret {auth.secret!r} contains a line break or NUL: set it without")
        match auth:
            case Bearer():
                return {"Authorization": f"Bearer {secret}"}
            case Basic():
                return {"Authorization": aiohttp.BasicAuth(auth.user, secret, "utf-8").encode()}
            case Header():
                return {auth.name: auth.prefix + secret}


class _CheckedResolver(AbstractResolver):
    """Gives aiohttp the addresses of a name; if one of them is forbidden, the name is."""

    def __init__(self, resolver: Resolves, allowed: Sequence[Network]) -> None:
        self._resolver, self._allowed = resolver, allowed

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Every address of the name. Raises ``socket.gaierror``, or InvalidConfiguration."""
        addresses = await self._resolver.resolve(host)
        for address in addresses:
            _refuse_blocked(str(address), host, self._allowed)
        return [
            ResolveResult(
                hostname=host, host=str(address), port=port, proto=0, flags=socket.AI_NUMERICHOST,
                family=socket.AF_INET6 if address.version == 6 else socket.AF_INET,
            )
            for address in addresses
        ]  # fmt: skip

    async def close(self) -> None:
        """Nothing: the session closes the resolver."""


def _refuse_blocked(address: str, host: str, allowed: Sequence[Network]) -> None:
    if why := is_blocked(address, allowed):
        whose = f", to which {host} resolves," if host else ""
        hint = "The operator can allow networks with JOBQ_POLICY__PROBE_NETWORKS."
        raise InvalidConfiguration(f"{address}{whose} is {why}, which jobq does not reach. {hint}")


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The body, as far as the limit and one byte more, which tells that it is longer."""
    body = bytearray()
    async for chunk in response.content.iter_chunked(_CHUNK):
        body += chunk
        if len(body) > limit:
            response.close()  # the rest is not read: this connection is of no more use
            break
    return bytes(body[: limit + 1])


def _headers(response: aiohttp.ClientResponse) -> dict[str, str]:
    """Names in their usual form (Retry-After); repeated ones are joined with a comma."""
    return {name.title(): ", ".join(response.headers.getall(name)) for name in response.headers}


def _basic_pair(config: HttpConfig, access: Access) -> str:
    """What basic authentication encodes."""
    auth = config.auth
    return f"{auth.user}:{access.secrets.get(auth.secret, '')}" if isinstance(auth, Basic) else ""


def _problem(error: aiohttp.ClientError, target: Target) -> str:
    """Why there was no answer, in words that hold no path, query or header."""
    match error:
        case aiohttp.ClientConnectorCertificateError():
            return _tls(error.certificate_error, target)
        case aiohttp.ClientConnectorDNSError():
            return str(dns_failed(target.host, error.os_error))
        case aiohttp.ClientSSLError():
            return _tls(error.os_error, target)
        case aiohttp.ClientConnectorError():
            return f"it cannot be connected to: {words(error.os_error)}"
        case aiohttp.ServerDisconnectedError() | aiohttp.ClientPayloadError() | aiohttp.ClientOSError():
            return "the connection was lost before the end of the answer"
    return f"the answer is no valid HTTP ({type(error).__name__})"


def _tls(error: BaseException, target: Target) -> str:
    return str(tls_failed(error, target)) if isinstance(error, ssl.SSLError) else f"TLS failed: {words(error)}"
