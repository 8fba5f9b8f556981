"""Jobs and workflows over HTTP: what Python can do, by the same functions."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from jobq.client import JobQ
from jobq.errors import InvalidInput
from jobq.store.jobs import new_id
from tests.api import HEARTBEAT, Api


@pytest.fixture
def api(database_url: str) -> Iterator[Api]:
    with Api(database_url) as api:
        yield api


def ids(answer: Any) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [item["id"] for item in answer.json()["items"]]


def test_a_job_that_was_answered_with_201_is_there(api: Api) -> None:
    answer = api.local.post("/v1/jobs", json={**HEARTBEAT, "priority": 9, "name": "front page", "state": {"n": 1}})
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (job["status"], job["reason"], job["priority"], job["trigger"]) == ("PENDING", "ready", 9, "MANUAL")
    assert api.local.get(answer.headers["location"]).json() == job
    assert str(api.jobq.list().items[0].id) == job["id"]
    assert api.local.get(f"/v1/jobs/{job['id']}/spec").json()["endpoint"] == "https://example.org/"
    assert api.local.get(f"/v1/jobs/{job['id']}/details").json()["state"] == {"n": 1}
    assert "no live worker" in api.local.get(f"/v1/jobs/{job['id']}/why").json()["why"]


def test_a_job_for_later_and_one_that_is_live_already(api: Api) -> None:
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    job = api.made("/v1/jobs", {**HEARTBEAT, "scheduled_at": later, "dedupe_key": "once"})
    assert (job["status"], job["reason"]) == ("PENDING", "scheduled")
    twin = api.made("/v1/jobs", {**HEARTBEAT, "dedupe_key": "once"})
    assert (twin["status"], twin["reason"], twin["duplicate_of"]) == ("CANCELED", "duplicate", job["id"])


def test_a_job_is_paused_resumed_canceled_and_retried(api: Api) -> None:
    job = api.made("/v1/jobs", HEARTBEAT)["id"]
    for verb, state in (("pause", "PENDING·paused"), ("resume", "PENDING·ready"), ("cancel", "CANCELED·by_user")):
        after = api.local.post(f"/v1/jobs/{job}/{verb}").json()
        assert f"{after['status']}·{after['reason']}" == state
    again = api.made(f"/v1/jobs/{job}/retry", None)
    assert (again["retry_of"], again["status"]) == (job, "PENDING")
    told = [event["what"] for event in api.local.get(f"/v1/jobs/{job}/timeline").json()["items"]]
    assert told[0] == "created"
    assert {"pause", "resume", "cancel", "finished", "retry"} <= set(told)


def test_listings_are_narrowed_and_paged_without_gap_or_repeat(api: Api) -> None:
    made = [
        api.made("/v1/jobs", {**HEARTBEAT, "name": f"job {number}", "queue": f"q{number % 2}"})["id"]
        for number in range(7)
    ]
    api.local.post(f"/v1/jobs/{made[3]}/cancel")
    assert ids(api.local.get("/v1/jobs")) == made[::-1]
    assert ids(api.local.get("/v1/jobs?status=CANCELED")) == [made[3]]
    assert ids(api.local.get("/v1/jobs?status=CANCELED&status=PENDING&queue=q1")) == [made[5], made[3], made[1]]
    assert ids(api.local.get("/v1/jobs?name=job 4")) == [made[4]]
    assert ids(api.local.get("/v1/jobs?reason=by_user&kind=HEARTBEAT&trigger=MANUAL")) == [made[3]]
    assert ids(api.local.get("/v1/jobs?finished_from=2020-01-01T00:00:00Z")) == [made[3]]
    assert ids(api.local.get("/v1/jobs?scheduled_from=2020-01-01T00:00:00Z")) == []
    assert api.local.get("/v1/jobs?name=job 4&total=true").json()["total"] == {"count": 1, "exact": True}
    assert api.local.get("/v1/jobs?name=job 4").json()["total"] is None
    assert ids(api.local.get("/v1/jobs?created_until=2020-01-01T00:00:00%2B01:00")) == []
    seen, cursor = [], ""
    while cursor is not None:
        page = api.local.get(f"/v1/jobs?limit=3{f'&cursor={cursor}' if cursor else ''}").json()
        seen += [item["id"] for item in page["items"]]
        api.made("/v1/jobs", HEARTBEAT)  # what comes meanwhile moves nothing
        cursor = page["next_cursor"]
    assert seen == made[::-1]


def test_the_life_of_a_workflow(api: Api) -> None:
    flow = api.made("/v1/workflows", {**HEARTBEAT, "name": "page", "interval": "PT1M", "timeout": 5})
    path = f"/v1/workflows/{flow['id']}"
    assert (flow["status"], flow["generation"], flow["interval"], flow["timeout"]) == ("ACTIVE", 1, "PT1M", "PT5S")
    assert api.local.get(path).json() == flow
    slots = [datetime.fromisoformat(slot) for slot in api.local.get(f"{path}/preview?count=3").json()["items"]]
    assert slots[1] - slots[0] == slots[2] - slots[1] == timedelta(minutes=1)
    assert api.local.patch(path, json={"interval": "PT5M"}).json()["generation"] == 2
    assert api.local.post(f"{path}/pause").json()["status"] == "PAUSED"
    assert api.local.post(f"{path}/resume").json()["status"] == "ACTIVE"
    job = api.made(f"{path}/jobs", {"state": [1]})
    assert (job["workflow_id"], job["trigger"], job["name"]) == (flow["id"], "MANUAL", "page")
    assert ids(api.local.get(f"{path}/jobs")) == [job["id"]]
    assert api.local.post(f"{path}/terminate").json()["status"] == "TERMINATED"
    assert api.local.delete(path).json()["code"] == "has_live_jobs"
    api.local.post(f"/v1/jobs/{job['id']}/cancel")
    assert api.local.delete(path).status_code == 204
    assert api.local.get(path).status_code == 404


def test_fields_that_are_parameters_in_python_are_no_fields_over_http(api: Api) -> None:
    """A body is data: it never reaches a parameter of a function that it is not meant for."""
    flow = api.made("/v1/workflows", {**HEARTBEAT, "name": "page"})["id"]
    for path, method in (
        ("/v1/jobs", "POST"),
        (f"/v1/workflows/{flow}", "PATCH"),
        (f"/v1/workflows/{flow}/jobs", "POST"),
    ):
        for name in ("connection", "workflow", "self", "spec_", "tenant", "id", "trigger", "parent_id"):
            answer = api.local.request(method, path, json={**(HEARTBEAT if path == "/v1/jobs" else {}), name: None})
            assert (answer.status_code, answer.json()["pointer"]) == (422, f"/{name}"), (path, name, answer.text)


def test_operators_pause_queues_limit_tenants_and_keep_secrets(api: Api) -> None:
    api.made("/v1/jobs", HEARTBEAT)
    assert api.local.post("/v1/queues/heartbeat/pause").status_code == 204
    assert api.local.put("/v1/queues/heartbeat/limit", json={"limit": 5}).status_code == 204
    (queue,) = api.local.get("/v1/queues").json()["items"]
    assert (queue["name"], queue["paused"], queue["limit"], queue["ready"]) == ("heartbeat", True, 5, 1)
    assert api.local.patch("/v1/tenants/acme", json={"weight": 2.5, "limit": 7}).status_code == 204
    assert api.local.patch("/v1/tenants/acme", json={"limit": None}).status_code == 204
    (tenant,) = api.local.get("/v1/tenants").json()["items"]
    assert (tenant["name"], tenant["weight"], tenant["limit"]) == ("acme", 2.5, None)
    assert api.local.put("/v1/secrets/token", json={"value": "canary-value"}).status_code == 204
    listed = api.local.get("/v1/secrets")
    assert [item["name"] for item in listed.json()["items"]] == ["token"]
    assert "canary-value" not in listed.text
    assert api.local.delete("/v1/secrets/token").status_code == 204
    assert api.local.get("/v1/workers").json() == {"items": [], "next_cursor": None}
    assert api.local.post(f"/v1/workers/{new_id()}/drain").status_code == 404


@pytest.mark.parametrize("name", ["%20", "%20acme", "%00", "acme%0A", "a%1Bb", "a" * 101])
def test_what_is_no_name_of_a_tenant_is_given_no_share(api: Api, name: str) -> None:
    answer = api.local.patch(f"/v1/tenants/{name}", json={"weight": 2.0})
    assert (answer.status_code, answer.json()["code"]) in [(422, "validation_error"), (404, "not_found")]
    assert api.local.get("/v1/tenants").json()["items"] == []


@pytest.mark.parametrize("name", [" acme", "a\tb", "a" * 101])
def test_nobody_acts_for_a_tenant_with_such_a_name(api: Api, name: str) -> None:
    with pytest.raises(InvalidInput, match="no name of a tenant"):
        JobQ(tenant=name, settings=api.jobq.settings)


def test_connectors_and_states_of_syncs(api: Api) -> None:
    body = {"name": "crm", "type": "http", "config": {"url": "https://crm.example"}}
    assert api.local.post("/v1/connectors", json=body).json()["name"] == "crm"
    assert api.local.get("/v1/connectors/crm").json()["config"] == body["config"]
    secret = {**body, "config": {"url": "https://crm.example", "token": "in clear"}}
    assert api.local.post("/v1/connectors", json=secret).json()["code"] == "secret_in_config"
    assert api.local.delete("/v1/connectors/crm").status_code == 204
    assert api.local.get("/v1/sync-states").json()["items"] == []
    assert api.local.delete("/v1/sync-states/people").status_code == 404


def test_analytics_over_http_are_those_of_the_tenant(api: Api) -> None:
    job = api.made("/v1/jobs", HEARTBEAT)["id"]
    api.local.post(f"/v1/jobs/{job}/cancel")
    whole = api.local.get("/v1/analytics").json()
    assert (whole["bucket"], whole["group_by"], whole["timezone"]) == (None, None, "UTC")
    (point,) = whole["items"]
    assert (point["jobs"], point["statuses"]["CANCELED"], point["reasons"]) == (1, 1, {"by_user": 1})
    assert point["run"] == {"mean": None, "p50": None, "p95": None, "p99": None}
    asked = "/v1/analytics?since=2026-01-01T00:00:00Z&until=2026-01-03T00:00:00Z&bucket=day&timezone=Europe/Berlin"
    starts = [item["start"] for item in api.local.get(asked).json()["items"]]
    assert starts == ["2025-12-31T23:00:00Z", "2026-01-01T23:00:00Z", "2026-01-02T23:00:00Z"]
    (kind,) = api.local.get("/v1/analytics?group_by=kind&kind=HEARTBEAT&queue=heartbeat").json()["items"]
    assert (kind["kind"], kind["jobs"]) == ("HEARTBEAT", 1)
    assert api.local.get("/v1/analytics?kind=SYNC").json()["items"][0]["jobs"] == 0
    for wrong in ("bucket=week", "limit=101", "timezone=Mars", "since=2026-01-01T00:00:00", "by=kind"):
        assert api.local.get(f"/v1/analytics?{wrong}").status_code == 422, wrong
    other = api.holder("other", "read")
    assert other.get("/v1/analytics").json()["items"][0]["jobs"] == 0


def test_the_document_says_what_there_is(api: Api) -> None:
    document = api.local.get("/v1/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation.get("summary"), (method, path)
            assert operation.get("description"), (method, path)
            if path.startswith("/v1"):
                assert "401" in operation["responses"], (method, path)
            if operation.get("requestBody"):
                media = operation["requestBody"]["content"]["application/json"]
                assert media["examples"], (method, path)
                if path == "/v1/hooks/{token}":
                    continue  # whatever others send
                schema = media["schema"].get("items", media["schema"])
                assert schema["$ref"].rpartition("/")[2] in document["components"]["schemas"]
