"""Signatures, verdicts and pauses of webhooks."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from jobq.errors import InvalidInput
from jobq.webhook_delivery import (
    MAX_TRIES,
    PAUSES,
    Verdict,
    judge,
    key_of,
    make_secret,
    no_answer,
    pause_behind,
    signed_headers,
)  # fmt: skip
from jobq.webhook_events import TYPES, Happened, body, chosen, words

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DOCUMENT = '{"type":"job.completed","grüße":"✓"}'.encode()


@dataclass
class Answer:
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)


def middle() -> float:
    return 0.5


# --- signatures --------------------------------------------------------------------------------------------------------


def test_the_reference_library_verifies_each_secret_that_signs_and_no_other() -> None:
    new, old, stranger = make_secret(), make_secret(), make_secret()
    headers = signed_headers([new, old], "evt_1", int(datetime.now(UTC).timestamp()), DOCUMENT)
    for secret in (new, old):
        assert Webhook(secret).verify(DOCUMENT, headers) == json.loads(DOCUMENT)
    with pytest.raises(WebhookVerificationError):
        Webhook(stranger).verify(DOCUMENT, headers)


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp"])
def test_id_and_instant_are_signed_too(name: str) -> None:
    secret, at = make_secret(), int(datetime.now(UTC).timestamp())
    headers = signed_headers([secret], "evt_1", at, DOCUMENT)
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(DOCUMENT, {**headers, name: str(at + 1)})


def test_the_signature_is_that_of_the_specification() -> None:
    """The example of https://www.standardwebhooks.com, as its libraries test it."""
    headers = signed_headers(
        ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
    )  # fmt: skip
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize("text", ["", "secret", "whsec_", "whsec_***", "whsec_c2hvcnQ=", "whsec_" + "A" * 100])
def test_what_is_no_secret_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"secret|base64"):
        key_of(text)


# --- pauses ------------------------------------------------------------------------------------------------------------


def test_ten_tries_take_some_three_days_and_each_pause_varies_around_its_own() -> None:
    pauses = [pause_behind(tries, middle) for tries in range(1, MAX_TRIES)]
    assert pauses == list(PAUSES)
    assert 3.0 < sum(PAUSES) / 86400 < 3.3
    assert pause_behind(MAX_TRIES, middle) is None
    assert pause_behind(2, lambda: 0.0) == 150.0
    assert pause_behind(2, lambda: 1.0) == 450.0


@pytest.mark.parametrize(
    ("asked", "pause"),
    [
        ("600", 600.0), ("1", 5.0), ("Thu, 01 Jan 2026 01:00:00 GMT", 3600.0), ("Mon, 01 Jan 2024 00:00:00 GMT", 5.0),
        ("soon", 5.0), ("", 5.0), ("9" * 40, 86400.0), ("-5", 5.0), ("²", 5.0),
    ],
)  # fmt: skip
def test_a_receiver_may_ask_for_more_time_but_not_for_less_nor_for_ever(asked: str, pause: float) -> None:
    assert judge(1, Answer(503, {"retry-after": asked}), NOW, middle).due_in == pause


# --- verdicts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_2xx_took_it(status: int) -> None:
    assert judge(1, Answer(status, body=bytearray(b"thanks")), NOW, middle) == Verdict(
        "SUCCEEDED", status_code=status, answer="thanks"
    )


@pytest.mark.parametrize(
    ("status", "error_class"), [(301, "redirect"), (400, "status"), (500, "status"), (599, "status")]
)
def test_all_else_did_not_and_is_tried_again(status: int, error_class: str) -> None:
    verdict = judge(1, Answer(status), NOW, middle)
    assert (verdict.state, verdict.error_class, verdict.due_in) == ("PENDING", error_class, 5.0)


def test_behind_the_last_try_it_has_failed() -> None:
    for verdict in (judge(MAX_TRIES, Answer(500), NOW, middle), no_answer(MAX_TRIES, "refused", "no", middle)):
        assert (verdict.state, verdict.due_in) == ("FAILED", None)
    asked = judge(MAX_TRIES, Answer(503, {"retry-after": "60"}), NOW, middle)
    assert asked.due_in is None, "a receiver cannot make it go on for ever"


def test_410_is_the_end() -> None:
    verdict = judge(1, Answer(410), NOW, middle)
    assert (verdict.state, verdict.gone) == ("FAILED", True)


def test_an_answer_can_be_stored_whatever_it_is() -> None:
    verdict = judge(1, Answer(500, body=bytearray(b"\x00\xff" + b"x" * 9000)), NOW, middle)
    assert verdict.answer is not None
    assert "\x00" not in verdict.answer
    assert len(verdict.answer) <= 4096


# --- events ------------------------------------------------------------------------------------------------------------


def test_patterns_choose_events() -> None:
    assert chosen(["*"]) == TYPES
    assert chosen(["job.completed", "*.failed"]) == ("job.completed", "job.failed", "sync.failed", "export.failed")
    assert chosen([]) == ()
    for pattern in ("job", "jobs.*", "JOB.CREATED", "webhook.test"):
        with pytest.raises(InvalidInput) as refusal:
            chosen(["job.*", pattern])
        assert (refusal.value.code, refusal.value.pointer) == ("unknown_event", "/events/1")


def test_a_stored_word_is_found_whole() -> None:
    assert words(["job.failed", "sync.failed"]) == " job.failed sync.failed "
    assert words([]).strip() == ""


def test_an_envelope_has_what_standard_webhooks_ask_for() -> None:
    event = Happened(UUID(int=7), 3, "acme", "job.started", NOW, 1, "RUNNING", "executing", None, None)
    assert body(event, {"job_id": "x"}) == {
        "type": "job.started", "timestamp": "2026-01-01T00:00:00.000000Z", "id": f"evt_{7:032x}_3", "number": 3,
        "stage": "JOB_STARTED", "data": {"job_id": "x"},
    }  # fmt: skip
