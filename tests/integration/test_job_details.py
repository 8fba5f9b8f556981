"""job_details of jobs that really ran: every key is there for every kind, with what really happened."""

import json
import socket
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from jobq import Every, JobQ, Settings
from jobq.connections import Connector
from jobq.errors import InvalidInput, NotFound
from jobq.models import Job
from jobq.settings import Policy
from jobq.specs import MiB
from jobq.states import Status
from jobq.store.entities import set_state
from jobq.testing import running
from tests.command import Command
from tests.peers import HttpPeer
from tests.services import Docker, wait_until

Details = dict[str, Any]

KEYS = [
    "job_id", "env_id", "flow_id", "job_name", "tenant", "started_by", "s3_root", "start_time", "state", "tap", "target",
    "connector_id", "job_type", "status", "reason", "platform_status", "scheduled_job", "sync_type",
    "override_start_date", "message", "task_id", "task_type", "task_definition", "last_updated", "metrics", "error",
    "data_sizes", "resources_usage",
]  # fmt: skip
NOTHING = {"success": 0, "fail": 0, "existing": 0, "updated": 0}


@pytest.fixture
def area(tmp_path: Path) -> Path:
    """A folder with five customers, one of them without a number for its age, and tables that refuse old ones."""
    folder = tmp_path / "area"
    folder.mkdir()
    ages = ["30", "40", "500", "seven", "20"]
    customers = [{"id": number, "name": f"c{number}", "age": age} for number, age in enumerate(ages)]
    (folder / "customers.jsonl").write_text("".join(json.dumps(one) + "\n" for one in customers))
    crm = sqlite3.connect(folder / "crm.db")
    for table in ("crm", "erp"):
        crm.execute(f"create table {table} (id text primary key, name text, age integer check (age < 150))")
    crm.close()
    return folder


@pytest.fixture
def jobq(area: Path) -> Iterator[JobQ]:
    policy = Policy(areas=[str(area)], probe_networks=["127.0.0.0/8"])
    with running(Settings(plugins=["tests.plugins:NoopExecutor"], env_id="prod", tenant="acme", policy=policy)) as jobq:
        yield jobq


def table(area: Path, name: str) -> Details:
    return {"name": name, "type": "sql", "config": {"url": f"sqlite:///{area}/crm.db", "table": name, "key": "id"}}


def customers(area: Path, **changes: Any) -> Details:
    """0 goes to the first target only, 1 to both, 2 is refused by the first, 3 cannot be mapped, 4 is filtered."""
    return {
        "domain": "customers",
        "source": {"type": "jsonl", "config": {"path": f"{area}/customers.jsonl"}},
        "conditions": ["id != `4`"],
        "mapping": {"id": {"path": "id", "type": "string"}, "name": "name", "age": {"path": "age", "type": "integer"}},
        "targets": [table(area, "crm"), {**table(area, "erp"), "conditions": ["age > `35`"], "after": ["crm"]}],
        "mode": "incremental",
        **changes,
    }


def ran(jobq: JobQ, spec: Details, **request: Any) -> Job:
    return jobq.wait(jobq.enqueue(spec, **request).id, timeout=30)


def details_of(jobq: JobQ, job: Job, **asked: Any) -> Details:
    """The document, as whoever gets it reads it."""
    details = jobq.details(job.id, **asked)
    assert list(details) == KEYS
    assert json.loads(json.dumps(details)) == details
    assert (details["job_id"], details["env_id"], details["tenant"]) == (str(job.id), "prod", "acme")
    assert details["s3_root"] == f"jobq://prod/acme/{job.id}/"
    return details


def picked(details: Details, *names: str) -> tuple[Any, ...]:
    return tuple(details[name] for name in names)


# --- a SYNC and its children -----------------------------------------------------------------------------------------


def test_a_sync_tells_what_it_read_and_what_became_of_it(jobq: JobQ, area: Path) -> None:
    before = datetime.now(UTC)
    job = ran(jobq, customers(area), kind="SYNC", name="nightly")
    details = details_of(jobq, job)

    assert picked(details, "flow_id", "job_name", "started_by", "scheduled_job") == (
        None,
        "nightly",
        "application",
        False,
    )
    began, updated = (datetime.fromisoformat(details[name]) for name in ("start_time", "last_updated"))
    assert before.replace(microsecond=0) <= began < updated <= datetime.now(UTC)
    assert details["state"] == jobq.sync_states.get("customers").state
    assert list(details["state"]) == [f"{area}/customers.jsonl"]
    assert picked(details, "tap", "target", "connector_id") == ("jsonl", ["crm", "erp"], None)
    assert picked(details, "job_type", "sync_type", "override_start_date") == ("READ", "incremental_sync", None)
    assert picked(details, "status", "reason", "platform_status") == ("FAILED", "partial", "failed")
    assert picked(details, "task_id", "task_type") == (f"{job.id}-1", "sync")
    assert details["task_definition"] == {"memory": None, "cpus": None, "host": socket.gethostname(), "slots": 16}
    cause = "1 of 5 entities could not be used, 1 of 6 replications failed, 1 of 6 replications were canceled"
    assert details["message"] == cause
    assert details["error"] == {"class": "partial", "reason": "partial", "message": cause, "exit_code": None}
    assert details["data_sizes"]["total"] == details["data_sizes"]["log"] > 0
    assert details["resources_usage"] == {"cpu": None, "memory": None}


def test_the_metrics_of_a_sync_add_up(jobq: JobQ, area: Path) -> None:
    metrics = details_of(jobq, ran(jobq, customers(area), kind="SYNC"))["metrics"]

    assert metrics["recordCount"] == {"customers": 5}
    seen = {"new": 3, "updated": 0, "existing": 0, "filtered": 1, "invalid": 1}
    assert metrics["recordSummary"] == {"customers": seen}
    assert metrics["exportSummary"] == {"customers": {"success": 3, "fail": 1, "existing": 0, "updated": 0}}
    told = sorted(picked(one, "id", "target", "status", "externalId", "errorClass") for one in metrics["exportDetails"])
    assert told == [
        ("0", "crm", "success", "0", None), ("0", "erp", "skipped", None, None),
        ("1", "crm", "success", "1", None), ("1", "erp", "success", "1", None),
        ("2", "crm", "fail", None, "InvalidPayload"), ("2", "erp", "canceled", None, None),
    ]  # fmt: skip
    assert metrics["exportDetailsNext"] is None


def test_its_export_details_are_paged_on_by_their_cursor(jobq: JobQ, area: Path) -> None:
    job = ran(jobq, customers(area), kind="SYNC")
    first = jobq.details(job.id, exports=4)["metrics"]
    rest = jobq.exports(job.id, cursor=first["exportDetailsNext"])

    found = [one["jobId"] for one in first["exportDetails"]] + [str(one.job_id) for one in rest.items]
    assert len(first["exportDetails"]) == 4
    assert found == [one["jobId"] for one in jobq.details(job.id)["metrics"]["exportDetails"]]
    with pytest.raises(InvalidInput):
        jobq.details(job.id, exports=0)


def test_each_child_tells_of_its_own_entity(jobq: JobQ, area: Path) -> None:
    workflow = jobq.create_workflow(customers(area), kind="SYNC", name="nightly")
    sync = jobq.wait(jobq.trigger(workflow.id, state={"only": "the SYNC is told"}).id, timeout=30)
    children = {(child.entity_key, child.target): child for child in jobq.children(sync.id).items}

    def told(key: str, target: str) -> Details:
        details = details_of(jobq, children[key, target])
        assert picked(details, "job_type", "task_type", "tap", "target") == ("WRITE", "replication", "jsonl", target)
        assert picked(details, "flow_id", "sync_type", "state") == (str(workflow.id), "incremental_sync", None)
        (export,) = details["metrics"]["exportDetails"]
        assert picked(export, "id", "target", "stream", "jobId") == (key, target, "customers", details["job_id"])
        return details

    def counted(details: Details) -> tuple[Any, ...]:
        metrics = details["metrics"]
        return metrics["recordCount"]["customers"], metrics["exportSummary"]["customers"]

    written = told("1", "erp")
    assert picked(written, "status", "platform_status", "error") == ("COMPLETED", "completed", None)
    assert counted(written) == (1, {**NOTHING, "success": 1})
    assert written["metrics"]["exportDetails"][0]["externalId"] == "1"
    assert written["start_time"] < written["last_updated"]
    assert written["task_id"] == f"{written['job_id']}-1"

    failed = told("2", "crm")
    assert picked(failed, "status", "platform_status") == ("FAILED", "failed")
    assert counted(failed) == (1, {**NOTHING, "fail": 1})
    assert failed["error"]["class"] == failed["metrics"]["exportDetails"][0]["errorClass"] == "InvalidPayload"
    assert "CHECK constraint failed" in failed["message"] == failed["error"]["message"]

    skipped = told("0", "erp")
    assert picked(skipped, "status", "reason", "platform_status") == ("COMPLETED", "skipped", "skipped")
    assert counted(skipped) == (1, NOTHING)
    assert "conditions of erp" in skipped["message"]

    never_ran = told("2", "erp")
    assert picked(never_ran, "status", "reason", "error") == ("CANCELED", "upstream_failed", None)
    assert picked(never_ran, "task_id", "start_time") == (None, None)
    assert counted(never_ran) == (0, NOTHING)


def test_a_retry_is_started_by_who_asked_for_it_and_so_are_its_children(jobq: JobQ, area: Path) -> None:
    failed = ran(jobq, customers(area), kind="SYNC")
    with JobQ(settings=jobq.settings, actor="maria") as her:
        again = jobq.wait(her.retry(failed.id).id, timeout=30)

    assert details_of(jobq, failed)["started_by"] == "application"
    details = details_of(jobq, again)
    assert details["started_by"] == "maria"
    # One record could not be mapped, so the source was read again; what had arrived is there.
    assert details["metrics"]["exportSummary"] == {"customers": {**NOTHING, "fail": 1, "existing": 3}}
    assert details["state"] == jobq.sync_states.get("customers").state
    assert {details_of(jobq, child)["started_by"] for child in jobq.children(again.id).items} == {"maria"}


def test_the_state_of_a_sync_is_that_after_its_run_however_far_later_ones_go(jobq: JobQ, area: Path) -> None:
    job = ran(jobq, customers(area), kind="SYNC")
    unread = ran(
        jobq, customers(area, source={"type": "jsonl", "config": {"path": f"{area}/missing.jsonl"}}), kind="SYNC"
    )
    state = jobq.details(job.id)["state"]
    assert details_of(jobq, unread)["state"] == state
    jobq.database.run(lambda conn: set_state(conn, "acme", "customers", unread.id, {"later": 1}))

    assert details_of(jobq, job)["state"] == state
    assert jobq.sync_states.get("customers").state == {"later": 1}


def test_a_dry_run_counts_what_it_would_do(jobq: JobQ, area: Path) -> None:
    spec = customers(area, dry_run=True, mode="full", override_start_date="2026-03-01T08:00:00+01:00")
    details = details_of(jobq, ran(jobq, spec, kind="SYNC"))

    assert picked(details, "sync_type", "override_start_date") == ("full_sync", "2026-03-01T07:00:00Z")
    assert picked(details, "status", "message") == ("COMPLETED", "a dry run: nothing was written")
    assert details["metrics"]["recordCount"] == {"customers": 5}
    assert details["metrics"]["recordSummary"]["customers"]["new"] == 3
    assert details["metrics"]["exportSummary"] == {"customers": NOTHING}
    assert details["data_sizes"]["artifacts"] > 0


def test_without_targets_the_own_store_is_the_target(jobq: JobQ, area: Path) -> None:
    details = details_of(jobq, ran(jobq, customers(area, targets=[]), kind="SYNC"))
    assert details["target"] == ["store"]
    assert details["metrics"]["exportSummary"] == {"customers": {**NOTHING, "success": 3, "fail": 1}}


def test_a_file_that_the_sync_itself_wrote_is_its_export(jobq: JobQ, area: Path) -> None:
    out = {"name": "out", "type": "csv", "config": {"area": f"{area}/out"}}
    details = details_of(jobq, ran(jobq, customers(area, targets=[out]), kind="SYNC"))
    assert details["message"] == "1 of 5 entities could not be used"
    (export,) = details["metrics"]["exportDetails"]
    assert picked(export, "id", "stream", "target", "status") == ("customers", "customers", "out", "success")
    assert Path(export["externalId"].removeprefix("file://")).exists()
    assert details["metrics"]["exportSummary"] == {"customers": {**NOTHING, "success": 3}}


def test_stored_connectors_are_named_and_their_secrets_are_not_shown(jobq: JobQ, area: Path) -> None:
    source, target = customers(area)["source"], table(area, "crm")
    jobq.connectors.apply([Connector(name="crm-files", **source), Connector(**{**target, "name": "crm-table"})])
    spec = customers(area, source={"connector": "crm-files"}, targets=[{"connector": "crm-table", "name": "crm"}])
    job = ran(jobq, spec, kind="SYNC")
    (child, *_) = jobq.children(job.id).items

    assert picked(details_of(jobq, job), "tap", "connector_id", "target") == ("jsonl", "crm-files", ["crm"])
    assert picked(details_of(jobq, child), "tap", "connector_id", "target") == ("jsonl", "crm-table", "crm")
    assert "sqlite:" not in json.dumps(jobq.details(job.id))


# --- the other kinds -------------------------------------------------------------------------------------------------


def test_a_probe_that_a_schedule_made(jobq: JobQ) -> None:
    with HttpPeer() as peer:
        workflow = jobq.create_workflow(
            {"endpoint": f"{peer.url}/items"}, kind="HEARTBEAT", name="front-page", schedule=Every(1)
        )
        wait_until(lambda: any(job.finished for job in jobq.list(workflow_id=workflow.id).items))
        job = next(job for job in jobq.list(workflow_id=workflow.id).items if job.finished)
        details = details_of(jobq, job)

    assert picked(details, "flow_id", "started_by", "scheduled_job") == (str(workflow.id), "scheduler", True)
    assert picked(details, "job_type", "task_type", "task_id") == ("HEARTBEAT", "heartbeat", f"{job.id}-1")
    assert picked(details, "status", "reason", "platform_status") == ("COMPLETED", "succeeded", "completed")
    assert picked(details, "tap", "target", "connector_id", "sync_type", "state") == (None,) * 5
    assert details["message"].startswith("200 OK in ")
    assert details["task_definition"]["slots"] == 200
    empty: Details = {"recordCount": {}, "recordSummary": {}, "exportSummary": {}}
    assert details["metrics"] == {**empty, "exportDetails": [], "exportDetailsNext": None}


def test_a_plugin_kind_at_each_stage(jobq: JobQ) -> None:
    waiting = jobq.enqueue({}, kind="NOOP", scheduled_at="2026-12-24T12:00:00Z", state={"from": "a test"})
    details = details_of(jobq, waiting)
    assert picked(details, "status", "reason", "platform_status") == ("PENDING", "scheduled", "pending")
    assert picked(details, "start_time", "task_id", "error") == (None, None, None)
    assert details["message"].startswith("Not due until 2026-12-24")
    assert details["state"] == {"from": "a test"}
    jobq.cancel(waiting.id)
    canceled = details_of(jobq, waiting)
    assert picked(canceled, "status", "platform_status", "error") == ("CANCELED", None, None)
    assert canceled["last_updated"] > details["last_updated"]

    job = jobq.enqueue({"seconds": 60, "say": "hello"}, kind="NOOP")
    wait_until(lambda: jobq.get(job.id).status is Status.RUNNING)
    runs = details_of(jobq, job)
    assert picked(runs, "job_type", "status", "task_id") == ("NOOP", "RUNNING", f"{job.id}-1")
    assert runs["task_definition"]["host"]
    assert "is executing" in runs["message"]
    jobq.cancel(job.id)
    jobq.wait(job.id, timeout=20)
    assert details_of(jobq, job)["data_sizes"]["log"] > 0


def test_a_job_that_is_tried_again_tells_its_latest_failure(jobq: JobQ) -> None:
    job = jobq.enqueue({"then": "fail"}, kind="NOOP", retry={"max_attempts": 2, "initial": 60})
    wait_until(lambda: jobq.get(job.id).reason == "retrying")
    details = details_of(jobq, job)
    assert picked(details, "status", "task_id") == ("PENDING", f"{job.id}-1")
    told = {"class": "told", "reason": "error", "message": "it was told to fail", "exit_code": None}
    assert details["error"] == told
    assert details["start_time"]
    assert "it was told to fail" in details["message"]


def test_a_container_finds_its_own_document_and_leaves_the_same(docker_engine: Docker) -> None:
    info = json.loads(docker_engine.request("GET", "/info")[1])
    engine = f"{info['ID']}@{info['Name']}{info['DockerRootDir']}"
    settings = Settings(docker_host=docker_engine.url, env_id="prod", tenant="acme")
    spec = {"image": "jobq-test:busybox", "memory": 32 * MiB, "cpus": 0.5, "output": "/out", "pull": "never"}
    script = "cat /jobq/job_details.json >/out/mine.json; i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; exit 3"
    with running(settings, queues={"container": 2}) as jobq:
        command = ["sh", "-c", script]
        job = ran(jobq, {**spec, "command": command}, kind="CONTAINER", state={"from": "a test"}, timeout=20)
        details, mine = details_of(jobq, job), json.loads(jobq.artifact(job.id, "mine.json"))

    assert list(mine) == KEYS
    changed = {"start_time", "status", "reason", "platform_status", "message", "last_updated", "error", "data_sizes"}
    changed |= {"resources_usage"}
    assert {name for name in KEYS if mine[name] != details[name]} <= changed
    assert picked(mine, "status", "reason", "platform_status") == ("RUNNING", "preparing", "processing")
    assert picked(details, "job_type", "task_id", "state") == ("CONTAINER", f"{job.id}-1", {"from": "a test"})
    assert details["task_definition"] == {"memory": 32 * MiB, "cpus": 0.5, "host": engine, "slots": None}
    assert details["error"] == {"class": "exit_3", "reason": "nonzero_exit", "message": "exit 3", "exit_code": 3}
    assert details["data_sizes"]["artifacts"] > 0
    assert details["resources_usage"]["memory"] is None or details["resources_usage"]["memory"] < 32 * MiB


# --- who asks --------------------------------------------------------------------------------------------------------


def test_a_sync_that_waits_tells_what_it_will_do_on_either_database(database_url: str, area: Path) -> None:
    settings = Settings(env_id="prod", tenant="acme", policy=Policy(areas=[str(area)]))
    with JobQ(database_url, settings=settings, actor="maria") as jobq:
        job = jobq.enqueue(customers(area), kind="SYNC")
        details = details_of(jobq, job)
        assert picked(details, "status", "job_type", "tap", "task_id") == ("PENDING", "READ", "jsonl", None)
        assert details["metrics"]["recordCount"] == {"customers": 0}
        assert "no live worker" in details["message"]
        jobq.cancel(job.id)
        assert details_of(jobq, jobq.retry(job.id))["started_by"] == "maria"


def test_another_tenants_job_is_not_found(jobq: JobQ) -> None:
    job = jobq.enqueue({}, kind="NOOP")
    with JobQ(settings=jobq.settings, tenant="other") as other, pytest.raises(NotFound):
        other.details(job.id)


def test_the_command_prints_the_document(jobq: JobQ, tmp_path: Path) -> None:
    job = ran(jobq, {}, kind="NOOP")
    command = Command(
        tmp_path, is_warm=True, JOBQ_DATABASE_URL=jobq.settings.database_url, JOBQ_TENANT="acme", JOBQ_ENV_ID="prod"
    )
    assert command.ok("job", "show", str(job.id), "--details").document == details_of(jobq, job)
    command.refused("not_found", "job", "show", "0" * 32, "--details")
