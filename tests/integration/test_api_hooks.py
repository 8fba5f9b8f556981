"""Inbound hooks: what other systems send starts a job, once, if it is signed as the hook asks; nothing else is told."""

import base64
import hmac
import json
import logging
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from starlette.testclient import TestClient

from jobq.errors import InvalidInput, NotFound
from jobq.states import Trigger
from jobq.store import hooks as stored
from tests.api import HEARTBEAT, Api, problem

PUSH = {"ref": "refs/heads/main", "commits": [{"id": "c0ffee"}]}
WORKFLOW = {**HEARTBEAT, "name": "deploy"}
EXAMPLE = {
    "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    "id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
    "timestamp": "1614265330",
    "body": '{"test": 2432232314}',
    "signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
}
"""Of the specification; the standardwebhooks library signs the same."""


class Deploying(Api):
    """An API with one workflow."""

    flow: str

    @property
    def hooks(self) -> str:
        return f"/v1/workflows/{self.flow}/hooks"

    def hook(self, **options: Any) -> dict[str, Any]:
        return self.made(self.hooks, {"name": "github", **options})


@pytest.fixture
def api(sqlite_url: str) -> Iterator[Deploying]:
    with Deploying(sqlite_url) as api:
        api.flow = api.made("/v1/workflows", WORKFLOW)["id"]
        yield api


@pytest.fixture
def sender(api: Deploying) -> TestClient:
    """A stranger on another machine, without a key."""
    return api.client(peer="192.0.2.9", host="jobq.example")


def hub(secret: str, body: bytes) -> dict[str, str]:
    return {"X-Hub-Signature-256": "sha256=" + hmac.new(secret.encode(), body, "sha256").hexdigest()}


def standard(secret: str, body: bytes, *, delivery: str = "msg_1", at: float | None = None) -> dict[str, str]:
    moment = str(int(time.time() if at is None else at))
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = hmac.digest(key, f"{delivery}.{moment}.".encode() + body, "sha256")
    signature = "v1," + base64.b64encode(signed).decode()
    return {"webhook-id": delivery, "webhook-timestamp": moment, "webhook-signature": signature}


# --- what a POST does --------------------------------------------------------------------------------------------


def test_a_post_starts_a_manual_job_whose_state_is_the_payload(api: Deploying, sender: TestClient) -> None:
    answer = sender.post(api.hook()["path"], json=PUSH)
    assert answer.status_code == 202, answer.text
    job = api.jobq.list().items[0]
    assert answer.json() == {"job_id": str(job.id)}
    assert answer.headers["location"] == f"/v1/jobs/{job.id}"
    assert (job.trigger, job.name, str(job.workflow_id)) == (Trigger.MANUAL, "deploy", api.flow)
    assert api.jobq.details(job.id)["state"] == PUSH


def test_an_envelope_has_what_came_around_the_payload_and_no_credential(api: Deploying, sender: TestClient) -> None:
    made = api.hook(envelope=True)
    headers = {
        "X-GitHub-Event": "push", "X-GitHub-Delivery": "d1", "User-Agent": "GitHub-Hookshot/1", "Authorization": "B s3c",
        "X-Gitlab-Token": "s3c", "Cookie": "s3c", "X-Api-Key": "s3c", "X-Event-Key": "repo:push", "X-Hub-Signature-256": "s3c", "Accept": "*/*",
    }  # fmt: skip
    sender.post(f"{made['path']}?env=prod&tag=a&tag=b", json=PUSH, headers=headers)
    state = api.jobq.details(api.jobq.list().items[0].id)["state"]
    assert state == {
        "payload": PUSH, "query": {"env": "prod", "tag": ["a", "b"]}, "delivery_id": "d1",
        "headers": {
            "content-type": "application/json", "user-agent": "GitHub-Hookshot/1", "x-github-event": "push",
            "x-github-delivery": "d1", "x-event-key": "repo:push",
        },
    }  # fmt: skip


@pytest.mark.parametrize("verb", ["pause", "terminate"])
def test_it_works_whatever_the_status_of_the_workflow_is(api: Deploying, sender: TestClient, verb: str) -> None:
    made = api.hook()
    api.local.post(f"/v1/workflows/{api.flow}/{verb}")
    assert sender.post(made["path"], json={}).status_code == 202


def test_a_body_is_read_as_strictly_as_any_other(api: Deploying, sender: TestClient) -> None:
    path = api.hook()["path"]
    problem(sender.post(path, content=b"{,"), 400, "invalid_json")
    problem(sender.post(path, content=b'{"a": 1, "a": 2}'), 400, "invalid_json")
    problem(sender.post(path, content=json.dumps("x" * 256 * 1024)), 413, "payload_too_large")
    problem(sender.post(path, data={"payload": "form"}), 415, "unsupported_media_type")
    assert api.jobq.list().items == []
    assert sender.post(path).status_code == 202, "a hook that has nothing to say"
    assert sender.post(path, content=json.dumps("x" * (256 * 1024 - 2))).status_code == 202


# --- the token -----------------------------------------------------------------------------------------------------


def test_a_token_that_is_none_any_more_or_never_was_is_told_nothing(api: Deploying, sender: TestClient) -> None:
    live, revoked = api.hook(), api.hook()
    other = api.made("/v1/workflows", {**WORKFLOW, "name": "other"})["id"]
    orphan = api.made(f"/v1/workflows/{other}/hooks", {"name": "n"})
    api.local.delete(f"/v1/workflows/{other}")
    api.local.delete(f"{api.hooks}/{revoked['stored']['id']}")
    key = api.jobq.keys.create("a key is no hook").key
    answers = [
        sender.post(f"/v1/hooks/{token}", content=body, headers={"X-Request-Id": "one"})
        for token in (
            revoked["token"],
            orphan["token"],
            live["token"][:-1],
            live["token"].upper(),
            "x",
            "%00",
            "ä",
            key,
        )
        for body in (b"{}", b"no json", b"x" * 300_000)
    ]
    for answer in answers:
        problem(answer, 404, "not_found")
    assert len({answer.content for answer in answers}) == 1
    assert api.jobq.list().items == []
    assert sender.post(live["path"], json={}).status_code == 202


def test_it_is_shown_once_and_stored_as_a_digest_only(api: Deploying) -> None:
    made = api.hook(signature="hub")
    with api.jobq.database.read() as conn:
        tables = [name for (name,) in conn.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'table'")]
        rows = {name: str(conn.exec_driver_sql(f'SELECT * FROM "{name}"').all()) for name in tables}
    listed = api.local.get(api.hooks)
    for secret in (made["token"], made["token"][20:], made["secret"]):
        assert not [name for name, text in rows.items() if secret in text]
        assert secret not in listed.text
    (shown,) = listed.json()["items"]
    assert (shown["name"], shown["start"]) == ("github", made["token"][:15])


def test_it_is_in_no_log_and_no_error(
    api: Deploying, sender: TestClient, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    made = api.hook(rate_limit=1)
    answers = [sender.post(made["path"], json={}) for _ in range(2)]
    monkeypatch.setattr(stored, "find", lambda *_: 1 / 0)
    answers.append(sender.post(made["path"], json={}))
    assert [answer.status_code for answer in answers] == [202, 429, 500]
    ours = "\n".join(
        f"{record.getMessage()} {record.exc_text}" for record in caplog.records if not record.name.startswith("httpx")
    )
    assert "/v1/hooks/***" in ours
    assert "ZeroDivisionError" in ours
    for text in (ours, *(f"{answer.text} {answer.headers}" for answer in answers)):
        assert made["token"] not in text
        assert made["token"][15:] not in text
    shown = api.local.get(api.hooks)
    assert shown.status_code == 200
    assert f"{api.hooks} 200" in caplog.text, "what is no token is logged whole"


# --- deliveries ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["webhook-id", "X-GitHub-Delivery", "Idempotency-Key"])
def test_a_repeated_delivery_starts_nothing_and_is_answered_with_the_same_job(
    api: Deploying, sender: TestClient, name: str
) -> None:
    path = api.hook(rate_limit=1)["path"]
    first, again = (sender.post(path, json=PUSH, headers={name: "d" * 300}) for _ in range(2))
    assert (first.status_code, again.status_code, again.json()) == (202, 202, first.json()), "nor is it counted"
    problem(sender.post(path, json={}, headers={name: "d" * 300}), 409, "idempotency_conflict")
    assert len(api.jobq.list().items) == 1


def test_deliveries_are_told_apart_by_the_first_header_and_by_the_hook(api: Deploying, sender: TestClient) -> None:
    one, other = api.hook()["path"], api.hook()["path"]
    jobs = [
        sender.post(path, json=PUSH, headers=headers).json()["job_id"]
        for path, headers in (
            (one, {"webhook-id": "1", "X-GitHub-Delivery": "x"}),
            (one, {"webhook-id": "2", "X-GitHub-Delivery": "x"}),
            (one, {"X-GitHub-Delivery": "2", "Idempotency-Key": "1"}),
            (other, {"webhook-id": "1"}),
            (one, {}),
            (one, {}),
        )
    ]
    assert len(set(jobs)) == 5, "'2' is one delivery, whichever header names it"
    assert jobs[1] == jobs[2]


def test_many_that_send_one_delivery_at_once_start_one_job(api: Deploying, sender: TestClient) -> None:
    path = api.hook()["path"]
    answers: list[Any] = []
    threads = [
        threading.Thread(target=lambda: answers.append(sender.post(path, json=PUSH, headers={"webhook-id": "1"})))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["job_id"] for answer in answers}) == 1 == len(api.jobq.list().items)


# --- signatures ----------------------------------------------------------------------------------------------------


def test_a_hub_signature_must_be_that_of_the_body(api: Deploying, sender: TestClient) -> None:
    made, body = api.hook(signature="hub", rate_limit=1), b'{"zen": "Keep it logically awesome."}'
    good = hub(made["secret"], body)
    for headers in ({}, hub("another secret of it", body), {"X-Hub-Signature-256": "sha256="},
                    {"X-Hub-Signature-256": good["X-Hub-Signature-256"].upper()}, hub(made["secret"], body + b" ")):  # fmt: skip
        problem(sender.post(made["path"], content=body, headers=headers), 401, "bad_signature")
    assert sender.post(made["path"], content=body, headers=good).status_code == 202, "what is unsigned was not counted"


def test_the_example_of_github_is_verified(api: Deploying, sender: TestClient) -> None:
    """From GitHub's documentation on the validation of deliveries."""
    made = api.hook(signature="hub", secret="It's a Secret to Everybody")
    headers = {"X-Hub-Signature-256": "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"}
    answer = sender.post(made["path"], content=b"Hello, World!", headers=headers)
    problem(answer, 400, "invalid_json")  # the signature is right: now it is read


def test_a_standard_webhook_is_verified_with_any_of_its_signatures(api: Deploying, sender: TestClient) -> None:
    made, body = api.hook(signature="standard"), b'{"type": "invoice.paid"}'
    good = standard(made["secret"], body)
    assert sender.post(made["path"], content=body, headers=good).status_code == 202
    rotating = {**good, "webhook-signature": f"v1,AAAA v1a,BBBB {good['webhook-signature']}"}
    assert sender.post(made["path"], content=body, headers=rotating).status_code == 202
    for change in ({"webhook-id": "msg_2"}, {"webhook-timestamp": str(int(good["webhook-timestamp"]) - 1)}, {"webhook-signature": "v1,"},
                   {"webhook-signature": ""}, standard("whsec_" + "QUFB" * 8, body)):  # fmt: skip
        problem(sender.post(made["path"], content=body, headers={**good, **change}), 401, "bad_signature")
    problem(sender.post(made["path"], content=body), 401, "bad_signature")
    problem(sender.post(made["path"], content=b"{}", headers=good), 401, "bad_signature")


def test_a_standard_webhook_outside_the_window_is_refused(api: Deploying, sender: TestClient) -> None:
    made, body = api.hook(signature="standard", replay_window=60), b"{}"
    for seconds, status in ((-300, 401), (-70, 401), (-50, 202), (50, 202), (70, 401)):
        headers = standard(made["secret"], body, delivery=f"msg{seconds}", at=time.time() + seconds)
        answer = sender.post(made["path"], content=body, headers=headers)
        assert answer.status_code == status, (seconds, answer.text)
        if status == 401:
            problem(answer, 401, "outside_window")
    assert len(api.jobq.list().items) == 2


def test_the_example_of_standard_webhooks_is_verified(api: Deploying, monkeypatch: pytest.MonkeyPatch) -> None:
    """Signed long ago, so the clock is set back to then."""
    made = api.jobq.hooks.create("deploy", "n", signature="standard", secret=EXAMPLE["secret"], replay_window="P7D")
    headers = {
        "webhook-id": EXAMPLE["id"], "webhook-timestamp": EXAMPLE["timestamp"], "webhook-signature": EXAMPLE["signature"]
    }  # fmt: skip
    real = stored.find
    monkeypatch.setattr(stored, "find", lambda conn, digest: _At(real(conn, digest), float(EXAMPLE["timestamp"])))
    job = api.jobq.hooks.receive(made.token, EXAMPLE["body"].encode(), headers=headers)
    assert api.jobq.details(job.id)["state"] == json.loads(EXAMPLE["body"])


class _At:
    """A hook that was asked at another time."""

    def __init__(self, row: Any, moment: float) -> None:
        self._row, self.asked_at = row, datetime.fromtimestamp(moment, UTC)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._row, name)


# --- rates ---------------------------------------------------------------------------------------------------------


def test_above_its_rate_a_hook_says_when_to_come_again(api: Deploying, sender: TestClient) -> None:
    path = api.hook(rate_limit=3)["path"]
    assert [sender.post(path, json={}).status_code for _ in range(3)] == [202] * 3
    answer = sender.post(path, json={}, headers={"webhook-id": "late"})
    problem(answer, 429, "rate_limited")
    assert 15 <= int(answer.headers["retry-after"]) <= 20
    assert len(api.jobq.list().items) == 3
    with api.jobq.database.begin() as conn:
        conn.exec_driver_sql("UPDATE jobq_hooks SET busy_until = NULL")
    assert sender.post(path, json={}, headers={"webhook-id": "late"}).status_code == 202, "it was not taken for done"


# --- making them ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "pointer"),
    [
        ({"name": ""}, "/name"),
        ({"signature": "md5"}, "/signature"),
        ({"secret": "sixteen characters"}, "/secret"),
        ({"signature": "hub", "secret": "short"}, "/secret"),
        ({"signature": "standard", "secret": "whsec_no base64 at all"}, "/secret"),
        ({"signature": "standard", "secret": "whsec_QUFB"}, "/secret"),
        ({"replay_window": 60}, "/replay_window"),
        ({"signature": "hub", "replay_window": 60}, "/replay_window"),
        ({"signature": "standard", "replay_window": "soon"}, "/replay_window"),
        ({"signature": "standard", "replay_window": "P8D"}, "/replay_window"),
        ({"rate_limit": 0}, "/rate_limit"),
        ({"rate_limit": 1_000_000}, "/rate_limit"),
        ({"unknown": 1}, "/unknown"),
    ],
)
def test_a_hook_that_makes_no_sense_is_refused(api: Deploying, options: dict[str, Any], pointer: str) -> None:
    answer = api.local.post(api.hooks, json={"name": "n", **options})
    assert problem(answer, 422, "validation_error")["pointer"] == pointer


def test_python_makes_and_ends_hooks_by_the_name_of_the_workflow(api: Deploying) -> None:
    made = api.jobq.hooks.create("deploy", "ci")
    assert [one.id for one in api.jobq.hooks.list("deploy")] == [made.stored.id]
    assert api.jobq.hooks.receive(made.token, b"[1]").workflow_id == made.stored.workflow_id
    assert api.jobq.hooks.revoke("deploy", made.stored.id).revoked_at is not None
    with pytest.raises(NotFound):
        api.jobq.hooks.receive(made.token, b"[1]")
    with pytest.raises(NotFound):
        api.jobq.hooks.create("no such workflow", "ci")
    with pytest.raises(InvalidInput):
        api.jobq.hooks.create("deploy", "a\x1b")


def test_another_tenant_reaches_no_hook_but_by_its_token(api: Deploying) -> None:
    made = api.jobq.hooks.create("deploy", "ci")
    stranger = api.jobq.acting("umbrella", "test")
    with pytest.raises(NotFound):
        stranger.hooks.list(made.stored.workflow_id)
    with pytest.raises(NotFound):
        stranger.hooks.revoke(made.stored.workflow_id, made.stored.id)
    assert stranger.hooks.receive(made.token, b"{}").tenant == "default", "the token names the tenant"


def test_hooks_leave_events_that_name_who_made_them(api: Deploying) -> None:
    made = api.jobq.hooks.create("deploy", "ci")
    api.jobq.hooks.revoke("deploy", made.stored.id)
    with api.jobq.database.read() as conn:
        rows = conn.exec_driver_sql(
            "SELECT action, actor, detail FROM jobq_events WHERE subject LIKE 'hook:%' ORDER BY id"
        )
        assert [(row[0], row[1]) for row in rows] == [("create", "test"), ("revoke", "test")]
