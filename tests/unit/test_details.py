"""The job_details document: what is built from which facts, and that its description is true."""

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from jobq.details import Facts, job_details
from jobq.models import Attempt, Export, FanOut, TargetSummary
from jobq.plugins import JobRef
from jobq.specs import Container, MiB
from jobq.states import REASONS, Reason, Status
from workers.container.files import details_at_start

DOCUMENT = (Path(__file__).parents[2] / "docs" / "job-details.md").read_text()
NOW = datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)
ID = UUID(int=7)
SYNC = {
    "domain": "customers", "source": {"connector": "shop", "type": None, "config": {"url": "https://shop.example"}},
    "targets": [{"name": "crm", "connector": None, "type": "sql"}, {"name": "erp", "connector": "erp-prod", "type": None}],
    "mode": "full", "override_start_date": "2026-01-01T00:00:00Z", "dry_run": False,
}  # fmt: skip


def facts(**more: Any) -> Facts:
    usual: dict[str, Any] = {
        "id": ID, "attempt": 1, "tenant": "acme", "kind": "HEARTBEAT", "name": "front-page", "queue": "heartbeat",
        "trigger": "MANUAL", "status": Status.COMPLETED, "reason": Reason.SUCCEEDED, "env_id": "prod",
        "last_updated": NOW,
    }  # fmt: skip
    return Facts(**{**usual, **more})


def sync(**more: Any) -> Facts:
    usual: dict[str, Any] = {"kind": "SYNC", "domain": "customers", "queue": "sync", "spec": SYNC}
    return facts(**{**usual, **more})


def attempt(number: int = 1, **more: Any) -> Attempt:
    usual: dict[str, Any] = {
        "job_id": ID, "attempt": number, "worker_id": None, "worker": None, "outcome": "FAILED", "reason": "error",
        "charged": True, "started_at": NOW, "finished_at": NOW, "message": "it broke", "error_class": "told",
        "exit_code": None, "result": None, "steps": [], "usage": {},
    }  # fmt: skip
    return Attempt(**{**usual, **more})


def fanout(**more: Any) -> FanOut:
    names = "total pending queued running completed skipped failed canceled read filtered new updated existing invalid"
    usual: dict[str, Any] = {**dict.fromkeys(names.split(), 0), "reading": False, "targets": {}}
    return FanOut(**{**usual, **more})


# --- the document's description --------------------------------------------------------------------------------------


def test_the_table_of_keys_is_that_of_the_builder() -> None:
    keys, _, metrics = DOCUMENT.partition("## Keys")[2].partition("\n### metrics")
    built = job_details(facts())
    assert re.findall(r"^\| `(\w+)` \|", keys, re.MULTILINE) == list(built)
    assert re.findall(r"^\| `(\w+)` \|", metrics, re.MULTILINE) == list(built["metrics"])


def test_the_keys_within_values_are_described_too() -> None:
    built = job_details(sync(fanout=fanout(), status=Status.FAILED, reason=Reason.PARTIAL))
    export = Export(ID, "1", "crm", None, None, None, None, Status.PENDING, Reason.READY, False)
    details = job_details(sync(exports=[export]))["metrics"]["exportDetails"][0]
    inner = [*built["metrics"], *details, *built["error"], *built["task_definition"]]
    inner += [*built["data_sizes"], *built["resources_usage"]]
    for name in inner:
        assert f"`{name}`" in DOCUMENT, name


def test_the_example_has_every_key_in_its_place() -> None:
    (example,) = re.findall(r"^```json\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert list(json.loads(example)) == list(job_details(facts()))


# --- every kind, every stage -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["CONTAINER", "HEARTBEAT", "SYNC", "REPLICATION", "GREETING"])
@pytest.mark.parametrize(
    ("status", "reason"), [(status, reason) for status in Status for reason in sorted(REASONS[status])]
)
def test_every_key_is_there_for_every_kind_in_every_state(kind: str, status: Status, reason: Reason) -> None:
    bare = job_details(facts(kind=kind, status=status, reason=reason, attempt=0))
    full = job_details(sync(fanout=fanout(), attempts=[attempt()]))
    assert list(bare) == list(full)
    assert json.loads(json.dumps(bare)) == bare
    assert (bare["status"], bare["reason"], bare["task_id"]) == (status.value, reason.value, None)
    assert list(bare["metrics"]) == list(full["metrics"])


@pytest.mark.parametrize(("kind", "word"), [("SYNC", "READ"), ("REPLICATION", "WRITE"), ("GREETING", "GREETING")])
def test_a_sync_reads_and_a_replication_writes(kind: str, word: str) -> None:
    assert job_details(facts(kind=kind))["job_type"] == word


def test_who_started_a_job() -> None:
    assert job_details(facts(trigger="AUTOMATIC", actor="maria"))["started_by"] == "scheduler"
    assert job_details(facts(actor="maria"))["started_by"] == "maria"
    assert job_details(facts())["started_by"] == "application"


def test_the_root_of_artifacts_is_a_url_whatever_the_names_are() -> None:
    root = job_details(facts(env_id="a b", tenant="x/../y"))["s3_root"]
    assert root == f"jobq://a%20b/x%2F..%2Fy/{ID}/"


def test_instants_are_rfc_3339_in_utc() -> None:
    assert job_details(facts(started_at=NOW))["start_time"] == "2026-01-02T03:04:05.000006Z"


# --- where from, where to --------------------------------------------------------------------------------------------


def test_a_job_names_the_connector_of_its_own_end() -> None:
    read = job_details(sync(source_type="http"))
    assert (read["tap"], read["connector_id"], read["target"]) == ("http", "shop", ["crm", "erp"])
    for target, connector in (("crm", None), ("erp", "erp-prod")):
        write = job_details(sync(kind="REPLICATION", target=target, source_type="http"))
        assert (write["tap"], write["connector_id"], write["target"]) == ("http", connector, target)
        assert (write["sync_type"], write["override_start_date"]) == ("full_sync", "2026-01-01T00:00:00Z")


def test_a_connector_that_is_gone_is_still_named() -> None:
    assert job_details(sync())["tap"] == "shop"


def test_the_spec_of_a_plugin_is_not_mistaken_for_a_sync() -> None:
    details = job_details(facts(kind="GREETING", spec=SYNC))
    assert [details[name] for name in ("tap", "target", "connector_id", "sync_type")] == [None] * 4


def test_no_configuration_is_shown() -> None:
    assert "shop.example" not in json.dumps(job_details(sync()))


# --- metrics ---------------------------------------------------------------------------------------------------------


def test_the_export_summary_is_the_sum_over_all_targets() -> None:
    targets = {"crm": TargetSummary(1, 2, 3, 4, 5, 6), "erp": TargetSummary(10, 20, 30, 40, 50, 60)}
    metrics = job_details(sync(fanout=fanout(targets=targets, read=77)))["metrics"]
    assert metrics["exportSummary"] == {"customers": {"success": 11, "fail": 22, "existing": 33, "updated": 44}}
    assert metrics["recordCount"] == {"customers": 77}


def test_a_child_that_has_not_run_has_counted_nothing() -> None:
    export = Export(ID, "1", "crm", None, None, None, None, Status.PENDING, Reason.READY, False)
    metrics = job_details(sync(kind="REPLICATION", attempt=0, exports=[export]))["metrics"]
    assert metrics["recordCount"] == {"customers": 0}
    assert set(metrics["exportSummary"]["customers"].values()) == {0}
    assert metrics["exportDetails"][0]["status"] is None


# --- causes and costs ------------------------------------------------------------------------------------------------


def test_a_failure_is_told_until_the_job_ends_otherwise() -> None:
    known: dict[str, Any] = {"error_class": "told", "attempts": [attempt(exit_code=3)]}
    for status, reason in ((Status.PENDING, Reason.RETRYING), (Status.RUNNING, Reason.EXECUTING)):
        error = job_details(facts(status=status, reason=reason, message="waits", **known))["error"]
        assert error == {"class": "told", "reason": "error", "message": "it broke", "exit_code": 3}
    assert job_details(facts(status=Status.CANCELED, reason=Reason.BY_USER, **known))["error"] is None
    assert job_details(facts(**known))["error"] is None


def test_a_failure_without_a_class_has_its_reason() -> None:
    error = job_details(facts(status=Status.FAILED, reason=Reason.UNRESOLVED, message="gone"))["error"]
    assert error == {"class": "unresolved", "reason": "unresolved", "message": "gone", "exit_code": None}


def test_usage_is_that_of_all_attempts() -> None:
    usages: list[dict[str, Any]] = [
        {"memory_bytes": 7, "cpu_seconds": 0.1},
        {},
        {"memory_bytes": 5, "cpu_seconds": 0.2},
    ]
    used = job_details(facts(attempts=[attempt(number, usage=usage) for number, usage in enumerate(usages, 1)]))
    assert used["resources_usage"] == {"cpu": 0.3, "memory": 7}


def test_sizes_are_in_megabytes() -> None:
    sizes = job_details(facts(artifact_bytes=3 * MiB, log_bytes=MiB // 2))["data_sizes"]
    assert sizes == {"artifacts": 3.0, "log": 0.5, "total": 3.5}


# --- in a container --------------------------------------------------------------------------------------------------


def test_a_container_gets_the_same_document() -> None:
    job = JobRef(ID, 2, "acme", "CONTAINER", "nightly", "container", "MANUAL", 30.0, state={"a": 1}, started_by="ann")
    spec = Container(image="busybox", memory=64 * MiB, cpus=0.5)
    at = NOW + timedelta(seconds=1)
    inside = details_at_start(spec, job, env_id="prod-0123456789ab", host="engine", now=at)
    stored = facts(
        attempt=2, kind="CONTAINER", name="nightly", queue="container", status=Status.RUNNING, actor="ann",
        reason=Reason.PREPARING, spec=spec.model_dump(mode="json"), state={"a": 1}, host="engine", started_at=at,
        last_updated=at,
    )  # fmt: skip
    assert inside == job_details(stored)
    assert (inside["env_id"], inside["started_by"]) == ("prod", "ann")
    definition = {"memory": 64 * MiB, "cpus": 0.5, "host": "engine", "slots": None}
    assert inside["task_definition"] == definition
