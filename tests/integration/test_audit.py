"""Who did what: each verb that a person calls leaves an event with its actor, and each tenant sees its own."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from jobq import InvalidInput, JobQ, NotFound
from jobq.store.workers import database_now
from tests.api import HEARTBEAT, Api, problem
from tests.integration.test_api_access import filled
from tests.stores import Store

FLOW = {**HEARTBEAT, "interval": "PT1H"}
CONNECTOR = {"name": "thing", "type": "http", "config": {"url": "https://crm.example"}}
WEBHOOK: dict[str, Any] = {"url": "https://example.org/hooks", "events": []}
NEW: dict[tuple[str, str], Any] = {
    ("post", "/v1/jobs"): HEARTBEAT,
    ("post", "/v1/jobs/batch"): [HEARTBEAT, HEARTBEAT],
    ("post", "/v1/workflows"): {**FLOW, "name": "made"},
    ("patch", "/v1/workflows/{workflow_id}"): {"interval": "PT2H"},
    ("post", "/v1/workflows/{workflow_id}/hooks"): {"name": "ci"},
    ("put", "/v1/queues/{name}/limit"): {"limit": 5},
    ("patch", "/v1/tenants/{name}"): {"weight": 2.0, "limit": 5, "quota": {"waiting": 100}},
    ("put", "/v1/secrets/{name}"): {"value": "x"},
    ("post", "/v1/connectors"): {**CONNECTOR, "name": "made"},
    ("post", "/v1/keys"): {"name": "made"},
    ("post", "/v1/workflows/apply"): [{**FLOW, "name": "applied"}],
    ("post", "/v1/connectors/apply"): [{**CONNECTOR, "name": "applied"}],
    ("post", "/v1/prune"): {"older_than": "P30D"},
    ("post", "/v1/webhooks"): WEBHOOK,
    ("patch", "/v1/webhooks/{webhook_id}"): {"events": ["job.failed"]},
    ("post", "/v1/webhooks/{webhook_id}/rotate"): {},
    ("post", "/v1/webhooks/{webhook_id}/replay"): {"failed_since": "2026-01-01T00:00:00Z"},
}
"""Bodies of the routes that need one."""
ENQUEUES = {
    ("post", "/v1/jobs"),
    ("post", "/v1/jobs/batch"),
    ("post", "/v1/workflows/{workflow_id}/jobs"),
    ("post", "/v1/hooks/{token}"),
}
"""A plain enqueue is no event: the job itself is on record."""
LONG_AGO = "UPDATE jobq_jobs SET finished_at = '2020-01-01T00:00:00.000000Z' WHERE finished_at IS NOT NULL"


@pytest.fixture
def api(sqlite_url: str) -> Iterator[Api]:
    with Api(sqlite_url) as api:
        yield api


def things(api: Api, owner: JobQ, verb: str) -> dict[str, str]:
    """One of each thing that a route may name, so that the verb has something to do."""
    owner.connectors.put(**CONNECTOR)
    owner.secrets.set("thing", "x")
    flow = owner.create_workflow(**FLOW)
    hook = owner.hooks.create(flow.id, "thing")
    job = owner.enqueue(HEARTBEAT["spec"], kind="HEARTBEAT")
    if verb == "resume":
        owner.pause(job.id)
        owner.pause_workflow(flow.id)
        owner.queues.pause("thing")
    elif verb in {"retry", "prune"}:
        owner.cancel(job.id)
    with owner.database.begin() as conn:
        if verb == "prune":
            conn.exec_driver_sql(LONG_AGO)
        conn.exec_driver_sql(
            "INSERT OR REPLACE INTO jobq_sync_states VALUES ('acme', 'customers', NULL, ?, '2026-01-01T00:00:00.000000Z')",
            (job.id.hex,),
        )
    key = owner.keys.create("another").stored.id
    webhook = str(owner.webhooks.create(**WEBHOOK).endpoint.id)
    return {
        "webhook_id": webhook,
        "job_id": str(job.id), "workflow_id": str(flow.id), "hook_id": str(hook.stored.id), "token": hook.token,
        "key_id": str(key), "worker_id": str(Store(api.jobq.database).worker()), "name": "thing", "domain": "customers",
    }  # fmt: skip


def test_every_route_that_changes_something_leaves_an_event_that_names_the_key(api: Api) -> None:
    owner = api.jobq.acting("acme", "owner")
    made = owner.keys.create("the auditor's", "admin", operator=True)
    auditor = api.client(
        peer="192.0.2.1", host="jobq.example", **{"Authorization": f"Bearer {made.key}", "X-Jobq-Tenant": "acme"}
    )
    walked = 0
    for path, methods in api.app.openapi()["paths"].items():
        for method in sorted(set(methods) - {"get", "head"}):
            known = things(api, owner, path.rpartition("/")[2])
            before = {event.id for event in owner.audit(actor="auditor", everything=True, limit=200).items}
            answer = auditor.request(method.upper(), filled(path, known), json=NEW.get((method, path)))
            assert answer.status_code in {200, 201, 202, 204}, (method, path, answer.text)
            page = owner.audit(actor="auditor", everything=True, limit=200)
            events = [event for event in page.items if event.id not in before]
            if (method, path) in ENQUEUES:
                assert events == []
                told = answer.json()
                maker = "thing (hook)" if "hooks" in path else "the auditor's (key)"
                made_job = told["ids"][1] if "ids" in told else told.get("job_id") or told["id"]
                assert owner.details(UUID(made_job))["started_by"] == maker
                continue
            assert events, f"{method} {path} left no event"
            for event in events:
                assert (event.actor, event.key_id) == ("the auditor's (key)", made.stored.id)
                assert event.tenant in {"acme", "thing", ""}
            walked += 1
    assert walked >= 34


def did(jobq: JobQ, **only: Any) -> list[tuple[str, str, str]]:
    return [(one.actor, one.action, one.subject.partition(":")[0]) for one in jobq.audit(**only).items]


@pytest.fixture
def history(api: Api) -> tuple[JobQ, UUID]:
    """What Ann and Bob did, for two tenants; and Ann's workflow."""
    ann, bob = api.jobq.acting("acme", "ann (cli)"), api.jobq.acting("acme", "bob")
    flow = ann.create_workflow(**FLOW)
    bob.pause_workflow(flow.id)
    ann.secrets.set("token", "x")
    ann.queues.limit("heartbeat", 5)
    api.jobq.acting("umbrella", "eve").create_workflow(**FLOW)
    return ann, flow.id


def test_a_tenant_sees_its_own_events_the_newest_first_and_operators_see_all(
    api: Api, history: tuple[JobQ, UUID]
) -> None:
    ann, _ = history
    own = [("ann (cli)", "set", "secret"), ("bob", "pause", "workflow"), ("ann (cli)", "create", "workflow")]
    assert did(ann) == own
    assert did(ann, everything=True) == [("eve", "create", "workflow"), ("ann (cli)", "limit", "queue"), *own]


def test_events_are_filtered_by_actor_action_subject_and_time(api: Api, history: tuple[JobQ, UUID]) -> None:
    ann, flow = history
    set_, pause, create = ann.audit().items
    for only, found in (
        ({"actor": "ann"}, [set_, create]),
        ({"actor": "a%"}, []),
        ({"action": "pause"}, [pause]),
        ({"subject": "workflow"}, [pause, create]),
        ({"subject": f"workflow:{flow}", "actor": "bob"}, [pause]),
        ({"subject": "work"}, []),
        ({"since": pause.at, "until": set_.at}, [pause] if set_.at > pause.at else []),
        ({"until": create.at}, []),
    ):
        assert ann.audit(**only).items == found, only  # type: ignore[arg-type]


def test_a_listing_of_events_goes_on_at_its_cursor(api: Api, history: tuple[JobQ, UUID]) -> None:
    ann, _ = history
    whole, pages, cursor = ann.audit().items, [], None
    while True:
        page = ann.audit(limit=1, cursor=cursor)
        pages += page.items
        if (cursor := page.next_cursor) is None:
            break
    assert pages == whole
    first = ann.audit(limit=1).next_cursor
    for other, only in ((ann, {"action": "set"}), (ann, {"everything": True}), (api.jobq.acting("umbrella", "e"), {})):
        with pytest.raises(InvalidInput) as refused:
            other.audit(cursor=first, **only)
        assert refused.value.code == "invalid_cursor"


def test_over_http_admins_see_their_tenants_and_operators_all(api: Api, history: tuple[JobQ, UUID]) -> None:
    admin, operator, runner = api.holder("acme"), api.holder("ops", operator=True), api.holder("acme", "run")
    items = admin.get("/v1/audit?subject=workflow").json()["items"]
    assert [(one["actor"], one["action"]) for one in items] == [("bob", "pause"), ("ann (cli)", "create")]
    assert set(items[0]) == {"id", "at", "tenant", "subject", "action", "actor", "key_id", "detail"}
    problem(runner.get("/v1/audit"), 403, "scope")
    problem(admin.get("/v1/audit?all=true"), 403, "scope")
    everybody = {one["tenant"] for one in operator.get("/v1/audit?all=true&limit=200").json()["items"]}
    assert everybody >= {"acme", "umbrella", ""}
    problem(admin.get("/v1/audit?since=yesterday"), 422, "validation_error")
    problem(admin.get("/v1/audit?cursor=x"), 400, "invalid_cursor")
    answer = admin.get("/v1/audit?limit=1").json()
    assert admin.get(f"/v1/audit?limit=1&cursor={answer['next_cursor']}").json()["items"] != answer["items"]


def test_whatever_is_done_to_a_webhook_is_on_record_and_no_secret_is(api: Api) -> None:
    ann = api.jobq.acting("acme", "ann (cli)")
    made = ann.webhooks.create(**WEBHOOK)
    endpoint = made.endpoint.id
    ann.webhooks.update(endpoint, events=["job.failed"], enabled=False)
    ann.webhooks.enable(endpoint)
    again = ann.webhooks.rotate(endpoint, overlap=60)
    tried = ann.webhooks.test(endpoint)
    ann.webhooks.replay(endpoint, tried.id)
    ann.webhooks.replay_failed(endpoint, "2026-01-01T00:00:00Z")
    ann.webhooks.delete(endpoint)
    events = ann.audit(subject=f"webhook:{endpoint}").items[::-1]
    assert [(event.actor, event.action) for event in events] == [
        ("ann (cli)", action)
        for action in ("create", "update", "update", "rotate", "test", "replay", "replay", "delete")
    ]
    assert events[1].detail == {"events": ["job.failed"], "enabled": False}
    assert [events[number].detail for number in (4, 5)] == [{"delivery": tried.id}] * 2
    assert not [one for one in events if made.secret[6:] in str(one) or again.secret[6:] in str(one)]


def test_what_was_done_to_a_job_stays_on_record_when_the_job_is_gone(api: Api) -> None:
    jobq = api.jobq
    job = jobq.cancel(jobq.enqueue(HEARTBEAT["spec"], kind="HEARTBEAT").id)
    with jobq.database.begin() as conn:
        conn.exec_driver_sql(LONG_AGO)
    assert jobq.prune() == 1
    with pytest.raises(NotFound):
        jobq.get(job.id)
    (event,) = jobq.audit(subject=f"job:{job.id}").items
    assert event.action == "cancel"
    (pruned,) = jobq.audit(action="prune", everything=True).items
    assert pruned.detail["deleted"] == 1
    with jobq.database.read() as conn:
        assert database_now(conn) - event.at < timedelta(minutes=5)
    settings = jobq.settings.model_copy(update={"audit_retention": timedelta(seconds=-60)})
    with JobQ(settings=settings) as later:
        later.prune()
    assert jobq.audit(everything=True).items == []
