"""Executors that stand in for the built-in ones where a test has no network and no Docker engine."""

from typing import ClassVar

from jobq import Container, Context, Heartbeat, Outcome
from jobq.plugins import BUILT_IN, Kind


class Up:
    """Every endpoint answers."""

    kind: ClassVar[Kind] = BUILT_IN["HEARTBEAT"]

    async def execute(self, spec: Heartbeat, ctx: Context) -> Outcome:
        with ctx.step("first_byte"):
            ctx.log(f"{spec.method} {spec.endpoint}: 200 OK")
        return Outcome.succeeded({"status_code": spec.expected_status_code, "ms": 1.0})


class Fine:
    """Every container ends well."""

    kind: ClassVar[Kind] = BUILT_IN["CONTAINER"]
    host = None

    async def execute(self, spec: Container, ctx: Context) -> Outcome:
        ctx.log(f"{spec.image} ran\n", "stdout")
        return Outcome.succeeded()


STAND_INS = ["tests.doubles:Up", "tests.doubles:Fine"]
