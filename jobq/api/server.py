"""The API served: by uvicorn, in this process, on an address that its access rules allow."""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from jobq.api.access import is_loopback
from jobq.api.app import create_app
from jobq.client import JobQ
from jobq.errors import Misconfigured
from jobq.settings import Settings
from jobq.store import keys

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8321
_STARTS_WITHIN = 15.0
_ENDS_WITHIN = 5


@dataclass(frozen=True, slots=True)
class Address:
    """Where to serve. With ``certificate`` and ``key`` (PEM files) by HTTPS."""

    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    certificate: Path | None = None
    key: Path | None = None

    @property
    def url(self) -> str:
        """As a client writes it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.certificate else 'http'}://{host}:{self.port}"


class Server:
    """An API server on a thread of its own (``start``, ``stop``), or on this one (``run``)."""

    def __init__(self, settings: Settings, address: Address, jobq: JobQ | None = None) -> None:
        self._settings, self.address, self._jobq = settings, address, jobq
        self._socket = _bind(address)
        self.address = Address(address.host, self._socket.getsockname()[1], address.certificate, address.key)
        self._server = _Ending(self._config())
        self._thread = threading.Thread(target=self._serve, name="jobq-api", daemon=True)

    def _config(self) -> uvicorn.Config:
        return uvicorn.Config(
            create_app(self._settings, self._jobq), log_config=None, access_log=False, server_header=False,
            ssl_certfile=self.address.certificate, ssl_keyfile=self.address.key, proxy_headers=False,
            timeout_graceful_shutdown=_ENDS_WITHIN, lifespan="on",
        )  # fmt: skip

    def _serve(self) -> None:
        self._server.run([self._socket])

    def run(self) -> None:
        """Serve until SIGTERM or Ctrl-C."""
        self._serve()

    def start(self) -> None:
        """Serve on a thread; requests are answered when this returns."""
        self._thread.start()
        ends = time.monotonic() + _STARTS_WITHIN
        while not self._server.started and self._thread.is_alive() and time.monotonic() < ends:
            time.sleep(0.01)

    def stop(self) -> None:
        """Answer what was asked, end the streams, stop."""
        self._server.should_exit = True
        self._thread.join(_ENDS_WITHIN + 2.0)


class _Ending(uvicorn.Server):
    """Ends the streams first: they would go on for as long as somebody reads them."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn."""
        state = self.config.app.state  # type: ignore[union-attr]  # it is the app that we gave
        await state.watching.stop()
        await state.broadcast.stop()
        await super().shutdown(sockets)


def _bind(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((address.host, address.port))
    except OSError as error:
        listening.close()
        raise Misconfigured(
            f"The API cannot listen on {address.host}:{address.port}: {error.strerror or error}.", code="bad_address",
            hint="Name another one with --host and --port.",
        ) from None  # fmt: skip
    return listening


def check_access(settings: Settings, host: str) -> None:
    """Raises Misconfigured ``keys_missing`` for an address that others reach while nobody needs a key."""
    if is_loopback(host):
        return
    with JobQ(settings=settings) as jobq, jobq.database.read() as conn:
        if keys.any_exists(conn):
            return
    raise Misconfigured(
        f"The API is not served on {host} while there is no API key: everybody there could do everything.",
        code="keys_missing", hint="Make one: jobq key create NAME --operator --scope admin",
    )  # fmt: skip
