"""Stored connectors, and what a Sync refers to."""

from collections.abc import Iterator
from typing import Any

import pytest

from jobq.connections import Connector
from jobq.errors import InvalidInput, NotFound
from jobq.operations import Connectors
from jobq.settings import Policy, Settings
from jobq.store import connectors, secrets
from jobq.store.database import Database
from jobq.sync import Sync
from jobq.validation import parse
from tests.stores import Store

TENANT = "acme"
SHOP: dict[str, Any] = {
    "name": "shop", "type": "http", "config": {"url": "https://shop.example/", "page_size": 100, "size_param": "n"},
    "secrets": {"token": "shop-token"},
}  # fmt: skip


@pytest.fixture
def desk(database_url: str) -> Iterator[Connectors]:
    """What ``JobQ.connectors`` is."""
    database = Database(database_url)
    yield Connectors(database, Settings(database_url=database_url), TENANT, "tests")
    database.close()


def put(store: Store, tenant: str = TENANT, **fields: Any) -> str:
    return store.do(connectors.put, tenant, parse(Connector, {**SHOP, **fields}))


def check(store: Store, sync: dict[str, Any], policy: Policy | None = None) -> None:
    spec = {"domain": "customers", "source": {"connector": "shop"}, **sync}
    store.look(connectors.check_references, TENANT, spec, policy or Policy())


# --- what is stored ----------------------------------------------------------------------------------------------------


def test_a_connector_is_created_then_updated_and_left_alone_where_nothing_changes(store: Store) -> None:
    assert put(store) == "created"
    first = store.look(connectors.get, TENANT, "shop")
    assert first is not None
    assert (first.type, first.config, first.secrets) == ("http", SHOP["config"], SHOP["secrets"])
    assert put(store) == "unchanged"
    assert store.look(connectors.get, TENANT, "shop") == first
    assert put(store, config={"url": "https://other.example/"}) == "updated"
    second = store.look(connectors.get, TENANT, "shop")
    assert second is not None
    assert second.config == {"url": "https://other.example/"}
    assert second.created_at == first.created_at
    assert second.updated_at >= first.updated_at


def test_each_tenant_has_its_own(store: Store) -> None:
    put(store)
    put(store, name="crm")
    put(store, tenant="other", config={})
    assert [one.name for one in store.look(connectors.list_all, TENANT)] == ["crm", "shop"]
    assert store.do(connectors.remove, TENANT, "shop") is True
    assert store.do(connectors.remove, TENANT, "shop") is False
    assert [one.name for one in store.look(connectors.list_all, "other")] == ["shop"]


def test_the_desk_applies_all_or_none_and_records_who_did_it(desk: Connectors, database_url: str) -> None:
    good = parse(Connector, SHOP)
    bad = parse(Connector, {**SHOP, "name": "bad", "type": "ftp"})
    with pytest.raises(InvalidInput) as caught:
        desk.apply([good, bad])
    assert (caught.value.code, caught.value.pointer) == ("unknown_connector", "/type")
    assert desk.list() == []
    assert [one.what for one in desk.apply([good])] == ["created"]
    assert [one.what for one in desk.apply([good])] == ["unchanged"]
    assert desk.put(**{**SHOP, "secrets": {}}).secrets == {}
    assert desk.get("shop").secrets == {}
    desk.remove("shop")
    for verb in (desk.get, desk.remove):
        with pytest.raises(NotFound):
            verb("shop")
    database = Database(database_url)
    with database.read() as conn:
        rows = conn.exec_driver_sql("SELECT action, actor FROM jobq_events ORDER BY id").all()
    database.close()
    assert [tuple(row) for row in rows] == [("created", "tests"), ("updated", "tests"), ("remove", "tests")]


@pytest.mark.parametrize(
    ("fields", "code", "pointer"),
    [
        ({"name": "a b"}, "validation_error", "/name"),
        ({"name": ""}, "validation_error", "/name"),
        ({"type": "ftp"}, "unknown_connector", "/type"),
        ({"config": {"password": "hush"}}, "secret_in_config", "/config/password"),
        ({"config": {"url": "https://u:hush@example.org"}}, "secret_in_config", "/config/url"),
        ({"config": []}, "validation_error", "/config"),
        ({"secrets": {"token": "a b"}}, "validation_error", "/secrets/token"),
        ({"colour": "blue"}, "validation_error", "/colour"),
    ],
)
def test_the_desk_refuses_what_cannot_be_stored(
    desk: Connectors, fields: dict[str, Any], code: str, pointer: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        desk.put(**{**SHOP, **fields})
    assert (caught.value.code, caught.value.pointer) == (code, pointer)
    assert "hush" not in str(caught.value)


# --- what a Sync refers to ---------------------------------------------------------------------------------------------


def test_a_sync_changes_single_fields_of_a_stored_connector(store: Store) -> None:
    put(store)
    spec = Sync.model_validate(
        {
            "domain": "d",
            "source": {"connector": "shop", "config": {"page_size": 5}, "secrets": {"key": "other"}},
            "targets": [{"type": "http", "config": {"url": "https://crm.example/{key}"}}, {"type": "store"}],
        }
    )
    source, target = store.look(
        connectors.resolve, TENANT, [(pointer, reference) for pointer, _, reference in spec.connections()]
    )
    assert source.type == "http"
    assert source.config == {"url": "https://shop.example/", "page_size": 5, "size_param": "n"}
    assert source.secrets == {"token": "shop-token", "key": "other"}
    assert target == ("http", {"url": "https://crm.example/{key}"}, {})


def test_what_a_sync_names_must_be_there(store: Store) -> None:
    for tenant in (TENANT, "other"):
        put(store, tenant=tenant, name="shop" if tenant == TENANT else "crm")
    target = {"connector": "crm"}

    def refusal(**spec: Any) -> tuple[str, str]:
        with pytest.raises(InvalidInput) as caught:
            check(store, spec)
        return caught.value.code, caught.value.pointer

    assert refusal(source={"connector": "none"}) == ("unknown_connector", "/spec/source/connector")
    assert refusal(targets=[target]) == ("unknown_connector", "/spec/targets/0/connector")
    assert refusal() == ("unknown_secret", "/spec/source/connector")
    store.do(secrets.put, TENANT, "shop-token", "sealed")
    check(store, {})
    own = {"connector": "shop", "secrets": {"token": "gone"}}
    assert refusal(source=own) == ("unknown_secret", "/spec/source/secrets/token")
    inline = {"type": "http", "config": {"url": "https://example.org/"}, "secrets": {"a": "gone"}}
    assert refusal(targets=[{"type": "store"}, inline]) == ("unknown_secret", "/spec/targets/1/secrets/a")


def test_a_stored_connector_is_judged_with_what_the_sync_adds(store: Store) -> None:
    put(store, config={"url": "https://shop.example/"}, secrets={})
    for config, code, pointer in (
        ({"pge": 5}, "validation_error", "/spec/source/config/pge"),
        ({"url": "http://127.0.0.1/"}, None, "/spec/source/config/url"),
        ({"headers": {"X-Token": "hush"}}, "secret_in_config", "/spec/source/config/headers/X-Token"),
    ):
        with pytest.raises(InvalidInput) as caught:
            check(store, {"source": {"connector": "shop", "config": config}})
        assert caught.value.pointer == pointer
        assert code in {None, caught.value.code}
    check(
        store,
        {"source": {"connector": "shop", "config": {"url": "http://127.0.0.1/"}}},
        Policy(probe_networks=["127.0.0.0/8"]),
    )
    put(store, name="files", type="csv", config={}, secrets={})
    with pytest.raises(InvalidInput, match="'path' is required"):
        check(store, {"source": {"connector": "files"}})
