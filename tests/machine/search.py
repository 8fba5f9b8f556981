"""The search for a history that breaks a promise."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.machine.ground import Stage
from tests.machine.healing import Healing

EDGES = {
    ("PENDING", "QUEUED"), ("PENDING", "FAILED"), ("PENDING", "CANCELED"), ("QUEUED", "RUNNING"),
    ("QUEUED", "PENDING"), ("QUEUED", "FAILED"), ("QUEUED", "CANCELED"), ("RUNNING", "PENDING"),
    ("RUNNING", "COMPLETED"), ("RUNNING", "FAILED"), ("RUNNING", "CANCELED"),
}  # fmt: skip
"""Those that jobs without children take."""
OFTEN = {
    ("PENDING", "QUEUED"), ("QUEUED", "RUNNING"), ("RUNNING", "PENDING"), ("RUNNING", "COMPLETED"), ("RUNNING", "FAILED"),
}  # fmt: skip
"""Those that a search must have taken to mean anything; which of the others it takes is chance."""


def search(url: str, *, examples: int, steps: int, derandomize: bool) -> None:
    """Try so many random histories; ``derandomize``: the same ones each time."""
    stage = Stage(url)
    profile = settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, derandomize=derandomize, database=None,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate],
    )  # fmt: skip  # Phase.shrink takes minutes: add it to read a history that was found

    def history() -> Any:
        return Healing(stage)

    try:
        run_state_machine_as_test(history, settings=profile)  # type: ignore[arg-type]  # any callable will do
    finally:
        stage.close()
    assert OFTEN <= set(stage.walked) <= EDGES
