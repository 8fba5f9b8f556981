"""Connectors and Syncs on the command line, as a user without any process running."""

from pathlib import Path

import pytest

from tests.command import Command

SHOP = """
kind: Connector
name: shop
type: http
config:
  url: https://shop.example/customers
  auth: {type: bearer, secret: token}
secrets: {token: shop-token}
"""
CRM = """
kind: Connector
name: crm
type: http
config: {url: "https://crm.example/{key}"}
"""
WORKFLOW = """
name: customers
kind: SYNC
cron: "0 3 * * *"
spec:
  domain: customers
  source: {connector: shop}
  targets: [{connector: crm}]
"""
SPEC = """
domain: customers
source:
  connector: shop
  config: {page_size: 50, size_param: n}
key: id
mapping: {name: full_name}
targets:
  - connector: crm
    conditions: [active]
"""


@pytest.fixture
def command(database_url: str, tmp_path: Path) -> Command:
    return Command(tmp_path, is_warm=True, JOBQ_DATABASE_URL=database_url, JOBQ_SECRET_KEY="k" * 32)


@pytest.fixture
def with_connectors(command: Command) -> Command:
    """Two connectors, and the secret of one."""
    command.ok("secret", "set", "shop-token", stdin="hush")
    command.ok("connector", "apply", "-f", "-", stdin=f"{SHOP}---{CRM}")
    return command


# --- connectors --------------------------------------------------------------------------------------------------------


def test_the_life_of_a_connector(command: Command, tmp_path: Path) -> None:
    (tmp_path / "connectors.yaml").write_text(f"{SHOP}---{CRM}")
    apply = ("connector", "apply", "-f", f"{tmp_path}/connectors.yaml")
    assert command.ok(*apply).out.split() == ["created", "shop", "created", "crm"]
    assert [one["what"] for one in command.ok(*apply, "--json").items] == ["unchanged", "unchanged"]
    assert [one["name"] for one in command.ok("connector", "list", "--json").items] == ["crm", "shop"]
    assert "shop-token" in command.ok("connector", "list").out
    found = command.ok("connector", "show", "shop", "--json").document
    assert (found["type"], found["secrets"]) == ("http", {"token": "shop-token"})
    assert "https://shop.example/customers" in command.ok("connector", "show", "shop").out
    assert command.ok("connector", "rm", "shop").out == "removed shop\n"
    command.refused("not_found", "connector", "show", "shop")
    command.refused("not_found", "connector", "rm", "shop")


def test_a_bad_connector_is_refused_and_none_of_its_file_is_stored(command: Command) -> None:
    def refused(code: str, text: str) -> str:
        done = command.refused(code, "connector", "apply", "-f", "-", stdin=f"{CRM}---{text}")
        assert command.ok("connector", "list", "--json").items == []
        return done.err

    assert "jobq secret set" in refused("secret_in_config", SHOP.replace("auth:", "password: hush\n  auth:"))
    assert "Known types" in refused("unknown_connector", SHOP.replace("type: http\n", "type: ftp\n"))
    refused("validation_error", SHOP.replace("secrets:", "secret:"))
    command.refused("validation_error", "connector", "apply", "-f", "-", stdin=WORKFLOW)


def test_workflows_and_the_connectors_beside_them_are_applied_together(command: Command) -> None:
    command.ok("secret", "set", "shop-token", stdin="hush")
    apply = ("workflow", "apply", "-f", "-")
    done = command.ok(*apply, stdin=f"{WORKFLOW}---{SHOP}---{CRM}")
    assert done.out.splitlines() == ["created   connector shop", "created   connector crm", "created   customers"]
    items = command.ok(*apply, "--json", stdin=f"{WORKFLOW}---{SHOP}").items
    assert [one["what"] for one in items] == ["unchanged", "unchanged"]


# --- Syncs -------------------------------------------------------------------------------------------------------------


def test_all_options_of_a_sync_reach_the_job(with_connectors: Command, tmp_path: Path) -> None:
    (tmp_path / "sync.yaml").write_text(SPEC)
    job = with_connectors.job(
        "enqueue", "sync", "-f", f"{tmp_path}/sync.yaml", "--set", "mode=incremental", "--set", "batch_size=100",
        "--set", "source.config.page_size=5", "--set", "targets.0.name=erp", "--set", 'targets.0.mapping={"a": "name"}',
        "--entity", "42", "--dry-run", "--override-start-date", "2026-03-01T08:00:00+01:00", "--name", "by hand",
    )  # fmt: skip
    found = with_connectors.ok("job", "show", job, "--json").document
    assert (found["kind"], found["queue"], found["name"], found["timeout"]) == ("SYNC", "sync", "by hand", None)
    spec = found["spec"]
    assert spec["source"]["config"] == {"page_size": 5, "size_param": "n"}
    assert (spec["mode"], spec["batch_size"], spec["entity"], spec["dry_run"]) == ("incremental", 100, "42", True)
    assert spec["override_start_date"] == "2026-03-01T07:00:00Z"
    assert spec["targets"][0]["name"] == "erp"
    assert spec["targets"][0]["mapping"] == {"a": "name"}
    assert spec["mapping"] == {"name": "full_name"}
    assert found["fanout"]["total"] == 0
    assert "children  0" in with_connectors.ok("job", "show", job).out
    assert with_connectors.ok("job", "children", job, "--status", "failed", "--json").items == []
    assert with_connectors.ok("job", "exports", job, "--json").items == []


def test_syncs_are_listed_by_their_domain(with_connectors: Command) -> None:
    job = with_connectors.job("enqueue", "sync", "-f", "-", stdin=SPEC)

    def ids(*filters: str) -> list[str]:
        return [one["id"] for one in with_connectors.ok("job", "list", "--json", *filters).items]

    assert ids("--domain", "customers") == ids("--domain-end", "SOURCE", "--kind", "sync") == [job]
    assert ids("--domain", "orders") == ids("--domain-end", "target") == ids("--parent", job) == []
    with_connectors.refused("validation_error", "job", "list", "--domain-end", "middle")


def test_a_sync_that_names_what_is_not_there_is_refused_when_it_is_enqueued(with_connectors: Command) -> None:
    def refused(code: str, *options: str, spec: str = SPEC) -> str:
        return with_connectors.refused(code, "enqueue", "sync", "-f", "-", *options, stdin=spec).err

    assert "/spec/source/connector" in refused("unknown_connector", "--set", "source.connector=none")
    assert "/spec/targets/0/secrets/a" in refused("unknown_secret", "--set", 'targets.0.secrets={"a": "none"}')
    assert "/spec/source/config/pge" in refused("validation_error", "--set", "source.config.pge=5")
    with_connectors.ok("connector", "rm", "crm")
    refused("unknown_connector")
    with_connectors.refused("unknown_connector", "workflow", "apply", "-f", "-", stdin=WORKFLOW)


def test_mistakes_in_a_sync_are_told_with_their_place(command: Command, tmp_path: Path) -> None:
    def refused(code: str, *options: str, spec: str = SPEC) -> str:
        return command.refused(code, "enqueue", "sync", "-f", "-", *options, stdin=spec).err

    assert "at character 2, at /spec/key" in refused("invalid_expression", "--set", "key=[")
    assert "/spec/mapping/name" in refused("invalid_expression", "--set", "mapping.name=length(")
    assert "leads nowhere" in refused("validation_error", "--set", "targets.7.name=x")
    assert "leads nowhere" in refused("validation_error", "--set", "domain.x=1")
    assert "offset" in refused("validation_error", "--override-start-date", "yesterday")
    refused("validation_error", "--set", "mode")
    refused("validation_error", spec="[]")
    refused("invalid_yaml", spec="a: [")
    command.refused("validation_error", "enqueue", "sync", "-f", f"{tmp_path}/none.yaml")
    spec = '{"domain": "d", "target": "t", "entity_key": "k"}'
    command.refused("not_enqueuable", "enqueue", "replication", "--spec", spec)


# --- what Syncs remember -----------------------------------------------------------------------------------------------


def test_a_domain_that_was_never_read_has_no_state(command: Command) -> None:
    assert command.ok("sync", "state", "list", "--json").items == []
    command.refused("not_found", "sync", "state", "show", "customers")
    command.refused("not_found", "sync", "state", "reset", "customers")
