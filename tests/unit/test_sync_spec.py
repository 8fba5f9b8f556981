"""What a Sync refuses when it is accepted, before anything is read."""

from datetime import UTC, datetime
from typing import Any

import pytest

from jobq.connections import Connection, check_no_secret
from jobq.connectors import connector_class
from jobq.definition import Definition, JobRequest
from jobq.errors import InvalidInput, Misconfigured
from jobq.plugins import BUILT_IN
from jobq.settings import Policy, Settings
from jobq.sync import Replication, SourceSpec, Sync, TargetSpec
from jobq.validation import parse

SETTINGS = Settings(database_url="sqlite://")
PLAIN: dict[str, Any] = {"domain": "customers", "source": {"connector": "shop"}}
CRM: dict[str, Any] = {"connector": "crm"}


def sync(**fields: Any) -> Sync:
    return parse(Sync, {**PLAIN, **fields}, "/spec")


def refusal(**fields: Any) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        parse(JobRequest, {"kind": "SYNC", "spec": {**PLAIN, **fields}}).prepared(SETTINGS)
    return caught.value


def test_little_is_needed_and_the_rest_has_defaults() -> None:
    found = sync(targets=[CRM])
    assert (found.key, found.mode, found.batch_size, found.dry_run) == ("id", "full", 500, False)
    assert found.targets[0].name == "crm"
    assert sync(targets=[{"connector": "crm", "name": None}]).targets[0].name == "crm"


def test_python_code_writes_it_with_the_same_words() -> None:
    made = Sync(
        domain="customers",
        source=SourceSpec(connector="shop"),
        targets=[TargetSpec(connector="crm", mapping={"name": "full_name"})],
        override_start_date=datetime(2026, 3, 1, tzinfo=UTC),
    )
    stored = parse(JobRequest, {"spec": made}).prepared(SETTINGS).request
    assert stored.kind == "SYNC"
    assert parse(Sync, stored.spec) == made


def test_what_was_stored_is_accepted_again() -> None:
    asked = {
        "kind": "SYNC",
        "name": "nightly",
        "spec": {
            **PLAIN, "conditions": ["active"], "mapping": {"name": {"path": "n", "default": None}, "eu": {"value": None}},
            "targets": [{"type": "store"}, {**CRM, "after": ["store"], "concurrency": 5}], "mode": "incremental",
            "override_start_date": "2026-03-01T08:00:00+01:00", "entity": "42", "max_children": 10,
        },
    }  # fmt: skip
    once = parse(Definition, asked).checked(SETTINGS)
    assert parse(Definition, {**asked, "spec": once.spec}).checked(SETTINGS).spec == once.spec


def test_kinds_of_sync_and_replication_are_built_in() -> None:
    kind, child = BUILT_IN["SYNC"], BUILT_IN["REPLICATION"]
    assert (kind.timeout, kind.max_attempts, kind.retry_lost) == (None, 3, True)
    assert (child.timeout, child.max_attempts, child.retry_lost) == (child.timeout, 3, True)
    assert child.timeout is not None
    assert child.timeout.total_seconds() == 60
    assert parse(JobRequest, {"kind": "SYNC", "spec": PLAIN}).prepared(SETTINGS).request.timeout is None


@pytest.mark.parametrize(
    "spec", [{"domain": "d", "target": "t", "entity_key": "k"}, Replication(domain="d", target="t", entity_key="k")]
)
def test_a_replication_is_made_by_a_sync_only(spec: Any) -> None:
    with pytest.raises(InvalidInput, match="made by a SYNC only") as caught:
        parse(JobRequest, {"kind": "REPLICATION", "spec": spec}).prepared(SETTINGS)
    assert "Enqueue a Sync" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("fields", "pointer", "part"),
    [
        ({"domain": ""}, "/spec/domain", "at least 1"),
        ({"domain": "x" * 101}, "/spec/domain", "at most 100"),
        ({"domain": "a\nb"}, "/spec/domain", "printable"),
        ({"source": {}}, "/spec/source", "either"),
        ({"source": {"connector": "a", "type": "http"}}, "/spec/source", "either"),
        ({"source": {"connector": "a/b"}}, "/spec/source/connector", "match"),
        ({"source": {"type": "store"}}, "/spec/source/type", "target only"),
        ({"source": {"type": "ftp"}}, "/spec/source/type", "no source of type 'ftp'"),
        ({"source": {"connector": "a", "confg": {}}}, "/spec/source/confg", "no known field"),
        ({"source": {"connector": "a", "secrets": {"a": "b c"}}}, "/spec/source/secrets/a", "match"),
        ({"key": ""}, "/spec/key", "empty"),
        ({"key": "a["}, "/spec/key", "JMESPath"),
        ({"conditions": "active"}, "/spec/conditions", "list"),
        ({"conditions": ["a", "b =="]}, "/spec/conditions/1", "JMESPath"),
        ({"mapping": {"a": "b["}}, "/spec/mapping/a", "JMESPath"),
        ({"mapping": ["a"]}, "/spec/mapping", "object"),
        ({"targets": [CRM, {**CRM, "mapping": {"a": {"path": "nope(@)"}}}]}, "/spec/targets/1/name", "Two targets"),
        ({"targets": [{**CRM, "mapping": {"a": {"path": "nope(@)"}}}]}, "/spec/targets/0/mapping/a/path", "nope"),
        ({"targets": [{**CRM, "conditions": [""]}]}, "/spec/targets/0/conditions/0", "empty"),
        ({"targets": [{"type": "ftp"}]}, "/spec/targets/0/type", "no target of type"),
        ({"targets": [{**CRM, "after": ["erp"]}]}, "/spec/targets/0/after/0", "which is none"),
        ({"targets": [{**CRM, "after": ["crm"]}]}, "/spec/targets/0/after/0", "after itself"),
        ({"targets": [{**CRM, "name": "a", "after": ["b"]}, {**CRM, "name": "b", "after": ["a"]}]}, "/spec/targets", "wait for each other"),
        ({"targets": [{**CRM, "concurrency": 0}]}, "/spec/targets/0/concurrency", "greater"),
        ({"targets": [{"type": "store", "mapping": {"a": "b"}}]}, "/spec/targets/0", "own store"),
        ({"targets": [{"type": "store"}, {"type": "store", "name": "again"}]}, "/spec/targets/1/type", "twice"),
        ({"targets": [{**CRM, "name": f"t{n}"} for n in range(51)]}, "/spec/targets", "at most 50"),
        ({"mode": "delta"}, "/spec/mode", "'incremental'"),
        ({"override_start_date": "2026-03-01"}, "/spec/override_start_date", "offset"),
        ({"override_start_date": datetime(2026, 3, 1)}, "/spec/override_start_date", "offset"),  # noqa: DTZ001
        ({"override_start_date": 1772323200}, "/spec/override_start_date", "offset"),
        ({"entity": ""}, "/spec/entity", "at least 1"),
        ({"entity": "a\x00"}, "/spec/entity", "NUL"),
        ({"entity": 42}, "/spec/entity", "string"),
        ({"batch_size": 0}, "/spec/batch_size", "greater"),
        ({"batch_size": 5001}, "/spec/batch_size", "less"),
        ({"max_children": 0}, "/spec/max_children", "greater"),
        ({"max_children": 1_000_001}, "/spec/max_children", "operator's maximum"),
        ({"source": {"type": "http", "config": {"headers": {"X-Api-Key": "hush"}}}}, "/spec/source/config/headers/X-Api-Key", "secret"),
    ],
    ids=range(39),
)  # fmt: skip
def test_bad_input_is_refused_where_it_is_wrong(fields: dict[str, Any], pointer: str, part: str) -> None:
    error = refusal(**fields)
    assert error.pointer == pointer
    assert part in error.message
    assert "hush" not in str(error)


# --- targets ---------------------------------------------------------------------------------------------------------


def test_exports_come_in_the_order_of_their_chains_and_without_the_store() -> None:
    found = sync(
        targets=[
            {**CRM, "name": "c", "after": ["b", "store"]},
            {"type": "store"},
            {**CRM, "name": "b", "after": ["a"]},
            {**CRM, "name": "a"},
        ]
    )
    assert [(target.name, target.after) for target in found.exports] == [("a", []), ("b", ["a"]), ("c", ["b"])]
    assert [pointer for pointer, _, _ in found.connections()] == [
        "/spec/source", "/spec/targets/0", "/spec/targets/2", "/spec/targets/3",
    ]  # fmt: skip
    assert not sync(targets=[{"type": "store"}]).exports


def test_a_targets_rules_change_with_its_conditions_and_its_mapping_only() -> None:
    plain = TargetSpec(connector="crm")
    assert plain.rules == TargetSpec(connector="crm", name="other", concurrency=3).rules
    assert plain.rules != TargetSpec(connector="crm", mapping={"a": "b"}).rules
    assert plain.rules != TargetSpec(connector="crm", conditions=["a"]).rules
    one, other = {"a": "b", "c": "d"}, {"c": "d", "a": "b"}
    assert TargetSpec(connector="crm", mapping=one).rules == TargetSpec(connector="crm", mapping=other).rules


def test_children_are_limited_by_the_operator_and_by_the_sync() -> None:
    few = Policy(max_children=10)
    assert sync().limit_of_children(few) == 10
    assert sync(max_children=5).limit_of_children(few) == 5
    assert sync(max_children=50).limit_of_children(few) == 10
    sync().check(few)
    with pytest.raises(InvalidInput, match="maximum of 10"):
        sync(max_children=50).check(few)


# --- secrets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "pointer"),
    [
        ({"password": "hush"}, "/password"),
        ({"auth": {"type": "bearer", "token": "hush"}}, "/auth/token"),
        ({"auth": [{"clientSecret": "hush"}]}, "/auth/0/clientSecret"),
        ({"headers": {"Authorization": "Bearer hush"}}, "/headers/Authorization"),
        ({"headers": {"X-Api-Key": "hush"}}, "/headers/X-Api-Key"),
        ({"params": {"access_token": "hush"}}, "/params/access_token"),
        ({"aws_secret_access_key": "hush"}, "/aws_secret_access_key"),
        ({"pin": {"password": 1234}}, "/pin/password"),
        ({"passwords": {"password": ["hush"]}}, "/passwords/password/0"),
        ({"url": "postgresql://app:hush@db.example/shop"}, "/url"),
        ({"urls": ["https://a.example", "https://u:hush@b.example"]}, "/urls/1"),
        ({"secrets": {"a": "b"}}, "/secrets"),
    ],
    ids=range(12),
)
def test_a_configuration_never_holds_a_secret(config: dict[str, Any], pointer: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_no_secret(config, {"token": "shop-token"}, "")
    assert caught.value.pointer == pointer
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        {"password": "token"},  # it names one
        {"auth": {"secret": "token"}}, {"token_param": "page_token"}, {"page_size": 5, "passive": True, "tokens": 5},
        {"url": "https://user@example.org/a:b@c"}, {"url": "https://example.org:8080/x@y"}, {"password": None},
    ],
)  # fmt: skip
def test_what_only_looks_like_a_secret_is_accepted(config: dict[str, Any]) -> None:
    check_no_secret(config, {"token": "shop-token"}, "")


def test_a_connection_is_named_or_written_out() -> None:
    assert Connection(connector="shop", config={"path": "/x"}).type is None
    with pytest.raises(ValueError, match="either"):
        Connection()


# --- connectors of the worker ------------------------------------------------------------------------------------------


def test_a_configuration_is_judged_where_its_connector_can_be_imported() -> None:
    try:
        connector_class("jobq.sources", "http")
    except Misconfigured:
        pytest.skip("the worker's connectors are not installed")
    error = refusal(source={"type": "http", "config": {"url": "https://example.org/", "page_sz": 5}})
    assert error.pointer == "/spec/source/config/page_sz"
    error = refusal(source={"type": "http", "config": {"url": "http://127.0.0.1/"}})
    assert error.pointer == "/spec/source/config/url"
    auth = {"url": "https://example.org/", "auth": {"type": "bearer", "secret": "token"}}
    assert "names none of the secrets" in refusal(source={"type": "http", "config": auth}).message
    sync(source={"type": "http", "config": auth, "secrets": {"token": "shop"}}).check(Policy())
