"""A step of the model: who does what, and the state after it."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from tests.model.world import World

WORKERS = ("worker A", "worker B")


class Cause(StrEnum):
    """What a step comes from. A clean end has to be reachable by SYSTEM and REPAIR alone."""

    SYSTEM = "system"
    """jobq, its executors and its containers."""
    REPAIR = "repair"
    """A supervisor starts what ended, and what was away comes back; a person resumes what was paused."""
    PERSON = "person"
    FAULT = "fault"


class Step(NamedTuple):
    """``attempt`` and ``owner``: of the work that it is about; 0 where it is about none."""

    cause: Cause
    who: str
    what: str
    after: World
    attempt: int = 0
    owner: int = 0
    via: str = ""
    """What the invariants of steps need to know of it: ``record``, ``sweep``, ``create``."""

    def __str__(self) -> str:
        about = f" (attempt {self.attempt}, claimed by #{self.owner})" if self.owner else ""
        mark = {Cause.FAULT: "!", Cause.PERSON: "?", Cause.REPAIR: "+"}.get(self.cause, " ")
        return f"{mark} {self.who} {self.what}{about}"
