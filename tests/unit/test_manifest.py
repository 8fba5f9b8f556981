from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobq.errors import Forbidden, InvalidInput
from jobq.manifest import load_file, load_manifest, load_spec
from jobq.settings import Policy, Settings
from jobq.validation import MAX_BYTES

TWO = """
- name: shop
  kind: HEARTBEAT
  spec: {endpoint: https://example.org/}
  interval: PT5M
  start_at: 2026-03-01T08:00:00+01:00
- name: report
  kind: CONTAINER
  spec:
    image: busybox
    command: [echo, "yes"]
  cron: 0 3 * * *
  timezone: Europe/Berlin
  timeout: 45
  stale_after: null
  retry: {max_attempts: 3, retry_exit_codes: [75]}
"""


def indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


@pytest.mark.parametrize(
    "text",
    [TWO, f"workflows:\n{indented(TWO)}", TWO.replace("- name: report", "---\n- name: report"), f"---\n---\n{TWO}\n---\n"],
)  # fmt: skip
def test_a_file_holds_a_list_or_workflows_in_one_or_several_documents(text: str, tmp_path: Path) -> None:
    file = tmp_path / "workflows.yaml"
    file.write_text(text)
    for shop, report in (load_file(text), load_file(file)):
        assert (shop.name, shop.interval) == ("shop", timedelta(minutes=5))
        assert shop.start_at == datetime(2026, 3, 1, 7, tzinfo=UTC)
        assert (report.cron, report.timezone, report.timeout) == ("0 3 * * *", "Europe/Berlin", timedelta(seconds=45))
        assert (report.stale_after, report.retry.max_attempts) == (None, 3)
        assert report.spec["command"] == ["echo", "yes"]


def test_a_document_may_be_one_workflow_and_json_is_yaml() -> None:
    one = load_file('{"name": "a", "kind": "HEARTBEAT", "spec": {"endpoint": "https://example.org"}}')
    assert [workflow.name for workflow in one] == ["a"]


def test_with_settings_the_workflows_come_checked() -> None:
    shop, report = load_file(TWO, Settings(database_url="sqlite://"))
    assert (shop.queue, report.queue) == ("heartbeat", "container")
    with pytest.raises(Forbidden) as raised:
        load_file(TWO, Settings(database_url="sqlite://", policy=Policy(images=["other"])))
    assert raised.value.pointer == "/1/spec/image"
    assert raised.value.message.startswith("Workflow 2 ('report'): ")


@pytest.mark.parametrize(
    ("text", "code", "pointer", "part"),
    [
        (TWO.replace("PT5M", "PT0S"), "invalid_schedule", "/0/interval", "Workflow 1 ('shop')"),
        (TWO.replace("2026-03-01T08:00:00+01:00", "2026-03-01"), "invalid_schedule", "/0/start_at", "Workflow 1"),
        (TWO.replace("2026-03-01T08:00:00+01:00", "2026-03-01 08:00:00"), "invalid_schedule", "/0/start_at", "offset"),
        (TWO.replace("timeout: 45", "timeout: -1"), "invalid_timeout", "/1/timeout", "Workflow 2 ('report')"),
        (TWO.replace("timezone", "timezon"), "validation_error", "/1/timezon", "no known field"),
        (TWO.replace("report", "shop"), "validation_error", "/1/name", "taken by workflow 1"),
        (f"workflows:\n{indented(TWO)}".replace("shop", '"a\\0"'), "validation_error", "/workflows/0/name", "NUL"),
        ("- 5", "validation_error", "/0", "object"),
        ("- kind: HEARTBEAT\n  state: .nan", "invalid_json", "/0/state", "NaN"),
        ("- kind: HEARTBEAT\n  spec: !!binary aGk=", "validation_error", "/0/spec", "bytes"),
        ("", "validation_error", "", "no workflow"),
        ("workflows.yaml", "validation_error", "", "pass a Path"),
        ("workflows: {a: 1}", "validation_error", "/workflows", "list"),
        ("workflows: []\nother: 1", "validation_error", "/workflows", "alone"),
    ],
)
def test_the_first_bad_workflow_is_named_with_its_pointer(text: str, code: str, pointer: str, part: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        load_file(text)
    assert (raised.value.code, raised.value.pointer) == (code, pointer)
    assert part in str(raised.value)


BOMB = "a: &a [x, x, x]\n" + "".join(f"b{n}: &b{n} [*{'a' if n == 0 else f'b{n - 1}'}, *a]\n" for n in range(30))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (BOMB, "aliases"),
        ("a: &x 1\nb: *x", "line 2, column 4"),
        ("a: &x [*x]", "aliases"),
        ("a: 1\na: 2", "'a' comes twice (line 2, column 1)"),
        ("a: {b: 1, b: 2}", "'b' comes twice"),
        ("1: a", "a key must be text (line 1, column 1)"),
        ("? [a]\n: b", "a key must be text"),
        ("yes: a", "a key must be text"),
        ("<<: {a: 1}", "merge"),
        ("[" * 33 + "]" * 33, "deeper than 32"),
        ("[" * 100_000, "deeper than 32"),
        ("a: [", "YAML"),
        ("a: !!python/object/apply:os.system [id]", "constructor"),
        ("a: !!int x", "YAML"),
        ("a: " + "9" * 5000, "YAML"),
        ("a: \x07", "YAML"),
    ],
    ids=range(16),
)
def test_what_is_no_yaml_or_more_than_json_can_say_is_invalid_yaml(text: str, part: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        load_file(text)
    assert raised.value.code == "invalid_yaml"
    assert part in str(raised.value)


def test_a_file_that_cannot_be_read_or_is_too_large_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be read"):
        load_file(tmp_path / "none.yaml")
    with pytest.raises(InvalidInput, match="cannot be read"):
        load_file(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInput, match="not UTF-8"):
        load_file(tmp_path / "binary")
    with pytest.raises(InvalidInput) as raised:
        load_file("#" * (MAX_BYTES + 1))
    assert raised.value.code == "payload_too_large"


@given(st.text(alphabet="ab:-[]{},&*!?|>'\"#% \n0.~<=", max_size=40))
@settings(deadline=None)
def test_whatever_the_text_it_is_read_or_refused(text: str) -> None:
    try:
        load_file(text)
    except InvalidInput as error:
        str(error).encode()


# --- connectors --------------------------------------------------------------------------------------------------------

SHOP = """
kind: Connector
name: shop
type: http
config: {url: "https://shop.example/"}
secrets: {token: shop-token}
"""


def test_connectors_stand_beside_workflows() -> None:
    found = load_manifest(f"{SHOP}---{TWO}---{SHOP.replace('name: shop', 'name: crm')}")
    assert [one.name for one in found.workflows] == ["shop", "report"]
    assert [(one.name, one.type, one.secrets) for one in found.connectors] == [
        ("shop", "http", {"token": "shop-token"}),
        ("crm", "http", {"token": "shop-token"}),
    ]
    with pytest.raises(InvalidInput, match="connectors too"):
        load_file(SHOP)


@pytest.mark.parametrize(
    ("text", "code", "pointer", "part"),
    [
        (SHOP.replace("http\n", "ftp\n"), "unknown_connector", "/type", "Connector 1 ('shop')"),
        (SHOP.replace("url", "password"), "secret_in_config", "/config/password", "Connector 1"),
        (SHOP.replace("type", "typ"), "validation_error", "/type", "is required"),
        (f"{SHOP}---{SHOP}", "validation_error", "/name", "Connector 2 ('shop'): The name is taken by connector 1"),
    ],
)
def test_a_bad_connector_is_refused_where_it_stands(text: str, code: str, pointer: str, part: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        load_manifest(text, Settings(database_url="sqlite://"))
    assert (raised.value.code, raised.value.pointer) == (code, pointer)
    assert part in raised.value.message


def test_a_spec_is_one_object() -> None:
    assert load_spec("domain: a\nsource: {connector: shop}\n") == {"domain": "a", "source": {"connector": "shop"}}
    for text in ("", "- a", "a: 1\n---\nb: 2", "text"):
        with pytest.raises(InvalidInput, match="one object"):
            load_spec(text)
