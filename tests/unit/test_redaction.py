"""No secret passes, in whatever form it comes back."""

import base64
import html
import json
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from jobq.models import Outcome
from workers.redaction import MAX_SHOWN, Redaction

FORMS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "in a URL": lambda secret: quote(secret, safe=""),
    "in a path": quote,
    "in a form": quote_plus,
    "in a URL, small letters": lambda secret: "".join(f"%{byte:02x}" if chr(byte) not in UNRESERVED else chr(byte) for byte in secret.encode()),
    "in JSON": lambda secret: json.dumps({"you": secret}),
    "in JSON as UTF-8": lambda secret: json.dumps({"you": secret}, ensure_ascii=False),
    "in JSON of PHP": lambda secret: json.dumps(secret).replace("/", "\\/"),
    "in HTML": html.escape,
    "in base64": lambda secret: base64.b64encode(secret.encode()).decode(),
    "in base64 for URLs": lambda secret: base64.urlsafe_b64encode(secret.encode()).decode().rstrip("="),
    "in hex": lambda secret: secret.encode().hex(),
}  # fmt: skip
UNRESERVED = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-~"
secrets = st.text(
    st.sampled_from("abcXYZ0189 /+=&%\"'\\<>{}:@?#_-.~äß鍵🗝\n"), min_size=8, max_size=40
).filter(lambda text: len(set(text)) > 5)  # fmt: skip


@given(secrets, st.sampled_from(list(FORMS)))
@example('p@ss/w"ö\\rd+&=', "in JSON of PHP")
def test_a_secret_is_hidden_in_every_form(secret: str, form: str) -> None:
    written = FORMS[form](secret)
    shown = Redaction([secret]).hide(f"<<{written}>>")
    assert "***" in shown
    assert written.strip('{}" ').removeprefix("you") not in shown
    assert secret not in shown


@given(st.binary(min_size=8, max_size=30).map(lambda raw: base64.b32encode(raw).decode()), st.text("abc:", max_size=7))
def test_a_secret_is_hidden_in_basic_authentication_of_whatever_user(secret: str, user: str) -> None:
    encoded = base64.b64encode(f"{user}:{secret}".encode()).decode()
    shown = Redaction([secret]).hide(f"Basic {encoded}")
    left = shown.removeprefix("Basic ").split("***")
    assert len(left) == 2
    assert len(left[1]) <= 4  # of at most two characters


def test_a_key_is_hidden_line_by_line() -> None:
    key = "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG9w0B\nAQEFAASCBKcwggSjAgEAAoIB\n-----END KEY-----\n"
    hide = Redaction([key]).hide
    assert [hide(line) for line in key.splitlines()] == ["***"] * 4
    assert hide("}") == "}"


@given(secrets.filter(lambda text: not text.startswith(" ")), st.integers(4, 30), st.text("xyz", max_size=10))
def test_what_was_cut_in_the_middle_of_a_secret_does_not_show_its_beginning(
    secret: str, kept: int, before: str
) -> None:
    assume(kept < len(secret))
    assert secret[:kept] not in Redaction([secret]).hide_cut(before + secret[:kept])


def test_white_space_before_it_brings_no_part_of_a_secret_into_a_message() -> None:
    secret = "hunter2-is-the-secret"
    shown = Redaction([secret])(" " * 5000 + secret[:12])
    assert "hunter2" not in shown
    assert len(Redaction([secret])("y" * 1000)) == MAX_SHOWN + 1


def test_an_outcome_is_hidden_as_a_whole() -> None:
    outcome = Outcome.failed("no hunter2", error_class="hunter2", result={"hunter2": ["is hunter2", 1, None, True]})
    hidden = Redaction(["hunter2"]).outcome(outcome)
    assert (hidden.message, hidden.error_class) == ("no ***", "***")
    assert hidden.result == {"***": ["is ***", 1, None, True]}
    assert (hidden.status, hidden.retry) == (outcome.status, outcome.retry)


@pytest.mark.parametrize("secret", ["", "a", "abc"])
def test_a_short_secret_hides_nothing_rather_than_everything(secret: str) -> None:
    assert Redaction([secret]).hide("abc and a") == "abc and a"


def test_it_does_not_show_what_it_hides() -> None:
    assert "hunter2" not in repr(Redaction(["hunter2"]))
