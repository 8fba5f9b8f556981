"""Application code does not see whether its JobQ asks a database or an HTTP API: one suite for both."""

import inspect
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from jobq import Container, Cron, Definition, Every, Heartbeat, Job, JobQ, JobRequest, Settings, Status
from jobq.api.server import Address, Server
from jobq.connections import Connector
from jobq.errors import Conflict, Forbidden, InvalidInput, JobQError, Misconfigured, NotFound, Unauthorized, Unavailable
from jobq.models import Outcome, WorkflowStatus
from jobq.remote.client import RemoteJobQ
from jobq.retry import RetryPolicy
from jobq.states import Reason
from jobq.store import artifacts, logs
from jobq.store.jobs import new_id
from jobq.store.logs import Chunk
from tests.api import SECRET_KEY
from tests.stores import Store, ended

PAGE = Heartbeat(endpoint="https://example.org/")
ASKED = {"kind": "HEARTBEAT", "spec": {"endpoint": "https://example.org/"}}
NOBODY = UUID("01900000-0000-7000-8000-000000000000")


@dataclass
class Site:
    """An installation with an API. Each test has a tenant of its own there."""

    store: Store
    owner: JobQ
    server: Server
    key: str

    def door(self, kind: str, tenant: str) -> JobQ:
        if kind == "direct":
            return JobQ(tenant=tenant, settings=self.owner.settings)
        return JobQ(self.server.address.url, tenant=tenant, api_key=self.key, settings=Settings())

    def end(self, job: Job, outcome: Outcome | None = None) -> None:
        """As a worker would."""
        worker = self.store.worker({job.queue: 1000})
        self.store.promote()
        for claimed in self.store.claim(worker, [job.id], job.queue):
            self.store.record(worker, ended(claimed, outcome))

    def write(self, job: Job, texts: list[str], stream: str = "stdout") -> None:
        body = [(1_700_000_000_000_000 + number, stream, text) for number, text in enumerate(texts)]
        self.store.do(logs.append, [Chunk(job.id, 1, 1, 10 * len(body), body)])


@pytest.fixture(scope="module")
def site(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    file = shutil.copy(sqlite_template, tmp_path_factory.mktemp("site") / "jobq.sqlite3")
    settings = Settings(database_url=f"sqlite:///{file}", secret_key=SECRET_KEY)
    with JobQ(settings=settings) as owner:
        key = owner.keys.create("operator", "admin", operator=True).key
        server = Server(settings, Address(port=0), owner)
        server.start()
        yield Site(Store(owner.database), owner, server, key)
        server.stop()


@pytest.fixture(params=["direct", "remote"])
def jobq(site: Site, request: pytest.FixtureRequest) -> Iterator[JobQ]:
    with site.door(request.param, f"tenant-{new_id().hex}") as jobq:
        yield jobq


# --- the same methods ------------------------------------------------------------------------------------------------


def public(thing: object) -> set[str]:
    return {name for name in dir(thing) if not name.startswith("_")}


def shape(method: Any) -> list[tuple[str, Any, Any]]:
    return [(each.name, each.kind, each.default) for each in inspect.signature(method).parameters.values()]


def groups() -> list[str]:
    """The attributes of a JobQ that have methods of their own."""
    found = [name for name in dir(JobQ) if isinstance(inspect.getattr_static(JobQ, name), cached_property)]
    return [name for name in found if name not in {"database", "quotas"}]


def compare(direct: object, remote: object, what: str) -> None:
    missing = sorted(public(direct) - public(remote))
    assert not missing, f"over HTTP, {what} lacks {', '.join(missing)}: add it to jobq/remote/ (and a route for it)"
    assert public(remote) <= public(direct), f"over HTTP, {what} has more than here"
    for name in public(direct):
        if inspect.isfunction(inspect.getattr_static(type(direct), name, None)):
            here, there = shape(getattr(direct, name)), shape(getattr(remote, name))
            assert here == there, f"{what}.{name} takes other arguments over HTTP: {here} and {there}"


def test_over_http_a_jobq_has_the_same_methods(site: Site) -> None:
    with site.door("direct", "default") as direct, site.door("remote", "default") as remote:
        assert type(remote) is RemoteJobQ
        assert isinstance(remote, JobQ)
        vars(direct).pop("database", None)
        known = public(RemoteJobQ) | {"settings", "tenant", "actor"}
        missing = sorted(public(JobQ) - known)
        assert not missing, f"RemoteJobQ lacks {', '.join(missing)}: add a twin to jobq/remote/ (and a route for it)"
        assert len(groups()) >= 7
        for name in groups():
            compare(getattr(direct, name), getattr(remote, name), f"JobQ.{name}")
        for name in public(JobQ):
            if inspect.isfunction(inspect.getattr_static(JobQ, name)):
                assert shape(getattr(JobQ, name)) == shape(getattr(RemoteJobQ, name)), f"JobQ.{name}"
        assert shape(JobQ.__init__) == shape(RemoteJobQ.__init__)


# --- jobs --------------------------------------------------------------------------------------------------------------


def test_a_job_is_enqueued_and_looked_at(jobq: JobQ, site: Site) -> None:
    job = jobq.enqueue(
        PAGE, name="front page ✓", priority=9, timeout=timedelta(seconds=5), state={"n": [1, None, "\u2028"]},
        retry=RetryPolicy(max_attempts=2, initial=timedelta(seconds=3)), stale_after=None,
    )  # fmt: skip
    assert jobq.get(job.id) == job == site.owner.acting(jobq.tenant, "t").get(job.id)
    assert (job.kind, job.priority, job.timeout, job.max_attempts) == ("HEARTBEAT", 9, 5.0, 2)
    assert jobq.spec(job.id) == site.owner.acting(jobq.tenant, "t").spec(job.id)
    assert jobq.details(job.id)["state"] == {"n": [1, None, "\u2028"]}
    assert "no live worker" in jobq.why(job.id)
    assert jobq.attempts(job.id) == jobq.artifacts(job.id) == jobq.problems(job.id) == []
    assert jobq.children(job.id).items == jobq.exports(job.id).items == []
    assert jobq.fanout(job.id).total == 0


def test_a_job_is_described_in_each_way_that_python_has(jobq: JobQ) -> None:
    later = datetime.now(UTC) + timedelta(hours=1)
    first = jobq.enqueue({"endpoint": "https://example.org/"}, kind="HEARTBEAT", scheduled_at=later)
    assert (first.scheduled_at, first.reason) == (later, Reason.SCHEDULED)
    second = jobq.enqueue(Container(image="alpine", command=["true"], memory="64MB"), after=first.id)
    assert (second.kind, second.reason) == ("CONTAINER", Reason.BLOCKED)
    assert jobq.spec(second.id)["memory"] == jobq.spec(jobq.submit(JobRequest(spec=Container(image="a", memory="64MB"))).id)["memory"]  # fmt: skip
    twin = [jobq.enqueue(PAGE, dedupe_key="one") for _ in range(2)][1]
    assert (twin.status, twin.reason) == (Status.CANCELED, Reason.DUPLICATE)


@pytest.mark.parametrize(
    ("fields", "error", "code", "pointer"),
    [
        ({"prioritty": 1}, InvalidInput, "validation_error", "/prioritty"),
        ({"priority": 10}, InvalidInput, "validation_error", "/priority"),
        ({"timeout": 0}, InvalidInput, "invalid_timeout", "/timeout"),
        ({"scheduled_at": "2999-01-01T00:00:00Z"}, InvalidInput, "invalid_schedule", "/scheduled_at"),
        ({"kind": "NOTHING"}, InvalidInput, "validation_error", "/kind"),
        ({"state": {"a": float("nan")}}, InvalidInput, "invalid_json", "/state/a"),
        ({"state": object()}, InvalidInput, "validation_error", "/state"),
        ({"spec": {"endpoint": "http://169.254.169.254/"}}, InvalidInput, "target_blocked", "/spec/endpoint"),
        ({"kind": "CONTAINER", "spec": {"image": "a", "privileged": True}}, Forbidden, "forbidden_option", "/spec/privileged"),
        ({"after": [NOBODY]}, NotFound, "not_found", "/after"),
    ],
)  # fmt: skip
def test_a_mistake_raises_the_same_error(
    jobq: JobQ, fields: dict[str, Any], error: type[JobQError], code: str, pointer: str
) -> None:
    with pytest.raises(error) as refused:
        jobq.enqueue(**{**ASKED, **fields})
    assert (refused.value.code, refused.value.pointer, refused.value.message[-1]) == (code, pointer, ".")
    assert jobq.list().items == []


def test_an_error_tells_what_to_do(jobq: JobQ) -> None:
    with pytest.raises(InvalidInput) as refused:
        jobq.enqueue(PAGE, timeout="forever")
    assert refused.value.hint


def test_listings_are_narrowed_and_paged(jobq: JobQ) -> None:
    made = [jobq.enqueue(PAGE, name=f"job {number}", queue=f"q{number % 2}").id for number in range(7)]
    jobq.cancel(made[3])
    assert [job.id for job in jobq.list().items] == made[::-1]
    only = {"statuses": frozenset({Status.CANCELED, Status.PENDING}), "queues": frozenset({"q1"})}
    assert [job.id for job in jobq.list(**only).items] == [made[5], made[3], made[1]]
    assert [job.id for job in jobq.list(name_contains="b 4", kinds=frozenset({"HEARTBEAT"})).items] == [made[4]]
    since = datetime.now(UTC) - timedelta(minutes=5)
    assert [job.id for job in jobq.list(finished_from=since, reasons=frozenset({Reason.BY_USER})).items] == [made[3]]
    seen, cursor = [], None
    while page := jobq.list(limit=3, cursor=cursor):
        seen += [job.id for job in page.items]
        if (cursor := page.next_cursor) is None:
            break
    assert seen == made[::-1]
    for wrong in ({"limit": 0}, {"limit": 201}, {"cursor": "AAAA"}):
        with pytest.raises(InvalidInput):
            jobq.list(**wrong)


def test_what_is_not_there_is_not_found(jobq: JobQ, site: Site) -> None:
    theirs = site.owner.acting("somebody", "t").enqueue(PAGE).id
    for job_id in (NOBODY, theirs):
        for ask in (
            jobq.get, jobq.spec, jobq.attempts, jobq.timeline, jobq.artifacts, jobq.why, jobq.wait, jobq.children,
            jobq.fanout, jobq.exports, jobq.problems, jobq.details, jobq.cancel, jobq.pause, jobq.resume, jobq.retry,
            jobq.log_page, lambda job_id: list(jobq.logs(job_id)), lambda job_id: list(jobq.logs(job_id, follow=True)),
            lambda job_id: jobq.artifact(job_id, "a/b"),
        ):  # fmt: skip
            with pytest.raises(NotFound) as refused:
                ask(job_id)
            assert refused.value.code == "not_found"


def test_a_job_is_paused_resumed_canceled_and_retried(jobq: JobQ) -> None:
    job = jobq.enqueue(PAGE)
    assert jobq.pause(job.id).reason is Reason.PAUSED
    assert jobq.resume(job.id).reason is Reason.READY
    with pytest.raises(Conflict, match="has not ended"):
        jobq.retry(job.id)
    assert jobq.cancel(job.id, force=True).status is Status.CANCELED
    with pytest.raises(Conflict) as refused:
        jobq.cancel(job.id)
    assert refused.value.code == "already_finished"
    again = jobq.retry(job.id, idempotency_key="again")
    assert (again.retry_of, jobq.retry(job.id, idempotency_key="again").id) == (job.id, again.id)
    assert jobq.retry(job.id).id != again.id
    assert next(event.what for event in jobq.timeline(job.id)) == "created"
    assert all(event.at.tzinfo for event in jobq.timeline(job.id))


def test_a_wait_ends_with_the_job_or_with_its_timeout(jobq: JobQ, site: Site) -> None:
    job = jobq.enqueue(PAGE)
    with pytest.raises(Unavailable) as late:
        jobq.wait(job.id, timeout=0.05)
    assert late.value.code == "wait_timeout"
    site.end(job, Outcome.succeeded({"a": 1}, usage={"memory_bytes": 7}))
    assert jobq.wait(job.id, timeout=5).status is Status.COMPLETED
    (attempt,) = jobq.attempts(job.id)
    assert (attempt.result, attempt.usage) == ({"a": 1}, {"memory_bytes": 7})
    assert [attempt] == site.owner.acting(jobq.tenant, "t").attempts(job.id)


def test_logs_are_paged_searched_and_followed(jobq: JobQ, site: Site) -> None:
    job = jobq.enqueue(PAGE)
    texts = [f"line {number}" for number in range(1, 2400)] + ["\u2028 \x85 \r data: x", ""]
    site.write(job, texts)
    assert [line.text for line in jobq.logs(job.id)] == texts
    assert [line.number for line in jobq.log_page(job.id, after=1200, limit=2)] == [1201, 1202]
    assert [line.text for line in jobq.log_page(job.id, text="line 77", stream="stdout", limit=1)] == ["line 77"]
    assert jobq.log_page(job.id, stream="stderr") == []
    with pytest.raises(InvalidInput):
        jobq.log_page(job.id, limit=0)
    following = jobq.logs(job.id, after=2390, follow=True)
    first = next(following)
    site.end(job)
    assert [line.text for line in (first, *following)] == texts[2390:]


def test_artifacts_are_listed_and_read(jobq: JobQ, site: Site) -> None:
    job = jobq.enqueue(PAGE)
    with site.owner.database.begin() as conn:
        conn.execute(
            artifacts.artifacts.insert().values(
                job_id=job.id, attempt=1, name="out/ä b.bin", size=3, sha256="0" * 64, content=b"\x00\xff\n"
            )
        )
    (found,) = jobq.artifacts(job.id)
    assert (found.name, found.size) == ("out/ä b.bin", 3)
    assert jobq.artifact(job.id, found.name) == b"\x00\xff\n"


# --- once, and many ----------------------------------------------------------------------------------------------------


def test_a_repeated_key_makes_one_job(jobq: JobQ) -> None:
    first, second = (jobq.enqueue(PAGE, idempotency_key="once") for _ in range(2))
    assert first.id == second.id
    with pytest.raises(Conflict) as refused:
        jobq.enqueue(PAGE, idempotency_key="once", priority=9)
    assert refused.value.code == "idempotency_conflict"
    assert jobq.enqueue(PAGE).id != jobq.enqueue(PAGE).id


def test_many_are_enqueued_in_their_order_all_or_none(jobq: JobQ) -> None:
    ids = jobq.enqueue_many({"spec": PAGE, "name": f"job {number}"} for number in range(300))
    assert [jobq.get(job_id).name for job_id in (ids[0], ids[150], ids[299])] == ["job 0", "job 150", "job 299"]
    assert len(set(ids)) == 300
    with pytest.raises(InvalidInput) as refused:
        jobq.enqueue_many([ASKED, JobRequest(kind="HEARTBEAT", spec={"endpoint": "ftp://example.org/"})])
    assert (refused.value.code, refused.value.pointer) == ("invalid_url", "/1/spec/endpoint")
    assert refused.value.message.startswith("Request 1: ")
    with pytest.raises(InvalidInput) as unknown:
        jobq.enqueue_many([ASKED, {**ASKED, "color": 1}])
    assert unknown.value.pointer == "/1/color"
    with pytest.raises(InvalidInput, match="takes no idempotency_key"):
        jobq.enqueue_many([{**ASKED, "idempotency_key": "k"}])
    assert jobq.enqueue_many([]) == []
    assert len(jobq.list(limit=200).items) == 200


def test_many_with_a_key_are_made_once(jobq: JobQ) -> None:
    asked = [{**ASKED, "name": f"job {number}", "dedupe_key": f"{number % 2}"} for number in range(3)]
    first, second = (jobq.enqueue_many(asked, idempotency_key="all") for _ in range(2))
    assert first == second
    assert [job.id for job in jobq.list().items] == first[::-1]
    with pytest.raises(Conflict):
        jobq.enqueue_many(asked[:2], idempotency_key="all")


# --- workflows -----------------------------------------------------------------------------------------------------------


def test_the_life_of_a_workflow(jobq: JobQ, site: Site) -> None:
    flow = jobq.create_workflow(PAGE, name="a/b ?#%", schedule=Every(minutes=5), retention=timedelta(days=1))
    assert flow == jobq.get_workflow("a/b ?#%") == jobq.get_workflow(flow.id)
    assert flow == site.owner.acting(jobq.tenant, "t").get_workflow(flow.id)
    changed = jobq.update_workflow("a/b ?#%", schedule=Cron("0 3 * * *", "Europe/Berlin"), timeout=timedelta(seconds=9))
    assert (changed.interval, changed.cron, changed.timezone, changed.generation) == (
        None,
        "0 3 * * *",
        "Europe/Berlin",
        2,
    )
    assert changed.timeout == timedelta(seconds=9)
    assert len(jobq.preview(flow.id, 3)) == 3
    assert jobq.pause_workflow("a/b ?#%").status is WorkflowStatus.PAUSED
    assert jobq.resume_workflow(flow.id).status is WorkflowStatus.ACTIVE
    job = jobq.trigger("a/b ?#%", state=[1], idempotency_key="one")
    assert (job.workflow_id, jobq.trigger(flow.id, state=[1], idempotency_key="one").id) == (flow.id, job.id)
    assert [each.id for each in jobq.list(workflow_id=flow.id).items] == [job.id]
    assert jobq.terminate_workflow(flow.id).status is WorkflowStatus.TERMINATED
    with pytest.raises(Conflict) as refused:
        jobq.delete_workflow(flow.id)
    assert refused.value.code == "has_live_jobs"
    jobq.cancel(job.id)
    jobq.delete_workflow("a/b ?#%")
    for workflow in ("a/b ?#%", flow.id, "x" * 300):
        with pytest.raises(NotFound):
            jobq.get_workflow(workflow)


def test_workflows_are_applied_all_or_none(jobq: JobQ) -> None:
    one = Definition(kind="HEARTBEAT", spec=PAGE, name="one", interval="PT5M")
    two = Definition(kind="HEARTBEAT", spec=ASKED["spec"], name="two", cron="0 3 * * *", timezone="Europe/Berlin")
    done = jobq.apply([one, two])
    assert [(each.workflow.name, each.what) for each in done] == [("one", "created"), ("two", "created")]
    assert [each.what for each in jobq.apply([two, one])] == ["unchanged", "unchanged"]
    bad = Definition(kind="HEARTBEAT", spec={"endpoint": "ftp://x.example/"}, name="three")
    with pytest.raises(InvalidInput) as refused:
        jobq.apply([one.model_copy(update={"interval": timedelta(minutes=9)}), bad])
    assert refused.value.pointer == "/1/spec/endpoint"
    with pytest.raises(InvalidInput) as nameless:
        jobq.apply([Definition(kind="HEARTBEAT", spec=PAGE)])
    assert nameless.value.pointer == "/0/name"
    assert [flow.generation for flow in jobq.list_workflows().items] == [1, 1]
    assert [flow.name for flow in jobq.list_workflows(name="two", status=WorkflowStatus.ACTIVE).items] == ["two"]
    page = jobq.list_workflows(limit=1)
    assert [flow.name for flow in jobq.list_workflows(limit=1, cursor=page.next_cursor).items] == ["two"]
    with pytest.raises(Conflict) as taken:
        jobq.create_workflow(PAGE, name="one")
    assert taken.value.code == "name_taken"
    with pytest.raises(InvalidInput) as wrong:
        jobq.update_workflow("one", prioritty=1)
    assert wrong.value.pointer == "/prioritty"


# --- what tenants and operators keep -------------------------------------------------------------------------------------


def test_secrets_and_connectors_are_kept(jobq: JobQ) -> None:
    jobq.secrets.set("token.a-b_c", "s3cr3t")
    ((name, at),) = jobq.secrets.list()
    assert (name, at.tzinfo is not None) == ("token.a-b_c", True)
    jobq.secrets.remove(name)
    with pytest.raises(NotFound):
        jobq.secrets.remove(name)
    crm = Connector(name="crm", type="http", config={"url": "https://crm.example"})
    assert [each.what for each in jobq.connectors.apply([crm])] == ["created"]
    assert [each.what for each in jobq.connectors.apply([crm])] == ["unchanged"]
    assert jobq.connectors.put(name="crm", type="http", config={"url": "https://b.example"}) == jobq.connectors.get(
        "crm"
    )
    with pytest.raises(InvalidInput) as refused:
        jobq.connectors.put(name="crm", type="http", config={"url": "https://b.example", "token": "clear"})
    assert refused.value.code == "secret_in_config"
    assert len(jobq.connectors.list()) == 1
    jobq.connectors.remove("crm")
    with pytest.raises(NotFound):
        jobq.connectors.get("crm")
    assert jobq.sync_states.list() == []
    for ask in (jobq.sync_states.get, jobq.sync_states.reset):
        with pytest.raises(NotFound):
            ask("people/all")


def test_operators_limit_pause_and_drain(jobq: JobQ, site: Site) -> None:
    queue, tenant = f"q{new_id().hex}", f"t/{new_id().hex} x"
    jobq.queues.pause(queue)
    jobq.queues.limit(queue, 5)
    (found,) = [each for each in jobq.queues.list() if each.name == queue]
    assert (found.paused, found.limit) == (True, 5)
    jobq.queues.resume(queue)
    jobq.queues.limit(queue, None)
    jobq.tenants.weight(tenant, 2.5)
    jobq.tenants.limit(tenant, 7)
    assert [(each.weight, each.limit) for each in jobq.tenants.list() if each.name == tenant] == [(2.5, 7)]
    for mistake in (
        lambda: jobq.queues.limit(queue, 0),
        lambda: jobq.tenants.limit(tenant, 2**40),
        lambda: jobq.tenants.weight(tenant, 0),
    ):
        with pytest.raises(InvalidInput):
            mistake()
    worker = site.store.worker()
    jobq.workers.drain(worker)
    assert [each.state for each in jobq.workers.list() if each.id == worker] == ["draining"]
    assert len(jobq.workers.list(everything=True)) >= len(jobq.workers.list())
    with pytest.raises(NotFound):
        jobq.workers.drain(NOBODY)


def test_keys_are_made_listed_and_revoked(jobq: JobQ) -> None:
    made = jobq.keys.create("deploy", "run", expires_in=timedelta(days=1))
    assert made.key.startswith(made.stored.start)
    assert jobq.keys.list() == [made.stored]
    assert made.stored in jobq.keys.list(everything=True)
    assert jobq.keys.revoke(made.stored.id).revoked_at is not None
    with pytest.raises(InvalidInput) as refused:
        jobq.keys.create("x", "god")
    assert refused.value.pointer == "/scope"


def test_hooks_quotas_and_the_audit(jobq: JobQ) -> None:
    flow = jobq.create_workflow(PAGE, name="page")
    made = jobq.hooks.create("page", "github", signature="hub", rate_limit=5)
    assert jobq.hooks.list(flow.id) == [made.stored]
    assert made.path == f"/v1/hooks/{made.token}"
    assert jobq.hooks.revoke("page", made.stored.id).id == made.stored.id
    assert jobq.tenants.quota(jobq.tenant, waiting=7, rate=2.5).waiting == 7
    done = [event.action for event in jobq.audit(limit=20).items]
    assert {"create", "revoke"} <= set(done)
    assert jobq.audit(action="revoke").items[0].action == "revoke"


def test_webhooks_are_made_changed_tested_and_removed(jobq: JobQ, site: Site) -> None:
    made = jobq.webhooks.create(url="https://example.org/hooks", name="ends / ?#%", events=["job.completed"])
    assert made.secret.startswith("whsec_")
    assert jobq.webhooks.list() == [made.endpoint] == [jobq.webhooks.get("ends / ?#%")]
    changed = jobq.webhooks.update("ends / ?#%", events=["job.*"], children=True, enabled=False)
    assert (changed.events, changed.children, changed.enabled) == (["job.*"], True, False)
    with pytest.raises(Conflict) as disabled:
        jobq.webhooks.test(made.endpoint.id)
    assert disabled.value.code == "webhook_disabled"
    assert jobq.webhooks.enable(made.endpoint.id).enabled
    again = jobq.webhooks.rotate("ends / ?#%", overlap=timedelta(hours=1))
    assert (again.secret != made.secret, again.endpoint.secrets) == (True, 2)
    known = "whsec_" + "QUJD" * 8
    assert jobq.webhooks.rotate(made.endpoint.id, overlap=0, secret=known).secret == known
    assert jobq.webhooks.get(made.endpoint.id) == site.owner.acting(jobq.tenant, "t").webhooks.get(made.endpoint.id)
    jobq.webhooks.delete("ends / ?#%")
    for webhook in ("ends / ?#%", made.endpoint.id):
        for ask in (
            jobq.webhooks.get, jobq.webhooks.enable, jobq.webhooks.delete, jobq.webhooks.rotate, jobq.webhooks.test,
            jobq.webhooks.deliveries, lambda webhook: jobq.webhooks.replay(webhook, 1),
            lambda webhook: jobq.webhooks.replay_failed(webhook, datetime.now(UTC)),
        ):  # fmt: skip
            with pytest.raises(NotFound):
                ask(webhook)


def test_what_was_delivered_is_listed_and_replayed(jobq: JobQ) -> None:
    hook = jobq.webhooks.create(url="https://example.org/hooks", name="all").endpoint
    first, second = (jobq.enqueue(PAGE, webhook={"endpoint": "all"}) for _ in range(2))
    tried = jobq.webhooks.test("all")
    assert (tried.type, tried.state) == ("webhook.test", "PENDING")
    found = jobq.webhooks.deliveries("all")
    assert [each.job_id for each in found.items] == [tried.job_id, second.id, first.id]
    assert jobq.webhooks.delivery("all", found.items[1].id) == found.items[1]
    only = jobq.webhooks.deliveries(hook.id, state="PENDING", type="job.created", job_id=first.id)
    assert only.items == found.items[2:]
    page = jobq.webhooks.deliveries("all", limit=2)
    assert jobq.webhooks.deliveries("all", limit=2, cursor=page.next_cursor).items == found.items[2:]
    assert jobq.webhooks.replay("all", found.items[2].id).id == found.items[2].id
    assert jobq.webhooks.replay_failed("all", datetime.now(UTC) - timedelta(hours=1)) == 0
    with pytest.raises(NotFound):
        jobq.webhooks.replay("all", 10**9)
    with pytest.raises(InvalidInput) as vague:
        jobq.webhooks.replay_failed("all", "yesterday")
    assert vague.value.pointer == "/failed_since"


@pytest.mark.parametrize(
    ("fields", "code", "pointer"),
    [
        ({"url": "http://169.254.169.254/"}, "target_blocked", "/url"),
        ({"events": ["job.finished"]}, "unknown_event", "/events/0"),
        ({"secret": "hunter2"}, "validation_error", "/secret"),
        ({"urll": "x"}, "validation_error", "/urll"),
    ],
)
def test_a_mistake_in_a_webhook_raises_the_same_error(
    jobq: JobQ, fields: dict[str, Any], code: str, pointer: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        jobq.webhooks.create(**{"url": "https://example.org/", **fields})
    assert (refused.value.code, refused.value.pointer) == (code, pointer)
    assert jobq.webhooks.list() == []


def test_jobs_are_counted_and_added_up(jobq: JobQ, site: Site) -> None:
    made = [jobq.enqueue(PAGE, name=f"job {number}") for number in range(4)]
    jobq.cancel(made[0].id)
    site.end(made[1], Outcome.succeeded(None))
    assert (jobq.count().count, jobq.count().exact) == (4, True)
    assert jobq.count(statuses=frozenset({Status.CANCELED, Status.COMPLETED}), name_contains="job").count == 2
    until = datetime.now(UTC) + timedelta(hours=1)
    asked: dict[str, Any] = {"since": until - timedelta(hours=5), "until": until, "bucket": "hour", "group_by": "kind"}
    trend = jobq.analytics(**asked, kinds=["HEARTBEAT", "NOOP"], queues=("heartbeat",), timezone="UTC")
    (point,) = trend.items
    assert (point.kind, point.statuses[Status.COMPLETED], point.reasons[Reason.BY_USER]) == ("HEARTBEAT", 1, 1)
    assert trend == site.owner.acting(jobq.tenant, "t").analytics(**asked)
    assert jobq.analytics(**asked, kinds=["NOOP"]).items == []
    for wrong, pointer in (
        ({"timezone": "Mars"}, "/timezone"),
        ({"limit": 0}, "/limit"),
        ({"bucket": "age"}, "/bucket"),
    ):
        with pytest.raises(InvalidInput) as refused:
            jobq.analytics(**{**asked, **wrong})
        assert refused.value.pointer == pointer


def test_what_its_retention_has_outlived_is_deleted(jobq: JobQ) -> None:
    assert jobq.prune("P3650D") == jobq.prune(timedelta(days=3650)) == jobq.prune(3650 * 86400) == 0
    with pytest.raises(InvalidInput) as refused:
        jobq.prune("soon")
    assert refused.value.pointer == "/older_than"


# --- what is different ---------------------------------------------------------------------------------------------------


def test_over_http_no_transaction_can_be_joined_and_there_is_no_database(site: Site) -> None:
    with site.door("remote", "default") as jobq:
        for ask in (
            lambda: jobq.enqueue(PAGE, connection=object()),  # type: ignore[arg-type]
            lambda: jobq.enqueue_many([ASKED], connection=object()),  # type: ignore[arg-type]
            lambda: jobq.trigger("x", connection=object()),  # type: ignore[arg-type]
        ):
            with pytest.raises(InvalidInput, match="cannot join") as refused:
                ask()
            assert refused.value.code == "needs_database"
        with pytest.raises(Misconfigured) as missing:
            _ = jobq.database
        assert missing.value.code == "needs_database"


def test_a_key_is_bound_to_its_tenant(site: Site) -> None:
    key = site.owner.acting("acme", "t").keys.create("acme's", "run").key
    with JobQ(site.server.address.url, api_key=key, settings=Settings()) as jobq:
        assert jobq.enqueue(PAGE).tenant == "acme"
        with pytest.raises(Forbidden):
            jobq.queues.pause("heartbeat")
        with pytest.raises(Forbidden):
            jobq.acting("umbrella", "t").list()
    for wrong in ("jobq_" + "A" * 43, ""):
        with JobQ(site.server.address.url, api_key=wrong, settings=Settings()) as nobody, pytest.raises(Unauthorized):
            nobody.list()
    with pytest.raises(InvalidInput, match="for the address of an API"):
        JobQ("sqlite:////tmp/x.db", api_key="k", settings=Settings())
