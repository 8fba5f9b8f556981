"""Webhooks as a receiver in another process gets them: signed, at least once, whatever happens to either side."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from standardwebhooks import Webhook, WebhookVerificationError

from jobq import metrics, telemetry
from jobq.errors import InvalidInput, NotFound
from tests.fleet import Fleet
from tests.hooked import NEARBY, SECRET_KEY, Hooked
from tests.integration.probing import Names
from tests.receiver import Receiver
from tests.services import free_port, wait_until

GIVEN = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    with Receiver(tmp_path_factory.mktemp("receiver")) as running:
        yield running


@pytest.fixture
def hooked(sqlite_url: str, receiver: Receiver) -> Iterator[Hooked]:
    with Hooked(sqlite_url, receiver) as one:
        yield one


def verified(secret: str, request: dict[str, Any]) -> dict[str, Any]:
    """The document, if a receiver that knows this secret takes it."""
    found: dict[str, Any] = Webhook(secret).verify(request["body"], request["headers"])
    return found


def test_a_job_is_told_of_in_numbered_signed_documents(hooked: Hooked) -> None:
    made = hooked.jobq.webhooks.create(url=hooked.receiver.url("/story"), hub_signature=["sha256", "sha1"])
    (job_id,) = hooked.tell()
    hooked.send(lambda: hooked.states(made.endpoint) == ["SUCCEEDED"] * 2)
    requests = sorted(hooked.receiver.received("/story"), key=lambda each: json.loads(each["body"])["number"])
    created, canceled = (verified(made.secret, request) for request in requests)
    assert (created["type"], created["number"], created["stage"]) == ("job.created", 1, "JOB_CREATED")
    assert (canceled["type"], canceled["number"], canceled["stage"]) == ("job.canceled", 2, "JOB_CANCELED")
    assert created["data"]["status"] == "PENDING", "the document is of that stage, not of when it is sent"
    assert (canceled["data"]["status"], canceled["data"]["message"]) == ("CANCELED", "canceled by ann")
    assert created["data"].keys() == hooked.jobq.details(job_id).keys()
    assert created["data"]["job_id"] == str(job_id)
    ids = [request["headers"]["webhook-id"] for request in requests]
    assert ids == [f"evt_{job_id.hex}_1", f"evt_{job_id.hex}_2"]
    for request in requests:
        for name, digest in (("x-hub-signature-256", hashlib.sha256), ("x-hub-signature", hashlib.sha1)):
            expected = hmac.new(made.secret.encode(), request["body"].encode(), digest).hexdigest()
            assert request["headers"][name].partition("=")[2] == expected
    with pytest.raises(WebhookVerificationError):
        verified(made.secret, {**requests[0], "body": requests[0]["body"].replace("PENDING", "RUNNING")})


def test_deliveries_belong_to_the_trace_of_their_job_and_are_counted_by_outcome(
    hooked: Hooked, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    before = metrics.WEBHOOKS.totals()
    fails = hooked.endpoint("/fails/1?token=s3cr3t", events=["job.created"])
    monkeypatch.setattr(telemetry, "_tracer", provider.get_tracer("jobq"))
    with telemetry.continuing(GIVEN):
        (job_id,) = hooked.tell()
    (enqueue,) = [span for span in exporter.get_finished_spans() if span.name.startswith("enqueue")]
    exporter.clear()
    hooked.send(lambda: hooked.states(fails) == ["SUCCEEDED"], meanwhile=lambda: hooked.pass_time(3600))
    refused, taken = exporter.get_finished_spans()
    requests = [each for each in hooked.receiver.received("/fails/1") if job_id.hex in each["headers"]["webhook-id"]]
    for span, request, status in zip((refused, taken), requests, (500, 200), strict=True):
        said = dict(span.attributes or {})
        assert (said["jobq.event"], said["http.response.status_code"]) == ("job.created", status)
        assert request["headers"]["traceparent"] == f"{GIVEN[:35]}-{span.context.span_id:016x}-01"
        assert span.parent is not None
        assert span.parent.span_id == enqueue.context.span_id
        assert not [word for word in ("fails", "s3cr3t") if word in str(said)], "paths and queries may hold secrets"
    assert (refused.status.is_ok, taken.status.is_ok) == (False, True)
    after = metrics.WEBHOOKS.totals()
    assert {name: after[name,] - before.get((name,), 0) for name in ("retried", "succeeded")} == {
        "retried": 1, "succeeded": 1
    }  # fmt: skip


def test_what_a_receiver_refuses_is_sent_again_under_the_same_id(hooked: Hooked) -> None:
    endpoint = hooked.endpoint("/fails/2", events=["job.created"])
    (job_id,) = hooked.tell()
    hooked.send(
        lambda: hooked.states(endpoint) == ["SUCCEEDED"], meanwhile=lambda: hooked.pass_time(60.0)
    )  # fmt: skip
    assert hooked.receiver.ids("/fails/2")[f"evt_{job_id.hex}_1"] == 3
    (delivery,) = hooked.log(endpoint)
    assert (delivery.tries, delivery.status_code, delivery.answer) == (3, 200, "thanks")
    assert hooked.jobq.webhooks.get(endpoint.id).failing_since is None


def test_a_receiver_is_left_alone_for_as_long_as_it_asks(hooked: Hooked) -> None:
    endpoint = hooked.jobq.webhooks.create(url=hooked.receiver.url("/status/503?retry_after=7200")).endpoint
    hooked.tell()
    hooked.send(lambda: all(each.status_code == 503 for each in hooked.log(endpoint)))
    for delivery in hooked.log(endpoint):
        assert delivery.next_at is not None
        assert delivery.next_at - datetime.now(UTC) > timedelta(seconds=7000)


def test_a_redirect_is_not_followed_and_is_no_success(hooked: Hooked) -> None:
    endpoint = hooked.endpoint("/redirect", events=["job.created"])
    (job_id,) = hooked.tell()
    hooked.send(lambda: hooked.log(endpoint)[0].error_class == "redirect")
    assert not hooked.receiver.ids("/fine")[f"evt_{job_id.hex}_1"]


def test_endpoints_that_are_dead_or_hang_delay_no_other(hooked: Hooked) -> None:
    dead = hooked.jobq.webhooks.create(url=f"http://127.0.0.1:{free_port()}/").endpoint
    slow = hooked.endpoint("/slow/30")
    well = hooked.endpoint("/well")
    hooked.tell(40)
    began = datetime.now(UTC)
    hooked.send(lambda: hooked.states(well) == ["SUCCEEDED"] * 80)
    last = max(delivery.ended_at for delivery in hooked.log(well) if delivery.ended_at is not None)
    assert last - began < timedelta(seconds=10)
    assert {delivery.state for endpoint in (dead, slow) for delivery in hooked.log(endpoint)} == {"PENDING"}
    assert {delivery.error_class for delivery in hooked.log(dead)} == {"refused", None}, "few are tried while it fails"
    assert hooked.jobq.webhooks.get(dead.id).failing_since is not None
    assert hooked.jobq.webhooks.get(well.id).failing_since is None


def test_a_receiver_that_is_gone_gets_nothing_more_until_it_is_enabled(hooked: Hooked) -> None:
    endpoint = hooked.endpoint("/status/410")
    hooked.tell()
    hooked.send(lambda: not hooked.jobq.webhooks.get(endpoint.id).enabled)
    before = len(hooked.receiver.received("/status/410"))
    (job,) = hooked.tell()
    assert hooked.jobq.webhooks.deliveries(endpoint.id, job_id=job).items == []
    assert hooked.jobq.webhooks.get(endpoint.id).disabled_reason == "the receiver answered 410 Gone"
    hooked.jobq.webhooks.update(endpoint.id, url=hooked.receiver.url("/back"))
    hooked.jobq.webhooks.enable(endpoint.id)
    hooked.tell()
    hooked.send(lambda: len(hooked.receiver.received("/back")) >= 2)
    assert len(hooked.receiver.received("/status/410")) == before


def test_while_a_rotation_overlaps_both_secrets_verify_and_then_only_the_new_one(hooked: Hooked) -> None:
    first = hooked.jobq.webhooks.create(url=hooked.receiver.url("/rotated"), events=["job.created"])
    second = hooked.jobq.webhooks.rotate(first.endpoint.id, overlap=timedelta(hours=1))
    assert second.endpoint.secrets == 2
    hooked.tell()
    hooked.send(lambda: len(hooked.receiver.received("/rotated")) == 1)
    for secret in (first.secret, second.secret):
        assert verified(secret, hooked.receiver.received("/rotated")[0])["type"] == "job.created"
    third = hooked.jobq.webhooks.rotate(first.endpoint.id, overlap=0)
    assert third.endpoint.secrets == 1
    hooked.tell()
    hooked.send(lambda: len(hooked.receiver.received("/rotated")) == 2)
    request = hooked.receiver.received("/rotated")[1]
    assert verified(third.secret, request)
    for secret in (first.secret, second.secret):
        with pytest.raises(WebhookVerificationError):
            verified(secret, request)


def test_deliveries_are_replayed_one_by_one_or_all_that_failed(hooked: Hooked) -> None:
    endpoint = hooked.endpoint("/away", events=["job.created"])
    hooked.receiver.away.touch()
    ids = hooked.tell(3)
    try:
        hooked.send(
            lambda: hooked.states(endpoint) == ["FAILED"] * 3, meanwhile=lambda: hooked.pass_time(2 * 86400.0)
        )  # fmt: skip
    finally:
        hooked.receiver.away.unlink()
    assert [delivery.tries for delivery in hooked.log(endpoint)] == [10] * 3
    first, *_ = hooked.log(endpoint)
    hooked.jobq.webhooks.replay(endpoint.id, first.id)
    hooked.send(lambda: hooked.states(endpoint) == ["SUCCEEDED", "FAILED", "FAILED"])
    assert hooked.jobq.webhooks.replay_failed(endpoint.id, datetime.now(UTC)) == 0
    assert hooked.jobq.webhooks.replay_failed(endpoint.id, first.created_at) == 2
    hooked.send(lambda: hooked.states(endpoint) == ["SUCCEEDED"] * 3)
    assert set(hooked.receiver.ids("/away")) >= {f"evt_{job_id.hex}_1" for job_id in ids}
    with pytest.raises(NotFound):
        hooked.jobq.webhooks.replay(endpoint.id, 10**9)


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://10.0.0.1/", "target_blocked"),
        ("http://169.254.169.254/latest", "target_blocked"),
        ("http://[::ffff:10.0.0.1]/", "target_blocked"),
        ("http://0x7f.1/", "invalid_url"),
        ("ftp://example.org/", "invalid_url"),
        ("https://user:password@example.org/", "invalid_url"),
    ],
)
def test_no_endpoint_is_taken_inside_the_operators_network(hooked: Hooked, url: str, code: str) -> None:
    for change in (
        lambda: hooked.jobq.webhooks.create(url=url),
        lambda: hooked.jobq.webhooks.update(hooked.endpoint("/x").id, url=url),
    ):
        with pytest.raises(InvalidInput) as refusal:
            change()
        assert (refusal.value.code, refusal.value.pointer) == (code, "/url")


def test_a_name_that_leads_inside_later_is_not_reached(sqlite_url: str, receiver: Receiver) -> None:
    names = Names({"hooks.example": [["127.0.0.1"], ["10.0.0.1"]]})
    with Hooked(sqlite_url, receiver, resolver=names) as hooked:
        url = receiver.url("/rebound").replace("127.0.0.1", "hooks.example")
        endpoint = hooked.jobq.webhooks.create(url=url, events=["job.created"]).endpoint
        hooked.tell()
        hooked.send(lambda: hooked.states(endpoint) == ["SUCCEEDED"])
        hooked.tell()
        hooked.send(lambda: hooked.log(endpoint)[-1].error_class is not None)
        assert hooked.log(endpoint)[-1].error_class == "blocked"
        assert len(receiver.received("/rebound")) == 1


def test_several_senders_share_the_work_and_send_nothing_twice(hooked: Hooked) -> None:
    endpoint = hooked.endpoint("/shared")
    hooked.senders = 3
    hooked.tell(30)
    hooked.send(lambda: hooked.states(endpoint) == ["SUCCEEDED"] * 60)
    assert set(hooked.receiver.ids("/shared").values()) == {1}


def test_a_test_event_reaches_whatever_the_endpoint_listens_to(hooked: Hooked) -> None:
    made = hooked.jobq.webhooks.create(url=hooked.receiver.url("/tested"), events=[])
    delivery = hooked.jobq.webhooks.test(made.endpoint.id)
    hooked.send(lambda: hooked.jobq.webhooks.delivery(made.endpoint.id, delivery.id).state == "SUCCEEDED")
    assert verified(made.secret, hooked.receiver.received("/tested")[0])["type"] == "webhook.test"


def test_a_receiver_that_is_away_for_an_hour_gets_everything_and_others_do_not_wait(hooked: Hooked) -> None:
    away_for_an_hour(hooked, jobs=5)


def away_for_an_hour(hooked: Hooked, jobs: int) -> None:
    """An hour passes, a minute with each look, while one receiver answers 503."""
    endpoint, other = hooked.endpoint("/away", name="away"), hooked.endpoint("/other", name="other")
    hooked.receiver.away.touch()
    minutes = 0

    def a_minute() -> None:
        nonlocal minutes
        minutes += 1
        hooked.pass_time(60.0)
        if minutes == 60:
            hooked.receiver.away.unlink()

    ids = hooked.tell(jobs)
    expected = {f"evt_{job_id.hex}_{number}" for job_id in ids for number in (1, 2)}
    hooked.send(lambda: hooked.states(other).count("SUCCEEDED") == 2 * jobs, timeout=60.0 + jobs / 20)
    assert minutes == 0
    hooked.send(
        lambda: hooked.states(endpoint) == ["SUCCEEDED"] * 2 * jobs, meanwhile=a_minute, timeout=60.0 + jobs / 5
    )  # fmt: skip
    assert minutes >= 60, "it was away all that time"
    assert set(hooked.receiver.ids("/away")) >= expected
    assert set(hooked.receiver.ids("/other")) >= expected


@pytest.mark.needs_postgres
@pytest.mark.needs_redis
def test_a_scheduler_that_is_killed_between_the_request_and_its_record_sends_it_again(
    tmp_path: Path, postgres_url: str, redis_url: str, receiver: Receiver
) -> None:
    settings = {"secret_key": SECRET_KEY, "policy": NEARBY, "webhook_timeout": 2}
    with Fleet(tmp_path, postgres_url, redis_url, **settings) as fleet:
        slow = fleet.jobq.webhooks.create(url=receiver.url("/slow/1.5"), events=["job.created"]).endpoint
        fleet.jobq.webhooks.create(url=receiver.url("/ends"), events=["job.completed", "job.failed", "job.canceled"])
        first = fleet.scheduler()
        job = fleet.jobq.enqueue(kind="NAP", spec={})
        wait_until(lambda: receiver.ids("/slow/1.5")[f"evt_{job.id.hex}_1"] == 1, timeout=30)
        first.kill()
        fleet.scheduler()
        fleet.worker()
        ids = {job.id, *fleet.jobq.enqueue_many([{"kind": "NAP", "spec": {}} for _ in range(20)])}
        fleet.wait_until_done()
        ended = {f"evt_{job_id.hex}_4" for job_id in ids}
        wait_until(lambda: receiver.ids("/ends").keys() >= ended, timeout=30, what="each end to be told of")
        wait_until(
            lambda: fleet.jobq.webhooks.deliveries(slow.id, job_id=job.id).items[0].state == "SUCCEEDED", timeout=30
        )
        assert receiver.ids("/slow/1.5")[f"evt_{job.id.hex}_1"] >= 2
        fleet.check_ledger(ids)
