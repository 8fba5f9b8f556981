"""Another system is told what happens to jobs: an operator adds it, tries it, looks at what went wrong, sends again."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from standardwebhooks import Webhook

from tests.command import Command
from tests.receiver import Receiver
from tests.services import wait_until


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    with Receiver(tmp_path / "receiver") as receiver:
        yield receiver


@pytest.fixture
def command(database_url: str, redis_url: str, tmp_path: Path) -> Iterator[Command]:
    command = Command(
        tmp_path, is_warm=True, JOBQ_DATABASE_URL=database_url, JOBQ_BROKER_URL=redis_url, JOBQ_SECRET_KEY="k" * 40,
        JOBQ_POLICY=json.dumps({"probe_networks": ["127.0.0.0/8"]}),
    )  # fmt: skip
    yield command
    command.close()


def test_a_webhook_from_its_first_test_to_its_end(command: Command, receiver: Receiver) -> None:
    added = command.ok("webhook", "add", receiver.url("/away"), "--name", "crm", "-e", "job.*")
    secret = added.out.removesuffix("\n")
    assert secret.startswith("whsec_")
    assert "its secret is not shown again" in added.err
    nothing = command("webhook", "test", "crm", "--wait", "0")
    assert (nothing.code, nothing.err) == (1, "nothing was sent yet: does a scheduler run?\n")

    command.start("scheduler")
    assert "it answered 200 in " in command.ok("webhook", "test", "crm").out
    receiver.away.touch()
    refused = command("webhook", "test", "crm")
    assert refused.code == 1
    assert "503" in refused.err

    receiver.away.unlink()
    job = command.job("enqueue", "heartbeat", "https://example.org/", "--at", "2027-01-01T00:00:00Z")
    command.ok("job", "cancel", job)
    wait_until(lambda: len(told(receiver, job)) == 2, what="both events")
    assert [event["type"] for event in told(receiver, job)] == ["job.created", "job.canceled"]
    for request in receiver.received("/away"):
        Webhook(secret).verify(request["body"], request["headers"])

    listed = command.ok("webhook", "deliveries", "crm", "--state", "succeeded", "--json").items
    (created,) = (one for one in listed if one["type"] == "job.created" and one["job_id"] == job)
    command.ok("webhook", "replay", "crm", str(created["id"]))
    wait_until(lambda: receiver.ids("/away")[created["webhook_id"]] == 2, what="it to come again, under the same id")
    assert job in command.ok("webhook", "deliveries", "crm").out

    rotated = command.ok("webhook", "rotate", "crm", "--overlap", "0").out.removesuffix("\n")
    command.ok("webhook", "test", "crm")
    Webhook(rotated).verify(receiver.received("/away")[-1]["body"], receiver.received("/away")[-1]["headers"])
    command.ok("webhook", "disable", "crm")
    assert "disabled: by " in command.ok("webhook", "list").out
    command.refused("webhook_disabled", "webhook", "test", "crm")
    command.ok("webhook", "enable", "crm")
    assert secret not in command.ok("webhook", "show", "crm").out
    command.ok("webhook", "remove", "crm")
    command.refused("not_found", "webhook", "show", "crm")


def told(receiver: Receiver, job: str) -> list[dict[str, str]]:
    """What it was told of this job, in the order in which that happened."""
    events = [event for event in receiver.events("/away") if job in json.dumps(event)]
    return sorted(events, key=lambda event: event["timestamp"])


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["add", "ftp://example.org/"], "invalid_url"),
        (["add", "http://169.254.169.254/"], "target_blocked"),
        (["add", "https://example.org/", "-e", "job.exploded"], "unknown_event"),
        (["add", "https://example.org/", "--only-named", "-e", "job.*"], "validation_error"),
        (["replay", "crm"], "validation_error"),
        (["deliveries", "crm", "--state", "lost"], "validation_error"),
    ],
)
def test_what_is_wrong_is_refused_in_a_sentence(command: Command, arguments: list[str], code: str) -> None:
    command.refused(code, "webhook", *arguments)
