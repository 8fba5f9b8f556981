"""Traces of real processes, sent to a collector: from the request to the API to what a child job writes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.fleet import JOBQ, Fleet
from tests.integration.test_metrics import port_of
from tests.otlp import Collector, Span
from tests.services import Postgres, Redis, wait_until

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SENDER = "00f067aa0ba902b7"
GIVEN = f"00-{TRACE}-{SENDER}-01"
CANARY = "canary-3f9c11"


@dataclass
class Stage:
    """Processes that send their traces to the collector."""

    fleet: Fleet
    collector: Collector
    folder: Path
    api: httpx2.Client

    def post(self, document: Any, **headers: str) -> dict[str, Any]:
        answer = self.api.post("/v1/jobs", json=document, headers=headers)
        assert answer.status_code == 201, answer.text
        found: dict[str, Any] = answer.json()
        return found


@pytest.fixture(scope="module")
def stage(
    tmp_path_factory: pytest.TempPathFactory,
    postgres_server: Postgres,
    postgres_template: str,
    redis_session: Redis,
) -> Iterator[Stage]:
    postgres_server.start()
    redis_session.start()
    folder = tmp_path_factory.mktemp("traces")
    url = postgres_server.url(postgres_server.create(postgres_template))
    policy = {"probe_networks": ["127.0.0.0/8"], "areas": [str(folder)]}
    plugins = ["tests.kinds:NapExecutor", "tests.kinds:MutterExecutor"]
    more: dict[str, Any] = {
        "plugins": plugins,
        "policy": policy,
        "secret_key": "0123456789abcdef",
        "log_format": "json",
    }
    with (
        Collector() as collector,
        Fleet(folder, url, redis_session.url, traces=collector.url, trace_targets=True, **more) as fleet,
    ):
        fleet.environment |= {"OTEL_BSP_SCHEDULE_DELAY": "100"}
        fleet.scheduler()
        fleet.start(str(JOBQ), "api", "--port", "0")
        fleet.worker("sync:1,replication:4,heartbeat:2,nap:1,mutter:1")
        with httpx2.Client(base_url=f"http://127.0.0.1:{port_of(fleet, 1, 'listens on')}", timeout=30) as api:
            yield Stage(fleet, collector, folder, api)


@pytest.mark.timeout(180)
def test_one_trace_leads_from_a_request_to_the_api_through_a_sync_to_what_its_children_write(stage: Stage) -> None:
    (stage.folder / "in.jsonl").write_text("".join(json.dumps({"id": str(n)}) + "\n" for n in range(3)))
    spec = {
        "domain": "customers", "source": {"type": "jsonl", "config": {"path": f"{stage.folder}/in.jsonl"}},
        "mapping": {"id": "id"},
        "targets": [{"name": "crm", "type": "http", "config": {"url": f"{stage.collector.url}/crm/{{key}}"}}],
    }  # fmt: skip
    job = stage.post({"kind": "SYNC", "spec": spec}, traceparent=GIVEN)
    stage.fleet.wait_until_done(60)
    wait_until(lambda: names(stage)["record replication"] == 3, 20, what=f"the spans: {names(stage)}")

    found = names(stage)
    for name in ("enqueue sync", "promote sync", "process sync", "record sync"):
        assert found[name] == 1, found
    for name in ("promote replication", "process replication", "record replication", "PUT"):
        assert found[name] == 3, found
    spans = stage.collector.of(TRACE)
    by_id = {span.id: span for span in spans}
    (enqueue,) = called(spans, "enqueue sync")
    (sync,) = called(spans, "process sync")
    (request,) = called(spans, "POST /v1/jobs")
    assert (request.parent, enqueue.parent) == (SENDER, request.id)
    assert (request.attributes["http.route"], request.attributes["http.response.status_code"]) == ("/v1/jobs", 201)
    assert (sync.parent, sync.attributes["messaging.message.id"]) == (enqueue.id, job["id"])
    for child in called(spans, "process replication"):
        assert (child.parent, child.attributes["jobq.job.parent_id"]) == (sync.id, job["id"])
    for write in called(spans, "PUT"):
        assert by_id[write.parent].name == "process replication"
        assert write.attributes["http.response.status_code"] == 200
    services = {span.name: span.service for span in spans}
    assert services["enqueue sync"] == "jobq-api"
    assert services["promote sync"] == "jobq-scheduler"
    assert services["process sync"] == services["process replication"] == "jobq-worker"
    sent = [headers["traceparent"] for method, path, headers in stage.collector.requests if path.startswith("/crm/")]
    assert sorted(text[36:52] for text in sent) == sorted(span.id for span in called(spans, "PUT"))


def names(stage: Stage) -> Counter[str]:
    return Counter(span.name for span in stage.collector.of(TRACE))


def called(spans: list[Span], name: str) -> list[Span]:
    return [span for span in spans if span.name == name]


def test_a_probe_is_a_span_that_names_its_origin_and_neither_path_nor_query(stage: Stage) -> None:
    trace = TRACE[::-1]
    endpoint = f"{stage.collector.url}/page/{CANARY}?token={CANARY}"
    job = stage.post({"kind": "HEARTBEAT", "spec": {"endpoint": endpoint}}, traceparent=f"00-{trace}-{SENDER}-01")
    wait_until(lambda: called(stage.collector.of(trace), "record heartbeat"), 30, what="the spans")
    spans = stage.collector.of(trace)
    (request,), (attempt,) = called(spans, "GET"), called(spans, "process heartbeat")
    assert (request.parent, request.kind) == (attempt.id, 3)
    assert request.attributes["url.full"] == stage.collector.url
    assert (request.attributes["server.address"], request.attributes["http.response.status_code"]) == ("127.0.0.1", 200)
    assert CANARY not in str(spans)
    assert stage.fleet.jobq.spec(stage.fleet.jobq.get(job["id"]).id)["endpoint"] == endpoint
    headers = [headers for _, path, headers in stage.collector.requests if CANARY in path]
    assert [header for header in headers if "traceparent" in header] == [], "a probe goes to whoever it may be"


def test_a_request_is_a_span_that_names_its_route_and_a_look_at_its_health_is_none(stage: Stage) -> None:
    trace = "cd" * 16
    headers = {"traceparent": f"00-{trace}-{SENDER}-01"}
    assert stage.api.get("/livez", headers=headers).status_code == 200
    assert stage.api.post(f"/v1/hooks/{CANARY}", headers=headers).status_code == 404
    assert stage.api.request("PROPFIND", "/v1/nowhere", headers=headers).status_code in {404, 405}
    wait_until(lambda: len(stage.collector.of(trace)) >= 2, 20, what="the spans")
    spans = stage.collector.of(trace)
    assert {(span.name, span.parent, span.kind) for span in spans} == {
        ("POST /v1/hooks/{token}", SENDER, 2),
        ("_OTHER", SENDER, 2),
    }
    assert CANARY not in str(spans)


def test_what_a_request_names_that_is_no_trace_is_passed_over(stage: Stage) -> None:
    job = stage.post({"kind": "NAP", "spec": {}}, traceparent="00-nonsense")
    stage.fleet.wait_until_done(30)
    found = stage.fleet.ask("SELECT traceparent FROM jobq_jobs WHERE id = :id", id=job["id"])[0][0]
    assert found[3:35] not in {TRACE, TRACE[::-1]}
    wait_until(lambda: called(stage.collector.of(found[3:35]), "process nap"), 20, what="a trace of its own")


def test_every_line_of_every_process_is_a_document_and_those_of_a_job_name_it_without_its_secrets(stage: Stage) -> None:
    trace = "ab" * 16
    stage.fleet.jobq.secrets.set("password", CANARY)
    job = stage.post(
        {"kind": "MUTTER", "spec": {"secrets": {"password": "password"}}}, traceparent=f"00-{trace}-{SENDER}-01"
    )
    stage.fleet.wait_until_done(30)
    files = {file.name: file.read_text() for file in sorted(stage.folder.glob("*.log"))}
    lines = {name: [json.loads(line) for line in text.splitlines()] for name, text in files.items()}
    assert len(files) == 3
    assert all(lines.values()), "each of them said something"
    (worker,) = {str(one.id) for one in stage.fleet.jobq.workers.list()}
    known = {
        "job_id": job["id"], "attempt": 1, "kind": "MUTTER", "queue": "mutter", "worker": worker, "trace_id": trace,
        "logger": "plugin.mutter",
    }  # fmt: skip
    told = [line for line in lines["2.log"] if line["logger"] == "plugin.mutter"]
    assert [line["event"].partition(":")[0] for line in told] == ["on the task", "on a thread", "with a traceback"]
    assert all(known.items() <= line.items() for line in told), told
    assert "ValueError: *** is no number" in told[2]["exception"]
    assert CANARY not in "".join(files.values())
