"""The HTTP API as a part of ``jobq dev``: on loopback, without a key while there is none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from jobq.errors import Misconfigured

if TYPE_CHECKING:
    from jobq.client import JobQ


@contextmanager
def served(jobq: JobQ, port: int) -> Iterator[str]:
    """Serve it as long as the block lasts; what came of it, in one line. It is never a reason not to start."""
    if find_spec("fastapi") is None or find_spec("uvicorn") is None:
        yield "not served: it needs pip install 'jobq[api]'"
        return
    from jobq.api.server import Address, Server

    try:
        server = Server(jobq.settings, Address(port=port), jobq)
    except Misconfigured:
        yield f"not served: port {port} is taken (--port names another one, 0 any)"
        return
    server.start()
    try:
        yield f"{server.address.url}/v1"
    finally:
        server.stop()
