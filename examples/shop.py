"""Two kinds of jobs of a little shop. The other examples use them; a worker finds them by JOBQ_PLUGINS.

A kind is a spec (what a job is told) and an executor (how a worker does it). See plugin-greeting/ for a kind that
other projects can install.
"""

import asyncio
from datetime import timedelta

from jobq import Context, Kind, Outcome, Spec


class Confirm(Spec):
    """Confirm an order to whoever placed it."""

    order: int


class ConfirmExecutor:
    """A coroutine: a worker runs hundreds of them at once."""

    kind = Kind("CONFIRM", Confirm, timeout=timedelta(seconds=10))

    async def execute(self, spec: Confirm, ctx: Context) -> Outcome:
        with ctx.step("mail"):
            await asyncio.sleep(0.01)  # the mail server takes its time
        ctx.log(f"order {spec.order} is confirmed")
        return Outcome.succeeded({"order": spec.order})


class Pack(Spec):
    """Pack a parcel of so many items."""

    order: int
    items: int


class PackExecutor:
    """A plain function: it runs in a thread. It fails where trying again cannot help."""

    kind = Kind("PACK", Pack, timeout=timedelta(minutes=1), max_attempts=2)

    def execute(self, spec: Pack, ctx: Context) -> Outcome:
        if not spec.items:
            return Outcome.failed("there is nothing to pack", error_class="empty", retry=False)
        for number in range(1, spec.items + 1):
            ctx.log(f"item {number} of {spec.items} is in the box")
        return Outcome.succeeded({"parcels": 1 + spec.items // 10})


PLUGINS = ["shop:ConfirmExecutor", "shop:PackExecutor"]
