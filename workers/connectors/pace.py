"""The rate at which a service may be asked: so many requests in so many seconds, from this process."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from datetime import timedelta

from jobq.connectors import NotNow
from workers.connectors.http_configs import RateLimit

_LONG = 86_400.0


class Pace:
    """Hands out turns: in any span of ``per`` seconds at most ``requests``. Those who wait go in order."""

    def __init__(self, limit: RateLimit | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._turns: deque[float] = deque(maxlen=limit.requests if limit else 0)

    async def turn(self, patience: float = _LONG) -> None:
        """Return when it is this request's turn. Raises NotNow at once if that takes more than ``patience`` seconds."""
        if self._limit is None:
            return
        now = self._clock()
        full = len(self._turns) == self._limit.requests
        at = max(now, self._turns[0] + self._limit.per) if full else now
        if at - now > patience:
            raise NotNow("the rate limit of this connector is used up", after=timedelta(seconds=at - now))
        self._turns.append(at)  # a turn that is given away in the future counts as one
        if at > now:
            await asyncio.sleep(at - now)
