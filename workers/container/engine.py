"""The door to the Docker engine: the few calls of its API that jobq needs, each with a deadline of its own.

One pool of kept connections per worker. Nothing else in jobq speaks to Docker.

It speaks the API itself, over aiohttp, instead of through a client library: the libraries merge stdout with
stderr or decode it, end a log in silence when the connection breaks, hold a whole archive in memory, and cap
the pool (a running container holds two connections, so a stop would wait behind a hundred followers).
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

import aiohttp

from jobq.errors import Misconfigured

PATIENCE = 60.0
"""Seconds that a call may take beyond what it is meant to take; after that the engine counts as hung."""

Sink = Callable[[bytes], None]


class EngineError(Exception):
    """A call to the engine failed; ``error_class`` is what the attempt is recorded with."""

    error_class: ClassVar[str] = "docker_error"


class EngineAway(EngineError):
    """The engine cannot be reached, or the connection broke. ``asked``: a call that changes something may have been done."""

    error_class = "docker_unavailable"

    def __init__(self, message: str, *, asked: bool = False) -> None:
        super().__init__(message)
        self.asked = asked


class EngineOverdue(EngineError):
    """The engine took the call and did not answer in time: it hangs. The call may still be done."""

    error_class = "docker_unresponsive"


class EngineRefused(EngineError):
    """The engine answered no, with an HTTP status and a text."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True, slots=True)
class Listed:
    """A container in a listing."""

    id: str
    name: str
    state: str
    """created, running, paused, restarting, removing, exited or dead."""
    labels: Mapping[str, str]


class DockerEngine:
    """One Docker engine at ``url`` (``unix:///…``, ``tcp://…`` or ``https://…``). Used from one event loop.

    A container is named by its id or by its name: both are taken wherever a parameter is called ``container``.
    """

    def __init__(self, url: str, *, patience: float = PATIENCE) -> None:
        self.url = url
        self.patience = patience
        self._version = ""
        self._session, self._root = _open_session(url)

    async def close(self) -> None:
        """Close every connection; calls under way fail as EngineAway."""
        await self._session.close()

    async def identity(self, *, patience: float | None = None) -> str:
        """Which engine this is: the same as long as its machine and its data folder are.

        Its ID alone does not tell: older engines keep it outside of the data folder, so that two on one machine, and
        machines that were cloned from one image, have the same.
        """
        info = json.loads(await self._call("GET", "/info", patience=patience))
        return f"{info['ID']}@{info['Name']}{info['DockerRootDir']}"

    async def create(self, name: str, config: Mapping[str, Any]) -> str:
        """Create a container, not started, and return its id. EngineRefused 409: the name is taken."""
        made: str = json.loads(await self._call("POST", f"/containers/create?name={quote(name)}", json=config))["Id"]
        return made

    async def start(self, container: str) -> None:
        """Start a created container; one that runs already is left alone."""
        await self._call("POST", f"/containers/{container}/start")

    async def wait(self, container: str) -> int:
        """The exit code, as soon as the container does not run (any more). No deadline: the caller sets one."""
        async with self._reply("POST", f"/containers/{container}/wait?condition=not-running", None) as reply:
            code: int = json.loads(await reply.read())["StatusCode"]
        return code

    async def stop(self, container: str, grace: int) -> None:
        """Send the image's stop signal, and SIGKILL ``grace`` seconds later. One that has ended is left alone."""
        await self._call("POST", f"/containers/{container}/stop?t={grace}", patience=grace + self.patience)

    async def inspect(self, container: str) -> dict[str, Any]:
        """Everything that the engine knows of a container."""
        found: dict[str, Any] = json.loads(await self._call("GET", f"/containers/{container}/json"))
        return found

    async def rename(self, container: str, name: str) -> None:
        """Give a container another name: calls that use the old one get a 404 from now on."""
        await self._call("POST", f"/containers/{container}/rename?name={quote(name)}")

    async def remove(self, container: str) -> None:
        """Kill a container where it runs, and remove it with its anonymous volumes. One that is gone is fine."""
        try:
            await self._call("DELETE", f"/containers/{container}?force=true&v=true")
        except EngineRefused as refused:
            if refused.status not in {404, 409}:  # 409: its removal is under way
                raise

    async def list(self, labels: Mapping[str, str]) -> list[Listed]:
        """Every container that has all these labels, in whatever state."""
        filters = quote(json.dumps({"label": [f"{name}={text}" for name, text in labels.items()]}))
        rows = json.loads(await self._call("GET", f"/containers/json?all=true&filters={filters}"))
        return [
            Listed(row["Id"], (row["Names"] or ["/"])[0].removeprefix("/"), row["State"], row["Labels"]) for row in rows
        ]

    async def put_archive(self, container: str, tar: bytes) -> None:
        """Unpack a tar at the container's root; owners and modes are those of the tar."""
        kind = {"Content-Type": "application/x-tar"}
        await self._call("PUT", f"/containers/{container}/archive?path=/", data=tar, headers=kind)

    async def get_archive(self, container: str, path: str, sink: Sink) -> None:
        """Feed a tar of that path to ``sink``, piece by piece. What ``sink`` raises ends the transfer."""
        where = f"/containers/{container}/archive?path={quote(path)}"
        async with self._reply("GET", where, self.patience) as reply:
            await self._stream(reply, sink, self.patience)

    async def logs(self, container: str, sink: Sink, *, follow: bool, since: str = "") -> None:
        """Feed the multiplexed log (with timestamps) to ``sink``, from ``since`` (``seconds.nanoseconds``) to its end.

        ``follow``: to the end of the container, for as long as that takes; it may be silent meanwhile.
        """
        query = f"stdout=true&stderr=true&timestamps=true&follow={str(follow).lower()}&since={since}"
        async with self._reply("GET", f"/containers/{container}/logs?{query}", self.patience) as reply:
            await self._stream(reply, sink, None if follow else self.patience)

    async def has_image(self, image: str) -> bool:
        """Is the image here already?"""
        try:
            await self._call("GET", f"/images/{quote(image, safe='/:@')}/json")
        except EngineRefused as refused:
            if refused.status != 404:
                raise
            return False
        return True

    async def import_image(self, image: str, tar: bytes) -> None:
        """Make an image of a root file system."""
        name, tag = split_image(image)
        kind = {"Content-Type": "application/x-tar"}
        await self._call(
            "POST", f"/images/create?fromSrc=-&repo={quote(name)}&tag={quote(tag)}", data=tar, headers=kind
        )

    async def pull(self, image: str, *, deadline: float, auth: str = "") -> None:
        """Pull an image within ``deadline`` seconds. EngineRefused: the registry or the engine said no.

        ``auth``: the login for its registry, as ``registry.auth_header`` writes it.
        """
        name, tag = split_image(image)
        headers = {"X-Registry-Auth": auth} if auth else {}
        lines = b""

        def collect(piece: bytes) -> None:
            nonlocal lines
            lines = (lines + piece)[-65536:]  # an error is in the last line

        try:
            async with (
                asyncio.timeout(deadline),
                self._reply(
                    "POST", f"/images/create?fromImage={quote(name)}&tag={quote(tag)}", None, headers=headers
                ) as reply,
            ):
                await self._stream(reply, collect, None)
        except TimeoutError as late:
            raise EngineOverdue(f"the pull of {image} took longer than {deadline:g} s") from late
        last = lines.strip().rpartition(b"\n")[2]
        if last and "error" in (said := json.loads(last)):
            raise EngineRefused(500, said["error"])

    # --- transport ---------------------------------------------------------------------------------------------------

    async def _call(self, method: str, path: str, *, patience: float | None = None, **request: Any) -> bytes:
        """One request and the whole of its answer, within ``patience`` seconds (None: the engine's own)."""
        limit = self.patience if patience is None else patience
        try:
            async with asyncio.timeout(limit), self._reply(method, path, None, **request) as reply:
                return await reply.read()
        except TimeoutError as late:
            raise _overdue(method, path, limit) from late

    @asynccontextmanager
    async def _reply(
        self, method: str, path: str, patience: float | None, **request: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer, its body still to be read: ``patience`` is for its head (None: the caller limits it)."""
        if self._session.closed:
            raise EngineAway("the connections to the Docker engine are closed: the worker is going away")
        try:
            async with asyncio.timeout(patience):
                if not self._version:
                    await self._negotiate()
                reply = await self._session.request(method, f"{self._root}{self._version}{path}", **request)
        except (aiohttp.ClientError, OSError) as broken:
            if isinstance(broken, TimeoutError) and not isinstance(broken, aiohttp.ClientError):
                raise _overdue(method, path, patience) from broken
            raise self._away(broken) from broken
        async with reply:
            try:
                if reply.status >= 400:
                    raise EngineRefused(reply.status, _message(await reply.read()))
                yield reply
            except aiohttp.ClientError as broken:
                raise self._away(broken) from broken

    def _away(self, broken: Exception) -> EngineAway:
        self._version = ""  # whoever comes back may be another engine
        message = f"the Docker engine at {self.url} cannot be reached: {str(broken) or type(broken).__name__}"
        return EngineAway(message, asked=not isinstance(broken, aiohttp.ClientConnectorError))

    async def _negotiate(self) -> None:
        """Speak the engine's own version of the API, which it is sure to understand."""
        async with self._session.get(f"{self._root}/_ping") as reply:
            self._version = f"/v{reply.headers.get('Api-Version', '1.41')}"

    async def _stream(self, reply: aiohttp.ClientResponse, sink: Sink, patience: float | None) -> None:
        """Pass on what comes; ``patience`` limits each silence, not the whole."""
        try:
            while True:
                async with asyncio.timeout(patience):
                    piece = await reply.content.readany()
                if not piece:
                    return
                sink(piece)
        except TimeoutError as late:
            raise EngineOverdue(f"the Docker engine sent nothing for {patience:g} s") from late


def _open_session(url: str) -> tuple[aiohttp.ClientSession, str]:
    """A session for the address, and the root of its URLs."""
    scheme, _, rest = url.partition("://")
    connector: aiohttp.BaseConnector
    if scheme == "unix" and rest.startswith("/"):
        connector, root = aiohttp.UnixConnector(rest, limit=0), "http://docker"
    elif scheme in {"tcp", "http", "https"} and rest:
        secure = scheme == "https" or os.environ.get("DOCKER_TLS_VERIFY", "") not in {"", "0"}
        connector = aiohttp.TCPConnector(limit=0, ssl=_tls() if secure else True)
        root = f"{'https' if secure else 'http'}://{rest.rstrip('/')}"
    else:
        raise Misconfigured(
            f"JOBQ_DOCKER_HOST is {url!r}, which is no address of a Docker engine.",
            hint="Write unix:///var/run/docker.sock or tcp://host:2376.",
        )
    # No total: deadlines are set per call. A unix socket connects at once, or its engine is away.
    limits = aiohttp.ClientTimeout(total=None, sock_connect=10)
    return aiohttp.ClientSession(connector=connector, timeout=limits, trust_env=False), root


def _tls() -> ssl.SSLContext:
    """The client certificate in DOCKER_CERT_PATH, as Docker's own tools use it."""
    folder = Path(os.environ.get("DOCKER_CERT_PATH") or Path.home() / ".docker")
    try:
        context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
        context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    except (OSError, ssl.SSLError) as error:
        raise Misconfigured(
            f"The certificates for the Docker engine in {folder} cannot be read: {error}.",
            hint="Set DOCKER_CERT_PATH to the folder of ca.pem, cert.pem and key.pem.",
        ) from error
    return context


def split_image(image: str) -> tuple[str, str]:
    """Name and tag (or digest): without a tag the engine would pull every tag there is."""
    name, found, digest = image.partition("@")
    head, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:  # the colon of a registry's port
        head, tag = name, "latest"
    return (head, digest) if found else (head, tag)


def _message(body: bytes) -> str:
    """What the engine says, from an answer that should be JSON."""
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="backslashreplace")[:1000]


def _overdue(method: str, path: str, patience: float | None) -> EngineOverdue:
    return EngineOverdue(f"the Docker engine did not answer {method} {path.partition('?')[0]} for {patience or 0:g} s")
