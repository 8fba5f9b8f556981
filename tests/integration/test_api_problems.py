"""Bad input over HTTP: each gets a problem document with the code that Python and the command line know."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from jobq.store.jobs import new_id
from tests.api import HEARTBEAT, Api, problem
from tests.unit.hostile_urls import MALFORMED

NOBODY = new_id()


@pytest.fixture
def api(sqlite_url: str) -> Iterator[Api]:
    with Api(sqlite_url) as api:
        yield api


def heartbeat(**fields: Any) -> dict[str, Any]:
    return {**HEARTBEAT, **fields}


def container(**spec: Any) -> dict[str, Any]:
    return {"kind": "CONTAINER", "spec": {"image": "alpine", **spec}}


def workflow(**fields: Any) -> dict[str, Any]:
    return {**HEARTBEAT, "name": "page", **fields}


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "invalid_json"),
        (b'{"priority": NaN}', 400, "invalid_json"),
        (b'{"kind": "HEARTBEAT", "kind": "CONTAINER"}', 400, "invalid_json"),
        (b"[" * 40 + b"]" * 40, 400, "invalid_json"),
        (b'"\\ud800"', 400, "invalid_json"),
        (b"\xff\xfe", 400, "invalid_json"),
        (b'{"x": "' + b"x" * 300_000 + b'"}', 413, "payload_too_large"),
        (b"[]", 422, "validation_error"),
        (b"null", 422, "validation_error"),
    ],
)
def test_a_body_that_is_no_proper_json_is_refused_before_anything_else(
    api: Api, body: bytes, status: int, code: str
) -> None:
    for path in ("/v1/jobs", "/v1/workflows"):
        problem(api.local.post(path, content=body), status, code)
    assert api.jobq.list().items == []


def test_a_body_of_another_kind_is_refused(api: Api) -> None:
    for kind in ("application/x-www-form-urlencoded", "text/plain", "multipart/form-data; boundary=x"):
        body = json.dumps(HEARTBEAT)
        answer = api.local.post("/v1/jobs", content=body, headers={"Content-Type": kind})
        problem(answer, 415, "unsupported_media_type")


@pytest.mark.parametrize(
    ("request_", "status", "code", "pointer"),
    [
        (heartbeat(prioritty=1), 422, "validation_error", "/prioritty"),
        (heartbeat(priority="high"), 422, "validation_error", "/priority"),
        (heartbeat(priority=10), 422, "validation_error", "/priority"),
        (heartbeat(connection={}), 422, "validation_error", "/connection"),
        (heartbeat(scheduled_at="2026-12-01T00:00:00"), 422, "invalid_schedule", "/scheduled_at"),
        (heartbeat(scheduled_at="2999-01-01T00:00:00Z"), 422, "invalid_schedule", "/scheduled_at"),
        (heartbeat(timeout=0), 422, "invalid_timeout", "/timeout"),
        (heartbeat(timeout="PT1H"), 422, "invalid_timeout", "/timeout"),
        ({"kind": "NOTHING", "spec": {}}, 422, "validation_error", "/kind"),
        ({"kind": "REPLICATION", "spec": {"domain": "d", "target": "t", "entity_key": "k"}}, 422, "not_enqueuable", "/kind"),
        (container(image=""), 422, "invalid_image", "/spec/image"),
        (container(image="Alpine"), 422, "invalid_image", "/spec/image"),
        (container(privileged=True), 403, "forbidden_option", "/spec/privileged"),
        (container(mounts=["/:/host"]), 403, "forbidden_option", "/spec/mounts"),
        (container(network="host"), 403, "forbidden_option", "/spec/network"),
        (container(cap_add=["ALL"]), 403, "forbidden_option", "/spec/cap_add"),
        (container(env={"A=B": "c"}), 422, "invalid_env", None),
        (container(env={"A": "x" * 70_000}), 422, "invalid_env", None),
        (container(memory="1MB"), 422, "invalid_resources", "/spec/memory"),
        (container(pids=-5), 422, "invalid_resources", "/spec/pids"),
        ({"kind": "HEARTBEAT", "spec": {"endpoint": "ftp://example.org/"}}, 422, "invalid_url", "/spec/endpoint"),
        ({"kind": "HEARTBEAT", "spec": {"endpoint": "http://169.254.169.254/"}}, 422, "target_blocked", "/spec/endpoint"),
        (
            {"kind": "HEARTBEAT", "spec": {"endpoint": "https://e.org/", "expected_status_code": 600}},
            422, "validation_error", "/spec/expected_status_code",
        ),
        (heartbeat(after=[str(NOBODY)]), 404, "not_found", "/after"),
    ],
)  # fmt: skip
def test_a_job_that_cannot_be_accepted_is_refused_with_its_code_and_the_place(
    api: Api, request_: dict[str, Any], status: int, code: str, pointer: str | None
) -> None:
    document = problem(api.local.post("/v1/jobs", json=request_), status, code)
    assert pointer is None or document["pointer"] == pointer
    assert api.jobq.list().items == []


@pytest.mark.parametrize("url", [url for url in MALFORMED if "\ud800" not in url][:30])
def test_hostile_addresses_are_refused(api: Api, url: str) -> None:
    answer = api.local.post("/v1/jobs", json={"kind": "HEARTBEAT", "spec": {"endpoint": url}})
    assert answer.json()["code"] in {"invalid_url", "target_blocked", "validation_error"}
    assert answer.status_code == 422


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"interval": 0}, "invalid_schedule"),
        ({"interval": -5}, "invalid_schedule"),
        ({"interval": "P2Y"}, "invalid_schedule"),
        ({"interval": "P1M"}, "invalid_schedule"),
        ({"interval": "PT1M", "cron": "* * * * *"}, "invalid_schedule"),
        ({"cron": "61 * * * *"}, "invalid_schedule"),
        ({"cron": "0 * * * *", "timezone": "Mars/Olympus"}, "invalid_schedule"),
        ({"max_consecutive_job_failures_allowed": 0}, "validation_error"),
        ({"max_consecutive_job_failures_allowed": 101}, "validation_error"),
        ({"overlap": "whatever"}, "validation_error"),
    ],
)
def test_a_workflow_that_cannot_be_accepted_is_refused(api: Api, fields: dict[str, Any], code: str) -> None:
    problem(api.local.post("/v1/workflows", json=workflow(**fields)), 422, code)
    assert api.jobq.list_workflows().items == []
    made = api.made("/v1/workflows", workflow(interval="PT1H"))
    problem(api.local.patch(f"/v1/workflows/{made['id']}", json=fields), 422, code)
    assert api.jobq.get_workflow("page").generation == 1


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("limit=0", 422, "validation_error"),
        ("limit=201", 422, "validation_error"),
        ("limit=ten", 422, "validation_error"),
        ("status=DONE", 422, "validation_error"),
        ("colour=red", 422, "validation_error"),
        ("created_from=2026-01-01T00:00:00", 422, "validation_error"),
        ("workflow_id=1", 422, "validation_error"),
        ("cursor=AAAA", 400, "invalid_cursor"),
        ("cursor=%C3%A4", 400, "invalid_cursor"),
    ],
)
def test_a_query_that_means_nothing_is_refused(api: Api, query: str, status: int, code: str) -> None:
    problem(api.local.get(f"/v1/jobs?{query}"), status, code)


def test_a_cursor_belongs_to_its_filters(api: Api) -> None:
    for _ in range(3):
        api.made("/v1/jobs", HEARTBEAT)
    cursor = api.local.get("/v1/jobs?limit=2").json()["next_cursor"]
    assert len(api.local.get(f"/v1/jobs?limit=2&cursor={cursor}").json()["items"]) == 1
    problem(api.local.get(f"/v1/jobs?limit=2&status=FAILED&cursor={cursor}"), 400, "invalid_cursor")
    problem(api.local.get(f"/v1/workflows?cursor={cursor}"), 400, "invalid_cursor")


def test_what_does_not_exist_is_not_found(api: Api) -> None:
    for path in (
        f"/v1/jobs/{NOBODY}",
        "/v1/jobs/no-id",
        f"/v1/workflows/{NOBODY}",
        "/v1/connectors/none",
        "/v1/nothing",
        "/",
    ):
        problem(api.local.get(path), 404, "not_found")
    problem(api.local.put("/v1/jobs"), 405, "method_not_allowed")


def test_what_the_state_of_a_job_refuses_is_a_conflict(api: Api) -> None:
    job = api.made("/v1/jobs", HEARTBEAT)["id"]
    problem(api.local.post(f"/v1/jobs/{job}/retry"), 409, "not_finished")
    assert api.local.post(f"/v1/jobs/{job}/resume").status_code == 200
    assert api.local.post(f"/v1/jobs/{job}/cancel").json()["status"] == "CANCELED"
    problem(api.local.post(f"/v1/jobs/{job}/cancel"), 409, "already_finished")
    problem(api.local.post(f"/v1/jobs/{job}/pause"), 409, "already_finished")


def test_a_database_that_is_away_is_503_and_the_process_lives() -> None:
    with Api("postgresql://nobody@127.0.0.1:1/none") as away:
        answer = away.local.post("/v1/jobs", json=HEARTBEAT)
        assert int(answer.headers["retry-after"]) >= 1
        problem(answer, 503, "database_unavailable")
        problem(away.local.get("/readyz"), 503, "database_unavailable")
        assert away.local.get("/livez").json() == {"status": "ok"}


def test_a_request_says_its_id_or_gets_one(api: Api) -> None:
    assert api.local.get("/livez", headers={"X-Request-Id": "mine-1"}).headers["x-request-id"] == "mine-1"
    assert len(api.local.get("/livez").headers["x-request-id"]) == 32
    assert "\x1b" not in api.local.get("/livez", headers={"X-Request-Id": "\x1b[2J"}).headers["x-request-id"]


# --- idempotency -----------------------------------------------------------------------------------------------------


def test_a_repeated_request_is_answered_as_the_first_one(api: Api) -> None:
    flow = api.made("/v1/workflows", workflow(), **{"Idempotency-Key": "flow"})
    for path, body in (
        ("/v1/jobs", HEARTBEAT),
        (f"/v1/workflows/{flow['id']}/jobs", {"state": {"n": 1}}),
        ("/v1/workflows", workflow(name="other")),
    ):
        key = {"Idempotency-Key": f"key of {path}"}
        first, second = (api.made(path, body, **key) for _ in range(2))
        assert first["id"] == second["id"]
        problem(api.local.post(path, json={**body, "name": "another"}, headers=key), 409, "idempotency_conflict")
    assert len(api.jobq.list().items) == 2
    assert len(api.jobq.list_workflows().items) == 2


def test_a_key_of_one_kind_of_request_is_no_key_of_another(api: Api) -> None:
    api.made("/v1/jobs", HEARTBEAT, **{"Idempotency-Key": "same"})
    answer = api.local.post("/v1/workflows", json=workflow(), headers={"Idempotency-Key": "same"})
    problem(answer, 409, "idempotency_conflict")
