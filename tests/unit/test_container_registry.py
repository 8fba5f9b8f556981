"""Logins for registries: what a secret must hold, what the engine gets, and what nobody sees."""

import base64
import json

import pytest

from jobq.errors import InvalidInput
from jobq.specs import Container
from jobq.states import Reason
from jobq.validation import parse
from workers.container import refusals
from workers.container.engine import EngineRefused
from workers.container.registry import DOCKER_HUB, auth_header, masked, read_login, server_of

LOGIN = {"username": "robot", "password": "s3cr3t?>~ü"}


@pytest.mark.parametrize("login", [LOGIN, {"identitytoken": "s3cr3t"}])
def test_a_secret_holds_a_name_with_a_password_or_a_token(login: dict[str, str]) -> None:
    assert read_login("registry", json.dumps(login)) == login


@pytest.mark.parametrize(
    "secret",
    ["s3cr3t", "", "[]", "null", '"s3cr3t"', "{", '{"username": "s3cr3t"}', '{"password": "s3cr3t"}', '{"s3cr3t": "x"}',
     '{"username": "robot", "password": 7}', '{"username": "robot", "password": ""}', '{"identitytoken": null}',
     '{"identitytoken": ["s3cr3t"]}', '{"username": "robot", "password": "s3cr3t", "email": "s3cr3t"}',
     '{"username": "robot", "password": "s3cr3t", "password": "s3cr3t"}', '{"identitytoken": "' + "[" * 100_000],
)  # fmt: skip
def test_a_secret_that_is_no_login_is_refused_without_showing_it(secret: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_login("registry", secret)
    assert "'registry' holds no login" in str(caught.value)
    assert "s3cr3t" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("image", "server"),
    [("busybox", DOCKER_HUB), ("team/app:1", DOCKER_HUB), ("docker.io/team/app", DOCKER_HUB), ("localhost/app", "localhost"),
     ("registry.example.org/app@sha256:ab", "registry.example.org"), ("host:5000/a/b:c", "host:5000"), ("Host/app", "Host")],
)  # fmt: skip
def test_a_login_is_for_the_registry_that_the_image_names(image: str, server: str) -> None:
    assert server_of(image) == server


def test_the_engine_gets_the_login_as_base64_that_is_safe_in_a_header() -> None:
    header = auth_header("host:5000/a", LOGIN)
    assert json.loads(base64.urlsafe_b64decode(header)) == {**LOGIN, "serveraddress": "host:5000"}
    assert not {"+", "/", "\n"} & set(header)


def test_a_registry_that_repeats_the_password_is_not_quoted() -> None:
    assert masked("no s3cr3t?>~ü for robot", LOGIN) == "no *** for robot"
    assert masked("no s3cr3t", {"identitytoken": "s3cr3t"}) == "no ***"
    assert masked("a message", {"username": "robot", "password": "a"}) == "a message"
    assert masked("a message", None) == "a message"


def test_a_refused_login_says_which_secret_to_look_at_and_is_not_tried_again() -> None:
    for words in ("unauthorized: authentication required", "Head http://h/v2/a/manifests/1: no basic auth credentials"):
        asked = refusals.pull_refused("h:5/a", EngineRefused(500, words), "registry")
        nobody = refusals.pull_refused("h:5/a", EngineRefused(500, words))
        assert (asked.error_class, asked.retry) == (nobody.error_class, nobody.retry) == ("pull_denied", False)
        assert "the login in the secret 'registry'" in asked.message
        assert "registry_secret" in nobody.message


def test_an_engine_with_fewer_processors_says_how_many_there_are() -> None:
    words = "Range of CPUs is from 0.01 to 2.00, as there are only 2 CPUs available"
    outcome = refusals.create_refused(EngineRefused(400, words), 500)
    assert (outcome.reason, outcome.retry) == (Reason.INVALID, False)
    assert outcome.message == "cpus: 500 is more than there is: the host has 2 CPUs; ask for 2 at most"
    one = refusals.create_refused(EngineRefused(400, "as there are only 1 CPUs available"), 1.5)
    assert "the host has 1 CPU;" in one.message


def test_the_name_of_the_secret_is_part_of_the_spec_and_must_not_be_empty() -> None:
    assert Container(image="a", registry_secret="registry").registry_secret == "registry"
    for name in ("", "\x00"):
        with pytest.raises(InvalidInput) as caught:
            parse(Container, {"image": "a", "registry_secret": name}, "/spec")
        assert caught.value.pointer == "/spec/registry_secret"
