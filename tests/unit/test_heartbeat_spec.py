"""What a probe's spec refuses, and what becomes of headers whose values are secrets."""

from typing import Any

import pytest

from jobq.errors import InvalidInput
from jobq.specs import MAX_HEADER_BYTES, Container, Heartbeat, Spec
from jobq.validation import parse


def probe(**fields: Any) -> Heartbeat:
    return parse(Heartbeat, {"endpoint": "https://example.org/", **fields}, "/spec")


def refusal(**fields: Any) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        probe(**fields)
    assert caught.value.status == 422
    return caught.value


def test_the_empty_text_is_refused_because_every_body_contains_it() -> None:
    error = refusal(body_contains="")
    assert error.pointer == "/spec/body_contains"
    assert "leave it out" in error.message


@pytest.mark.parametrize("status", [100, 101, 103, 199])
def test_an_interim_status_is_refused_because_it_never_ends_a_request(status: int) -> None:
    error = refusal(expected_status_code=status)
    assert error.pointer == "/spec/expected_status_code"
    assert "1xx is never the last one" in error.message


@pytest.mark.parametrize("status", [-1, 0, 99, 600])
def test_a_number_that_is_no_status_is_refused(status: int) -> None:
    assert refusal(expected_status_code=status).pointer == "/spec/expected_status_code"


@pytest.mark.parametrize("status", [200, 204, 301, 404, 599])
def test_every_final_status_can_be_expected(status: int) -> None:
    assert probe(expected_status_code=status).expected_status_code == status


@pytest.mark.parametrize("char", [*map(chr, range(32)), "\x7f", "\x80", "\x9f"])
def test_a_control_character_in_a_header_is_refused_and_its_value_is_not_shown(char: str) -> None:
    error = refusal(headers={"X-Key": f"s3cr3t{char}"})
    assert "control characters" in error.message
    assert "X-Key" in error.message
    assert "s3cr3t" not in str(error)


def test_headers_of_any_other_characters_are_accepted() -> None:
    probe(headers={"X-Key": 'a b;q=0.5, "ü" é \u00a0'})


def test_all_headers_together_have_a_size() -> None:
    most = MAX_HEADER_BYTES - len("A: \r\nB: \r\n")
    probe(headers={"A": "x" * (most // 2), "B": "x" * (most - most // 2)})
    for headers in ({"A": "x" * (most // 2), "B": "x" * (most - most // 2 + 1)}, {"A": "ü" * (MAX_HEADER_BYTES // 2)}):
        error = refusal(headers=headers)
        assert (error.pointer, "at most 16384" in error.message) == ("/spec/headers", True)


def test_many_small_headers_have_the_same_limit() -> None:
    assert "at most 16384" in refusal(headers={f"X-{number}": "" for number in range(3000)}).message


# --- secret headers --------------------------------------------------------------------------------------------------


def test_a_secret_header_names_a_secret_which_the_worker_hands_over() -> None:
    spec = probe(headers={"Accept": "a/b"}, secret_headers={"Authorization": "shop-token"})
    assert spec.secret_names() == {"shop-token"}
    assert spec.request_headers({"shop-token": "Bearer s3cr3t"}) == {"Accept": "a/b", "Authorization": "Bearer s3cr3t"}
    assert "s3cr3t" not in repr(spec)
    assert spec.model_dump()["secret_headers"] == {"Authorization": "shop-token"}


def test_a_probe_without_secrets_asks_for_none() -> None:
    assert probe(headers={"A": "b"}).secret_names() == frozenset()


@pytest.mark.parametrize("name", ["", "a b", "X\r\nY", "Content-Length", "transfer-encoding"])
def test_the_name_of_a_secret_header_is_checked_as_any_other(name: str) -> None:
    refusal(secret_headers={name: "shop-token"})


def test_a_header_has_one_value_in_clear_or_from_a_secret() -> None:
    error = refusal(headers={"authorization": "Bearer s3cr3t"}, secret_headers={"Authorization": "shop-token"})
    assert "keep one" in error.message
    assert "s3cr3t" not in str(error)


@pytest.mark.parametrize("value", ["s3cr3t\n", "s3cr3t\r\nX: y", "s3cr3t\x00", "s3cr3t" * 3000])
def test_a_secret_that_cannot_be_a_header_is_refused_without_showing_it(value: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        probe(secret_headers={"Authorization": "shop-token"}).request_headers({"shop-token": value})
    assert "s3cr3t" not in str(caught.value)
    assert "/spec/secret_headers" in str(caught.value)


def test_a_secret_that_was_not_handed_over_is_missing() -> None:
    with pytest.raises(InvalidInput) as caught:
        probe(secret_headers={"Authorization": "shop-token"}).request_headers({})
    assert caught.value.code == "secret_missing"


# --- which secrets a spec needs --------------------------------------------------------------------------------------


def test_a_container_needs_the_secrets_of_its_files_and_of_its_registry() -> None:
    assert Container(image="a").secret_names() == frozenset()
    assert Container(image="a", secrets={"f": "one"}, registry_secret="two").secret_names() == {"one", "two"}


def test_a_plugins_spec_needs_what_its_field_secrets_names() -> None:
    class Plain(Spec):
        name: str = ""

    class Named(Spec):
        secrets: dict[str, str] | None = None

    assert Plain().secret_names() == Named().secret_names() == frozenset()
    assert Named(secrets={"key": "tenant-key"}).secret_names() == {"tenant-key"}
