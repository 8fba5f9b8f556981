"""A few threads of a connector's own, for drivers that block: neither the event loop nor the store waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

Result = TypeVar("Result")


class Threads:
    """At most ``size`` calls at once; further ones wait for their turn."""

    def __init__(self, name: str, size: int) -> None:
        self._pool = ThreadPoolExecutor(size, thread_name_prefix=f"jobq-{name}")

    async def run(self, work: Callable[..., Result], *args: Any) -> Result:
        """The result of the call. Canceling ends the waiting, not the call: a driver cannot be interrupted."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *args)

    def close(self) -> None:
        """Take no more calls; those that run end by themselves. May be called again."""
        self._pool.shutdown(wait=False, cancel_futures=True)
