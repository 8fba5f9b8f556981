"""Quotas and rates: judged at every door that a person or an application comes through, and at no other."""

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from jobq import InvalidInput, JobQ, Settings, Status, TooMany
from jobq.quotas import Bucket
from jobq.settings import Policy, Quota
from jobq.testing import running
from tests.api import HEARTBEAT, Api, problem
from tests.stores import Store

SPEC = {"endpoint": "https://example.org/"}
PROBE: dict[str, Any] = {"kind": "HEARTBEAT"}


@pytest.fixture
def api(sqlite_url: str) -> Iterator[Api]:
    with Api(sqlite_url) as api:
        yield api


def over(act: Callable[[], Any]) -> TooMany:
    with pytest.raises(TooMany) as refused:
        act()
    assert refused.value.code == "quota_exceeded"
    assert 1 <= refused.value.retry_after <= 5
    return refused.value


# --- waiting and running jobs --------------------------------------------------------------------------------------


def test_every_door_refuses_what_is_over_the_quota_and_writes_nothing(api: Api) -> None:
    jobq, holder = api.jobq, api.holder("default")
    flow = jobq.create_workflow(SPEC, kind="HEARTBEAT", name="page")
    ended = jobq.cancel(jobq.enqueue(SPEC, **PROBE).id)
    hook = jobq.hooks.create("page", "ci")
    jobq.tenants.quota("default", waiting=2)
    first = jobq.enqueue(SPEC, **PROBE, idempotency_key="one")
    with jobq.database.begin() as conn:
        jobq.enqueue(SPEC, **PROBE, connection=conn)
    doors: list[Callable[[], Any]] = [
        lambda: jobq.enqueue(SPEC, **PROBE),
        lambda: jobq.enqueue(SPEC, **PROBE, idempotency_key="two"),
        lambda: jobq.enqueue(SPEC, **PROBE, scheduled_at="2027-01-01T00:00:00Z"),
        lambda: jobq.enqueue_many([{**PROBE, "spec": SPEC}]),
        lambda: jobq.trigger("page"),
        lambda: jobq.retry(ended.id),
        lambda: jobq.hooks.receive(hook.token, b"{}", headers={"webhook-id": "1"}),
    ]
    for door in doors:
        assert "has 2 jobs waiting, of 2 at most" in over(door).message
    for path, body in (("/v1/jobs", HEARTBEAT), (f"/v1/workflows/{flow.id}/jobs", {}), (f"/v1/jobs/{ended.id}/retry", None),
                       (hook.path, {})):  # fmt: skip
        answer = holder.post(path, json=body)
        problem(answer, 429, "quota_exceeded")
        assert 1 <= int(answer.headers["retry-after"]) <= 5
    assert len(jobq.list().items) == 3
    assert jobq.enqueue(SPEC, **PROBE, idempotency_key="one").id == first.id, "a repetition is no new job"
    jobq.acting("umbrella", "test").enqueue(SPEC, **PROBE)


def test_many_are_accepted_all_or_none(api: Api) -> None:
    api.jobq.tenants.quota("default", waiting=10)
    many = [{**PROBE, "spec": SPEC}] * 6
    api.jobq.enqueue_many(many)
    assert "6 more are asked for" in over(lambda: api.jobq.enqueue_many(many)).message
    assert len(api.jobq.enqueue_many(many[:4])) == 4


def test_other_processes_jobs_are_seen_when_it_counts_again(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    api.jobq.tenants.quota("default", waiting=3)
    api.jobq.enqueue(SPEC, **PROBE)
    with JobQ(settings=api.settings) as other:
        ids = other.enqueue_many([{**PROBE, "spec": SPEC}] * 2)
    api.jobq.enqueue(SPEC, **PROBE)  # counted a moment ago: a second process may pass the quota so far
    monkeypatch.setattr("jobq.quotas.COUNTED_EVERY", 0.0)
    api.jobq.quotas.forget("default")
    over(lambda: api.jobq.enqueue(SPEC, **PROBE))
    for job_id in ids:
        api.jobq.cancel(job_id)
    api.jobq.enqueue(SPEC, **PROBE)


def test_threads_of_a_process_do_not_pass_a_quota_together(api: Api) -> None:
    api.jobq.tenants.quota("default", waiting=5)
    api.jobq.quotas.of("default")
    refused: list[str] = []

    def ask() -> None:
        try:
            api.jobq.enqueue(SPEC, **PROBE)
        except TooMany as error:
            refused.append(error.code)

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(api.jobq.list().items), len(refused)) == (5, 7)


def test_too_many_running_jobs_close_the_door(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobq.quotas.COUNTED_EVERY", 0.0)
    api.jobq.tenants.quota("default", running=1)
    job = api.jobq.enqueue(SPEC, **PROBE)
    api.jobq.enqueue(SPEC, **PROBE)
    with api.jobq.database.begin() as conn:
        conn.exec_driver_sql(
            "UPDATE jobq_jobs SET status = 'RUNNING', reason = 'executing', worker_id = id WHERE id = ?", (job.id.hex,)
        )
    assert "has 1 jobs running, of 1" in over(lambda: api.jobq.enqueue(SPEC, **PROBE)).message


def test_slots_are_never_refused(api: Api) -> None:
    flow = api.jobq.create_workflow(SPEC, kind="HEARTBEAT", name="page", interval="PT1H")
    api.jobq.tenants.quota("default", waiting=0)
    over(lambda: api.jobq.trigger("page"))
    store = Store(api.jobq.database)
    store.due(flow, 1)
    store.materialize()
    (job,) = api.jobq.list(workflow_id=flow.id).items
    assert job.status is Status.PENDING


def test_children_of_a_sync_are_never_refused(tmp_path: Path) -> None:
    (tmp_path / "people.jsonl").write_text("".join(f'{{"id": "{number}"}}\n' for number in range(5)))
    with closing(sqlite3.connect(tmp_path / "crm.db")) as crm:
        crm.execute("CREATE TABLE people (id TEXT PRIMARY KEY)")
    target = {
        "name": "crm",
        "type": "sql",
        "config": {"url": f"sqlite:///{tmp_path}/crm.db", "table": "people", "key": "id"},
    }
    source = {"type": "jsonl", "config": {"path": f"{tmp_path}/people.jsonl"}}
    with running(Settings(policy=Policy(areas=[str(tmp_path)]), quota=Quota(waiting=1))) as jobq:
        sync = jobq.enqueue({"domain": "people", "source": source, "targets": [target]}, kind="SYNC")
        over(lambda: jobq.enqueue_many([{**PROBE, "spec": SPEC}] * 2))
        assert jobq.wait(sync.id, timeout=30).status is Status.COMPLETED
        assert jobq.fanout(sync.id).targets["crm"].success == 5


# --- schedules -----------------------------------------------------------------------------------------------------


def test_schedules_are_counted_where_a_workflow_gets_one(api: Api) -> None:
    jobq = api.jobq
    jobq.tenants.quota("default", schedules=1)
    page = {"kind": "HEARTBEAT", "spec": SPEC}
    jobq.create_workflow(**page, name="timed", interval="PT1H")
    jobq.create_workflow(**page, name="by hand")
    message = over(lambda: jobq.create_workflow(**page, name="second", cron="0 0 * * *")).message
    assert message == "The tenant 'default' has 1 workflows with a schedule, of 1 at most."
    over(lambda: jobq.update_workflow("by hand", interval="PT1H"))
    jobq.update_workflow("timed", interval="PT2H")
    answer = api.local.post("/v1/workflows", json={**page, "name": "third", "interval": "PT1H"})
    problem(answer, 429, "quota_exceeded")
    jobq.delete_workflow("timed")
    jobq.update_workflow("by hand", interval="PT1H")


# --- what operators set --------------------------------------------------------------------------------------------


def test_there_is_none_by_default_and_the_installation_may_have_one(api: Api, sqlite_url: str) -> None:
    assert set(api.jobq.quotas.of("default").model_dump().values()) == {None}
    settings = api.settings.model_copy(update={"quota": api.settings.quota.model_copy(update={"waiting": 1})})
    with JobQ(settings=settings) as jobq:
        jobq.enqueue(SPEC, **PROBE)
        over(lambda: jobq.enqueue(SPEC, **PROBE))
        assert jobq.tenants.quota("default", waiting=None).waiting is None
        jobq.enqueue(SPEC, **PROBE)
        assert jobq.tenants.quota("default", waiting="default").waiting == 1
        over(lambda: jobq.enqueue(SPEC, **PROBE))


def test_an_operator_sets_them_over_http_and_nobody_else(api: Api) -> None:
    operator, admin = api.holder("ops", operator=True), api.holder("acme")
    change = {"quota": {"waiting": 0, "rate": 5.5}}
    problem(admin.patch("/v1/tenants/acme", json=change), 403, "scope")
    assert operator.patch("/v1/tenants/acme", json=change).status_code == 204
    (acme,) = operator.get("/v1/tenants").json()["items"]
    assert acme["quota"] == {"waiting": 0, "running": None, "schedules": None, "rate": 5.5, "burst": None}
    problem(admin.post("/v1/jobs", json=HEARTBEAT), 429, "quota_exceeded")
    operator.patch("/v1/tenants/acme", json={"quota": {"waiting": None}})
    assert admin.post("/v1/jobs", json=HEARTBEAT).status_code == 201
    assert api.jobq.quotas.of("acme").rate == 5.5, "what is not named stays"


@pytest.mark.parametrize(
    ("field", "value"),
    [("waiting", -1), ("schedules", 1.5), ("rate", 0), ("rate", float("inf")), ("burst", 0), ("jobs", 1)],
)
def test_a_quota_that_makes_no_sense_is_refused(api: Api, field: str, value: float) -> None:
    with pytest.raises(InvalidInput) as refused:
        api.jobq.tenants.quota("default", **{field: value})
    assert refused.value.pointer == f"/{field}"


# --- rates ---------------------------------------------------------------------------------------------------------


def test_a_bucket_lets_a_burst_through_and_then_its_rate() -> None:
    bucket = Bucket(rate=2.0, size=3, level=3.0, filled_at=100.0)
    assert [bucket.take(100.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    assert [bucket.take(100.5), bucket.take(100.5)] == [0.0, 0.5]
    assert [bucket.take(1000.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5], "it holds no more than its size"


def fields(answer: Any) -> tuple[str, str]:
    return answer.headers["ratelimit-policy"], answer.headers["ratelimit"]


def test_a_tenant_that_asks_too_often_is_told_when_to_come_again(api: Api) -> None:
    api.jobq.tenants.quota("acme", rate=0.1, burst=3)
    one, other = api.holder("acme"), api.holder("acme", "read")
    answers = [who.get("/v1/jobs") for who in (one, other, one)]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert [fields(answer) for answer in answers] == [
        ('"tenant";q=3;w=30', '"tenant";r=2;t=10'),
        ('"tenant";q=3;w=30', '"tenant";r=1;t=20'),
        ('"tenant";q=3;w=30', '"tenant";r=0;t=30'),
    ]
    for who in (one, other):
        answer = who.post("/v1/jobs", json=HEARTBEAT)
        problem(answer, 429, "rate_limited")
        assert 9 <= int(answer.headers["retry-after"]) <= 10
        assert fields(answer)[1].startswith('"tenant";r=0;')
    assert api.jobq.acting("acme", "test").list().items == []


def test_who_has_no_rate_is_not_told_of_one(api: Api) -> None:
    api.jobq.tenants.quota("acme", rate=0.1, burst=1)
    operator: TestClient = api.holder("ops", operator=True)
    for who, headers in ((api.holder("umbrella"), {}), (operator, {"X-Jobq-Tenant": "acme"})):
        for _ in range(3):
            answer = who.get("/v1/jobs", headers=headers)
            assert (answer.status_code, "ratelimit" in answer.headers) == (200, False)
