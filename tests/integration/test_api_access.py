"""Who may ask for what: keys, scopes, tenants, and what is served without a key."""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from jobq.api.server import check_access
from jobq.errors import InvalidInput, Misconfigured
from jobq.settings import Settings
from jobq.store.jobs import new_id
from tests.api import HEARTBEAT, Api, problem
from tests.stores import Store

OPEN = {"/livez", "/readyz", "/v1/openapi.json", "/v1/hooks/{token}"}
"""What needs no key; the token of a hook is a credential of its own."""


EVENTS = "/v1/events"
"""A stream that goes on: tests/integration/test_changes.py asks it."""
SECRET = "/v1/secrets/{name}"
"""A stranger may have a secret of the same name."""
OPERATORS = ("/v1/queues", "/v1/tenants", "/v1/workers", "/v1/prune", "/metrics")
ONE_DAY = {"since": "2026-01-01T00:00:00Z", "until": "2026-01-02T00:00:00Z"}

_CRM = {"name": "thing", "type": "http", "config": {"url": "https://other.example"}}
_FLOW = {**HEARTBEAT, "name": "page", "interval": "PT2H"}
NEEDED: dict[tuple[str, str], Any] = {
    ("post", "/v1/jobs"): HEARTBEAT,
    ("post", "/v1/workflows"): _FLOW,
    ("post", "/v1/workflows/apply"): [{**_FLOW, "interval": "PT3H"}],
    ("post", "/v1/workflows/{workflow_id}/hooks"): {"name": "mine"},
    ("post", "/v1/connectors"): _CRM,
    ("post", "/v1/connectors/apply"): [_CRM],
    ("put", SECRET): {"value": "y"},
    ("post", "/v1/keys"): {"name": "mine"},
    ("post", "/v1/webhooks"): {"url": "https://other.example/hooks", "name": "thing"},
    ("post", "/v1/webhooks/{webhook_id}/replay"): {"delivery": 1},
    ("post", "/v1/prune"): {"older_than": "P30D"},
}
"""Bodies, under the names of another tenant's things."""


@pytest.fixture
def api(sqlite_url: str) -> Iterator[Api]:
    with Api(sqlite_url) as api:
        yield api


# --- without a key ---------------------------------------------------------------------------------------------------


def test_while_there_is_no_key_loopback_is_served_and_nobody_else(api: Api) -> None:
    assert api.local.get("/v1/jobs").status_code == 200
    assert api.client(peer="::1", host="[::1]").get("/v1/jobs").status_code == 200
    problem(api.client(peer="192.0.2.1", host="jobq.example").get("/v1/jobs"), 401, "unauthorized")


def test_a_page_of_another_site_reaches_nothing_on_loopback(api: Api) -> None:
    rebound = api.client(peer="127.0.0.1", host="evil.example")
    problem(rebound.get("/v1/jobs"), 401, "unauthorized")
    for site in ("cross-site", "same-site"):
        foreign = api.client(**{"Sec-Fetch-Site": site})
        problem(foreign.post("/v1/jobs", json=HEARTBEAT), 401, "unauthorized")
    assert api.jobq.list().items == []


def test_from_the_first_key_on_loopback_needs_one_too(api: Api) -> None:
    reader = api.holder("default", "read")
    problem(api.client().get("/v1/jobs"), 401, "unauthorized")
    assert reader.get("/v1/jobs").status_code == 200


def test_it_is_not_served_beyond_loopback_without_a_key(api: Api) -> None:
    check_access(api.settings, "127.0.0.1")
    for host in ("0.0.0.0", "::", "192.0.2.7", "jobq.example"):
        with pytest.raises(Misconfigured, match="jobq key create"):
            check_access(api.settings, host)
    api.jobq.keys.create("deploy")
    check_access(api.settings, "0.0.0.0")


# --- keys ------------------------------------------------------------------------------------------------------------


def test_a_key_is_shown_once_and_stored_as_a_digest_only(api: Api) -> None:
    made = api.jobq.keys.create("deploy", "run")
    assert re.fullmatch(r"jobq_[\w-]{43}", made.key)
    with api.jobq.database.read() as conn:
        rows = conn.exec_driver_sql("SELECT * FROM jobq_keys").all()
    assert made.key not in str(rows)
    assert made.key[10:] not in str(api.jobq.keys.list())
    (listed,) = api.jobq.keys.list()
    assert (listed.name, listed.scope, listed.tenant, listed.start) == ("deploy", "run", "default", made.key[:10])


@pytest.mark.parametrize(
    "header",
    ["Bearer", "Bearer ", "Bearer jobq_", "Bearer x", f"Bearer jobq_{'A' * 43}", "Basic dXNlcjpwYXNz", "jobq_abc"],
)
def test_what_is_no_valid_key_is_refused(api: Api, header: str) -> None:
    api.jobq.keys.create("other")
    answer = api.client(Authorization=header).get("/v1/jobs")
    problem(answer, 401, "unauthorized")
    assert answer.headers["www-authenticate"].startswith("Bearer")


def test_a_revoked_or_expired_key_is_refused(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobq.api.access._REMEMBERED", 0.0)
    made, brief = api.jobq.keys.create("one"), api.jobq.keys.create("brief", expires_in=3600)
    one, other = (api.client(Authorization=f"Bearer {each.key}") for each in (made, brief))
    assert one.get("/v1/jobs").status_code == other.get("/v1/jobs").status_code == 200
    api.jobq.keys.revoke(made.stored.id)
    with api.jobq.database.begin() as conn:
        conn.exec_driver_sql("UPDATE jobq_keys SET expires_at = created_at WHERE name = 'brief'")
    problem(one.get("/v1/jobs"), 401, "unauthorized")
    problem(other.get("/v1/jobs"), 401, "unauthorized")
    assert api.jobq.keys.revoke(made.stored.id).revoked_at is not None, "revoking twice changes nothing"


def test_the_use_of_a_key_is_noted(api: Api) -> None:
    assert api.holder("default").get("/v1/jobs").status_code == 200
    assert api.jobq.keys.list()[0].last_used_at is not None


def test_keys_need_a_pepper(sqlite_url: str) -> None:
    from jobq import JobQ

    with JobQ(settings=Settings(database_url=sqlite_url, secret_key="")) as jobq, pytest.raises(Misconfigured):
        jobq.keys.create("deploy")


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"name": ""}, "/name"),
        ({"name": "a\x1b"}, "/name"),
        ({"scope": "god"}, "/scope"),
        ({"expires_in": 0}, "/expires_in"),
    ],
)
def test_a_key_that_makes_no_sense_is_refused(api: Api, fields: dict[str, Any], pointer: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        api.jobq.keys.create(**{"name": "n", **fields})
    assert refused.value.pointer == pointer


# --- scopes ----------------------------------------------------------------------------------------------------------


def test_each_scope_contains_the_one_before_it(api: Api) -> None:
    reader, runner, admin = (api.holder("default", scope) for scope in ("read", "run", "admin"))
    asked = [
        ("GET", "/v1/jobs", None, "read"),
        ("POST", "/v1/jobs", HEARTBEAT, "run"),
        ("POST", "/v1/workflows", {**HEARTBEAT, "name": "page"}, "admin"),
        ("GET", "/v1/keys", None, "admin"),
        ("PUT", "/v1/secrets/token", {"value": "x"}, "admin"),
    ]
    for method, path, body, scope in asked:
        for who, has in ((reader, 0), (runner, 1), (admin, 2)):
            answer = who.request(method, path, json=body)
            if has >= ["read", "run", "admin"].index(scope):
                assert answer.status_code in {200, 201, 204, 409}, answer.text
            else:
                problem(answer, 403, "scope")


def test_what_concerns_all_tenants_needs_an_operators_key(api: Api) -> None:
    admin, operator = api.holder("acme"), api.holder("acme", operator=True)
    for method, path in (
        ("GET", "/v1/queues"),
        ("GET", "/v1/tenants"),
        ("GET", "/v1/workers"),
        ("POST", "/v1/queues/heartbeat/pause"),
    ):
        problem(admin.request(method, path), 403, "scope")
        assert operator.request(method, path).status_code in {200, 204}
    problem(admin.post("/v1/keys", json={"name": "mine", "operator": True}), 403, "scope")


def test_an_operator_acts_for_the_tenant_that_it_names(api: Api) -> None:
    operator = api.holder("acme", operator=True)
    made = api.made("/v1/jobs", HEARTBEAT, operator, **{"X-Jobq-Tenant": "umbrella"})
    assert made["tenant"] == "umbrella"
    assert api.holder("umbrella").get(f"/v1/jobs/{made['id']}").status_code == 200
    problem(api.holder("acme").get("/v1/jobs", headers={"X-Jobq-Tenant": "umbrella"}), 403, "scope")


def test_who_did_what_is_on_record(api: Api) -> None:
    holder = api.holder("acme")
    job = api.made("/v1/jobs", HEARTBEAT, holder)
    holder.post(f"/v1/jobs/{job['id']}/cancel")
    done = {event["what"]: event["detail"] for event in holder.get(f"/v1/jobs/{job['id']}/timeline").json()["items"]}
    assert done["cancel"] == {"actor": "acme's (key)"}


# --- tenants ---------------------------------------------------------------------------------------------------------


def test_a_tenant_finds_nothing_of_another_on_any_route(api: Api) -> None:
    """Every route is walked. With the ids of another tenant's things it finds nothing, listings show nothing of them,
    what is made under their names is another thing, and what concerns all tenants is refused.
    """
    owner, stranger = api.holder("acme"), api.holder("umbrella")
    things = make_things(api, owner)
    ids = [one for one in things.values() if len(one) == len(things["job_id"])]
    before = everything(api, owner)
    walked: Counter[str] = Counter()
    paths = api.app.openapi()["paths"]
    for path in sorted(paths, key=lambda path: "{" not in path):  # the last ones make things of the same names
        for method in paths[path]:
            if path in OPEN or path == EVENTS:
                continue
            body = NEEDED.get((method, path))
            if method == "post" and path == "/v1/jobs/batch":
                body = [{**HEARTBEAT, "after": [things["job_id"]]}]
            answer = stranger.request(method.upper(), filled(path, things), json=body)
            if path.startswith(OPERATORS):
                problem(answer, 403, "scope")
            elif ("{" in path and path != SECRET) or path == "/v1/jobs/batch":
                problem(answer, 404, "not_found")
            else:
                assert answer.status_code in {200, 201, 204}, (method, path, answer.text)
                assert not [one for one in ids if one in answer.text], (method, path)
            walked["named" if "{" in path else "made" if method != "get" else "listed"] += 1
    assert all(walked[what] >= number for what, number in {"named": 50, "made": 9, "listed": 12}.items()), walked
    assert everything(api, owner) == before, "nothing was changed"
    assert owner.get(f"/v1/jobs/{things['job_id']}").json()["status"] == "PENDING"
    (hook,) = owner.get(f"/v1/workflows/{things['workflow_id']}/hooks").json()["items"]
    assert hook["revoked_at"] is None


def everything(api: Api, who: TestClient) -> dict[str, Any]:
    """What all listings of a tenant show."""
    paths = [path for path, methods in api.app.openapi()["paths"].items() if "get" in methods and "{" not in path]
    tenants_own = [path for path in paths if path not in OPEN | {EVENTS} and not path.startswith(OPERATORS)]
    return {path: who.get(path, params=ONE_DAY if path == "/v1/analytics" else {}).json() for path in tenants_own}


def make_things(api: Api, owner: TestClient) -> dict[str, str]:
    job = api.made("/v1/jobs", HEARTBEAT, owner)["id"]
    flow = api.made("/v1/workflows", {**HEARTBEAT, "name": "page", "interval": "PT1H"}, owner)["id"]
    owner.put("/v1/secrets/thing", json={"value": "x"})
    made = owner.post(
        "/v1/connectors", json={"name": "thing", "type": "http", "config": {"url": "https://crm.example"}}
    )
    assert made.status_code == 200, made.text
    key = owner.get("/v1/keys").json()["items"][0]["id"]
    hook = api.made(f"/v1/workflows/{flow}/hooks", {"name": "thing"}, owner)["stored"]["id"]
    webhook = api.made("/v1/webhooks", {"url": "https://example.org/hooks", "name": "thing"}, owner)["endpoint"]["id"]
    delivery = str(owner.post(f"/v1/webhooks/{webhook}/test").json()["id"])
    worker = str(Store(api.jobq.database).worker())
    return {
        "webhook_id": webhook, "delivery_id": delivery, "worker_id": worker,
        "job_id": job, "workflow_id": flow, "key_id": key, "hook_id": hook, "name": "thing", "domain": "customers"
    }  # fmt: skip


def filled(path: str, things: dict[str, str]) -> str:
    return re.sub(r"\{(\w+)(:path)?\}", lambda found: things[found[1]], path)


def test_no_route_is_open_that_need_not_be(api: Api) -> None:
    api.jobq.keys.create("some")
    nobody = api.client()
    things = {
        "webhook_id": str(new_id()),
        "delivery_id": "1",
        "job_id": str(new_id()),
        "workflow_id": str(new_id()),
        "worker_id": str(new_id()),
        "key_id": str(new_id()),
        "hook_id": str(new_id()),
        "token": "jobq_hook_x",
    }
    for path, methods in api.app.openapi()["paths"].items():
        for method in methods:
            answer = nobody.request(method.upper(), filled(path, {**things, "name": "n", "domain": "d"}))
            assert (answer.status_code == 401) is (path not in OPEN), (method, path, answer.status_code)
