"""An inbound hook as an operator makes it and another system, with a plain HTTP client, sends to it."""

import base64
import hmac
import http.client
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command import Command
from tests.e2e.test_cli_api import started

BODY = b'{"type": "invoice.paid", "amount": 12}'


@pytest.fixture
def command(sqlite_url: str, tmp_path: Path) -> Iterator[Command]:
    command = Command(
        tmp_path, is_warm=True, JOBQ_DATABASE_URL=sqlite_url, JOBQ_SECRET_KEY="k" * 40, JOBQ_LOG_LEVEL="DEBUG"
    )
    yield command
    command.close()


def test_another_system_starts_a_job_by_a_signed_post_and_its_token_is_in_no_log(command: Command) -> None:
    command.ok("workflow", "create", "books", "--kind", "HEARTBEAT", "--spec", '{"endpoint": "https://example.org/"}')
    made = command.ok("workflow", "hook", "create", "books", "stripe", "--signature", "standard", "--rate-limit", "1")
    path, secret = made.out.split()
    process, host, port = started(command)
    connection = http.client.HTTPConnection(host, port, timeout=20)

    def send(headers: dict[str, str], to: str = path) -> tuple[int, dict[str, str], http.client.HTTPMessage]:
        connection.request("POST", to, BODY, {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        told = answer.status, json.loads(answer.read()), answer.headers
        connection.close()
        return told

    moment = str(int(time.time()))
    signed = hmac.digest(base64.b64decode(secret.removeprefix("whsec_")), f"evt_1.{moment}.".encode() + BODY, "sha256")
    delivery = {
        "webhook-id": "evt_1", "webhook-timestamp": moment, "webhook-signature": f"v1,{base64.b64encode(signed).decode()}"
    }  # fmt: skip
    status, first, headers = send(delivery)
    assert (status, headers["Location"]) == (202, f"/v1/jobs/{first['job_id']}")
    assert send(delivery)[:2] == (202, first), "the same delivery starts nothing"
    status, refused, _ = send({**delivery, "webhook-signature": "v1,AAAA"})
    assert (status, refused["code"]) == (401, "bad_signature")

    (hook,) = command.ok("workflow", "hook", "list", "books", "--json").items
    assert hook["last_used_at"] is not None
    command.ok("workflow", "hook", "revoke", "books", hook["id"])
    status, gone, _ = send(delivery)
    assert (status, gone["code"]) == (404, "not_found")

    (job,) = command.ok("job", "list", "--json").items
    assert (job["id"], job["trigger"], job["name"]) == (first["job_id"], "MANUAL", "books")
    details = command.ok("job", "show", job["id"], "--details").document
    assert details["state"] == {"type": "invoice.paid", "amount": 12}

    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    log = command.printed(process, "err")
    assert "/v1/hooks/***" in log
    assert path.removeprefix("/v1/hooks/") not in log + command.ok("job", "show", job["id"]).out
    assert secret not in log


def test_a_secret_is_read_from_stdin_and_mistakes_with_hooks_are_explained(command: Command) -> None:
    command.ok("workflow", "create", "books", "--kind", "HEARTBEAT", "--spec", '{"endpoint": "https://example.org/"}')
    own = command.ok(
        "workflow", "hook", "create", "books", "github", "--signature", "hub", "--secret-file", "-", "--json",
        stdin="a secret of their own\n",
    )  # fmt: skip
    assert own.document["secret"] == "a secret of their own"
    assert own.document["path"] == f"/v1/hooks/{own.document['token']}"
    assert "a secret" not in command.ok("workflow", "hook", "list", "books").out
    command.refused("validation_error", "workflow", "hook", "create", "books", "x", "--signature", "md5")
    command.refused("validation_error", "workflow", "hook", "create", "books", "x", "--replay-window", "PT1M")
    command.refused("not_found", "workflow", "hook", "create", "nothing", "x")
    command.refused("not_found", "workflow", "hook", "revoke", "books", "0192d6a0-0000-7000-8000-000000000000")
