"""Seeded bugs: the protocol with one thing left out, and what the checker has to say about it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tests.model.world import Rules, Scenario

PROBE = Scenario("a job that is tried again when it is lost", faults=1, people=0)
FINAL = Scenario("a job that is not tried again when it is lost", retry_lost=False, faults=1, people=0)
WANTED = Scenario("a job that people cancel and pause, and whose workers drain", requeues=True, faults=0)
CONTAINER = Scenario("a container", hosted=True, retry_lost=False, max_attempts=1, faults=1, people=0)
AGAIN = Scenario("a container that is tried again, on one host", hosted=True, faults=1, people=0)
APART = Scenario("a container that is tried again, on two hosts", hosted=True, hosts=(0, 1), faults=1, people=0)
LEFT = Scenario("a container whose worker drains", hosted=True, retry_lost=False, max_attempts=1, faults=0)
BROKER = Scenario("hints that are lost, doubled and sent again", messages=True, faults=0, people=0)
CALM = Scenario(
    "hints alone, while nothing fails", messages=True, tamper=False, requeues=True, faults=0,
    rules=Rules(resend=False, look=False),
)  # fmt: skip
SCENARIOS = (PROBE, FINAL, WANTED, CONTAINER, LEFT, BROKER, CALM)

STORMS = (
    AGAIN,
    APART,
    replace(BROKER, name="hints and a fault", faults=1, max_attempts=1),
)
"""More states, for patience."""


@dataclass(frozen=True, slots=True)
class Bug:
    """``without``: the rules that are left out; ``found``: part of what the checker says."""

    name: str
    scenario: Scenario
    without: tuple[str, ...]
    found: str

    def seeded(self) -> Scenario:
        """The scenario with the bug in it."""
        return replace(self.scenario, rules=replace(self.scenario.rules, **dict.fromkeys(self.without, False)))


OVERLAP = "goes on in a worker that is not its owner, and is not told to stop"
STUCK = "no clean end can be reached"

BUGS = (
    Bug("record does not look at the attempt", PROBE, ("record_checks_attempt",), "is recorded, while"),
    Bug("record does not look at the worker", AGAIN, ("record_checks_worker",), "is recorded, while"),
    Bug("claim takes RUNNING rows", WANTED, ("claim_wants_queued",), "on record are"),
    Bug("a worker that was declared dead may renew", PROBE, ("dead_cannot_renew",), OVERLAP),
    Bug("no hint is sent again, and no worker looks by itself", BROKER, ("resend", "look"), STUCK),
    Bug("publication before the commit", CALM, ("publish_after_commit",), STUCK),
    Bug("no reaper on the host", CONTAINER, ("host_reaper",), STUCK),
    Bug(
        "the reaper on the host asks the database first",
        CONTAINER,
        ("list_before_database",),
        "is taken from the worker",
    ),
    Bug("the reaper has no patience", PROBE, ("reaper_patience",), "only because the database was away"),
    Bug("the reaper does not wait for the host", APART, ("reaper_waits_for_host",), OVERLAP),
    Bug("a worker that is cut off does not stop", PROBE, ("self_fence",), OVERLAP),
    Bug("a retry does not ask what is wanted", WANTED, ("retry_asks_desired",), "although it was canceled"),
    Bug("a cancellation ends the job under its worker", WANTED, ("cancel_asks_owner",), "on record are"),
    Bug("a pause leaves the job queued", WANTED, ("pause_takes_back",), "it does not wait"),
    Bug("a claim does not ask what is wanted", WANTED, ("pause_takes_back", "claim_wants_run"), "it does not wait"),
    Bug("what runs is tracked by its job alone", PROBE, ("tracks_attempts",), "no reply was lost"),
    Bug("work of a former identity is let be", PROBE, ("lets_former_work_go",), OVERLAP),
    Bug("a claim is given back before its reply can have come", PROBE, ("unheld_twice",), "no reply was lost"),
    Bug("a worker that drains gives back what it left", LEFT, ("drain_keeps_unheld",), "no reply was lost"),
    Bug("a takeover does not rename the container", AGAIN, ("takeover_renames",), "is taken from the worker"),
)
