"""``/v1/webhooks`` and ``jobq webhook``: the same verbs, for the same tenant only."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID, uuid4

import pytest

from tests.api import HEARTBEAT, Api, problem

ENDPOINT = {"url": "https://example.org/hooks", "name": "ends", "events": ["job.completed", "job.failed"]}


@pytest.fixture
def api(sqlite_url: str) -> Iterator[Api]:
    with Api(sqlite_url) as one:
        yield one


def test_an_endpoint_is_made_shown_changed_and_removed(api: Api) -> None:
    made = api.made("/v1/webhooks", ENDPOINT)
    assert made["secret"].startswith("whsec_")
    where = f"/v1/webhooks/{made['endpoint']['id']}"
    shown = api.local.get(where)
    assert shown.json() == made["endpoint"]
    assert made["secret"] not in shown.text + api.local.get("/v1/webhooks").text
    changed = api.local.patch(where, json={"events": ["*"], "enabled": False}).json()
    assert (changed["events"], changed["enabled"], changed["disabled_reason"] is None) == (["*"], False, False)
    assert api.local.post(f"{where}/enable").json()["enabled"] is True
    rotated = api.local.post(f"{where}/rotate", json={"overlap": "PT1H"}).json()
    assert (rotated["endpoint"]["secrets"], rotated["secret"] != made["secret"]) == (2, True)
    assert api.local.delete(where).status_code == 204
    problem(api.local.get(where), 404, "not_found")


def test_deliveries_are_paged_shown_and_replayed(api: Api) -> None:
    endpoint = api.made("/v1/webhooks", {**ENDPOINT, "events": ["job.created"]})["endpoint"]
    where = f"/v1/webhooks/{endpoint['id']}"
    ids = [api.made("/v1/jobs", HEARTBEAT)["id"] for _ in range(3)]
    first = api.local.get(f"{where}/deliveries", params={"limit": 2}).json()
    rest = api.local.get(f"{where}/deliveries", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    assert [each["job_id"] for each in first["items"] + rest["items"]] == ids[::-1]
    assert rest["next_cursor"] is None
    problem(
        api.local.get(f"{where}/deliveries", params={"state": "FAILED", "cursor": first["next_cursor"]}), 400,
        "invalid_cursor",
    )  # fmt: skip
    one = first["items"][0]
    assert api.local.get(f"{where}/deliveries/{one['id']}").json() == one
    assert api.local.post(f"{where}/replay", json={"delivery": one["id"]}).json() == {"count": 1}
    assert api.local.post(f"{where}/replay", json={"failed_since": "2026-01-01T00:00:00Z"}).json() == {"count": 0}
    problem(api.local.post(f"{where}/replay", json={"failed_since": "2026-01-01"}), 422, "validation_error")
    problem(api.local.post(f"{where}/replay", json={}), 422, "validation_error")
    problem(api.local.post(f"{where}/replay", json={"delivery": 10**9}), 404, "not_found")
    assert api.local.post(f"{where}/test").status_code == 202


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"url": "http://169.254.169.254/"}, 422, "target_blocked"),
        ({"url": "ftp://example.org/"}, 422, "invalid_url"),
        ({"events": ["job.finished"]}, 422, "unknown_event"),
        ({"secret": "hunter2"}, 422, "validation_error"),
        ({"hub_signature": ["md5"]}, 422, "validation_error"),
        ({"nmae": "x"}, 422, "validation_error"),
        ({"name": "taken"}, 409, "name_taken"),
    ],
)
def test_what_is_wrong_with_an_endpoint_is_said(api: Api, change: dict[str, object], status: int, code: str) -> None:
    api.made("/v1/webhooks", {**ENDPOINT, "name": "taken"})
    answer = api.local.post("/v1/webhooks", json={**ENDPOINT, **change})
    found = problem(answer, status, code)
    assert "hunter2" not in answer.text
    assert found.get("pointer", "/").startswith("/")


def test_no_tenant_sees_or_touches_the_endpoints_of_another(api: Api) -> None:
    mine, theirs = api.holder("mine"), api.holder("theirs")
    endpoint = api.made("/v1/webhooks", ENDPOINT, mine)["endpoint"]
    where = f"/v1/webhooks/{endpoint['id']}"
    delivery = mine.post(f"{where}/test").json()["id"]
    for verb, path, body in (
        ("GET", where, None), ("PATCH", where, {"events": ["*"]}), ("DELETE", where, None),
        ("POST", f"{where}/enable", None), ("POST", f"{where}/rotate", {}), ("POST", f"{where}/test", None),
        ("GET", f"{where}/deliveries", None), ("GET", f"{where}/deliveries/{delivery}", None),
        ("POST", f"{where}/replay", {"delivery": delivery}),
        ("POST", f"{where}/replay", {"failed_since": "2026-01-01T00:00:00Z"}),
    ):  # fmt: skip
        problem(theirs.request(verb, path, json=body), 404, "not_found")
    assert theirs.get("/v1/webhooks").json()["items"] == []
    problem(theirs.post("/v1/jobs", json={**HEARTBEAT, "webhook": {"endpoint": endpoint["id"]}}), 404, "not_found")
    other = api.made("/v1/webhooks", ENDPOINT, theirs)["endpoint"]
    problem(mine.get(f"/v1/webhooks/{other['id']}/deliveries/{delivery}"), 404, "not_found")
    problem(api.holder("mine", "run").get("/v1/webhooks"), 403, "scope")


def test_a_job_names_an_endpoint_of_its_own(api: Api) -> None:
    endpoint = api.made("/v1/webhooks", {**ENDPOINT, "events": []})["endpoint"]
    job = api.made("/v1/jobs", {**HEARTBEAT, "webhook": {"endpoint": "ends", "events": ["job.c*"]}})
    again = api.jobq.retry(api.jobq.cancel(UUID(job["id"])).id)
    told = api.local.get(f"/v1/webhooks/{endpoint['id']}/deliveries").json()["items"]
    assert [(each["type"], each["job_id"]) for each in told] == [
        ("job.created", str(again.id)), ("job.canceled", job["id"]), ("job.created", job["id"])
    ]  # fmt: skip
    wrong = problem(
        api.local.post("/v1/jobs", json={**HEARTBEAT, "webhook": {"endpoint": "nobody's"}}), 404, "not_found"
    )  # fmt: skip
    assert wrong["pointer"] == "/webhook/endpoint"
    assert api.local.get(f"/v1/webhooks/{uuid4()}").status_code == 404
