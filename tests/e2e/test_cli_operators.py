"""Quotas and the audit, as an operator uses them on the command line."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command import Command


@pytest.fixture
def command(database_url: str, tmp_path: Path) -> Iterator[Command]:
    command = Command(tmp_path, is_warm=True, JOBQ_DATABASE_URL=database_url, JOBQ_SECRET_KEY="k" * 40)
    yield command
    command.close()


def test_an_operator_bounds_a_tenant_and_sees_who_did_it(command: Command) -> None:
    enqueue = ("--tenant", "acme", "enqueue", "heartbeat", "https://example.org/")
    assert "no limit" in command.ok("tenant", "quota", "acme").out
    command.ok("tenant", "quota", "acme", "--waiting", "1", "--rate", "2.5")
    shown = command.ok("tenant", "quota", "acme", "--json").document
    assert shown == {"waiting": 1, "running": None, "schedules": None, "rate": 2.5, "burst": None}
    (listed,) = command.ok("tenant", "list", "--json").items
    assert listed["quota"] == shown
    job = command.job(*enqueue)
    command.refused("quota_exceeded", *enqueue, exit_code=3)
    command.ok("tenant", "quota", "acme", "--waiting", "none", "--rate", "default")
    command.job(*enqueue)
    command.refused("validation_error", "tenant", "quota", "acme", "--waiting", "many")
    command.refused("validation_error", "tenant", "quota", "acme", "--burst", "0")

    command.ok("--tenant", "acme", "job", "cancel", job)
    events = command.ok("--tenant", "acme", "audit", "--json").items
    assert [(one["action"], one["subject"]) for one in events] == [
        ("cancel", f"job:{job}"), ("quota", "tenant:acme"), ("quota", "tenant:acme")
    ]  # fmt: skip
    assert all(one["actor"].endswith("(cli)") for one in events)
    assert events[1]["detail"] == {"waiting": None, "rate": "default"}
    assert "cancel" in command.ok("--tenant", "acme", "audit", "--subject", f"job:{job}").out
    command.ok("queue", "pause", "heartbeat")
    assert command.ok("audit", "--subject", "queue", "--json").items == []
    (paused,) = command.ok("audit", "--subject", "queue", "--all", "--json").items
    assert (paused["action"], paused["tenant"]) == ("pause", "")
    first = command.ok("--tenant", "acme", "audit", "--limit", "1", "--json").document
    rest = command.ok("--tenant", "acme", "audit", "--limit", "1", "--cursor", first["next_cursor"], "--json").items
    assert rest == events[1:2]
    command.refused("invalid_cursor", "audit", "--cursor", "x")
    assert (
        command.ok("audit", "--since", "2020-01-01T00:00:00Z", "--until", "2020-01-02T00:00:00Z", "--json").items == []
    )
    assert command("audit", "--since", "yesterday").code == 2
