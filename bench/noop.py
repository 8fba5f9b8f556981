"""The kind that does nothing: what is left is the cost of the platform."""

from __future__ import annotations

import time
from datetime import timedelta

from jobq.models import Outcome
from jobq.plugins import Context, Kind
from jobq.specs import Spec


class Noop(Spec):
    sent_at: float | None = None
    """``time.time()`` of the sender: the attempt's result then says how long the way took."""


class NoopExecutor:
    kind = Kind("NOOP", Noop, timedelta(seconds=60))

    async def execute(self, spec: Noop, ctx: Context) -> Outcome:
        if spec.sent_at is None:
            return Outcome.succeeded()
        return Outcome.succeeded({"waited": time.time() - spec.sent_at})
