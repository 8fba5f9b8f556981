"""What a container spec refuses, and what the operator's policy adds: RELIABILITY.md section 5, rows of containers."""

import math
from typing import Any

import pytest
from pydantic import ValidationError

from jobq.errors import Forbidden, InvalidInput, JobQError
from jobq.settings import Policy
from jobq.specs import Container, MiB


def refusal(policy: Policy | None = None, **fields: Any) -> Exception:
    """What is raised for a spec with these fields."""
    with pytest.raises((JobQError, ValidationError)) as caught:
        Container(**{"image": "busybox", **fields}).check(policy or Policy())
    return caught.value


def code(error: Exception) -> str:
    return error.code if isinstance(error, JobQError) else "validation_error"


@pytest.mark.parametrize(
    "image",
    ["", " ", "UPPER", "a b", "-flag", "busybox:", "busybox@sha256:short", "a//b", "busybox\n", "x" * 600, "bösybox", "$(id)",
     "busybox:tag with space", "../escape", "http://host/image"],
)  # fmt: skip
def test_an_image_that_is_no_reference_is_invalid(image: str) -> None:
    assert code(refusal(image=image)) == "invalid_image"


@pytest.mark.parametrize(
    "image",
    ["busybox", "busybox:1.36", "library/busybox", "registry.example:5000/team/app:v1.2-rc_3", "8.8.8.8/app",
     "busybox@sha256:" + "a" * 64, "host:5000/a/b:tag@sha256:" + "0" * 64],
)  # fmt: skip
def test_every_form_of_an_image_reference_is_accepted(image: str) -> None:
    Container(image=image).check(Policy())


@pytest.mark.parametrize("image", ["evil", "trusted/../evil", "trusted", "x/trusted/app"])
def test_an_image_that_the_operator_did_not_list_is_not_allowed(image: str) -> None:
    assert code(refusal(Policy(images=["trusted/*"]), image=image)) in {"image_not_allowed", "invalid_image"}
    Container(image="trusted/app:1").check(Policy(images=["trusted/*"]))


INSIDE = ["127.0.0.1:5000/app", "localhost/app", "localhost:6379/app", "10.0.0.1/app", "169.254.169.254/latest/meta-data",
          "metadata.google.internal/x", "0x7f.1:80/app", "2130706433:80/app", "192.168.1.1:8080/a/b:tag"]  # fmt: skip


@pytest.mark.parametrize("image", INSIDE)
def test_a_registry_inside_the_operators_network_is_asked_only_if_its_name_is_listed(image: str) -> None:
    for images in (["*"], ["*/*"], ["?*:*/*"]):
        assert code(refusal(Policy(images=images), image=image)) == "image_not_allowed"
    Container(image=image).check(Policy(images=["*", f"{image.partition('/')[0]}/*"]))


def test_a_registry_in_a_network_that_probes_may_reach_may_be_asked_too() -> None:
    Container(image="127.0.0.1:5000/app").check(Policy(probe_networks=["127.0.0.0/8"]))


@pytest.mark.parametrize(
    "option",
    ["privileged", "mounts", "volumes", "volumes_from", "binds", "tmpfs", "devices", "device_requests", "gpus", "cap_add",
     "security_opt", "pid_mode", "ipc_mode", "network_mode", "host_config", "userns_mode", "uts_mode", "sysctls",
     "cgroup_parent", "cgroupns_mode", "runtime", "group_add", "ulimits", "links", "extra_hosts"],
)  # fmt: skip
def test_options_that_would_give_rights_are_forbidden_whatever_they_say(option: str) -> None:
    error = refusal(Policy(), **{option: False})
    assert isinstance(error, Forbidden)
    assert (error.code, error.pointer) == ("forbidden_option", f"/spec/{option}")


@pytest.mark.parametrize("network", ["host", "container:abc", "bridge", "default", "internal", "host "])
def test_a_network_that_the_operator_did_not_list_is_forbidden(network: str) -> None:
    assert code(refusal(network=network)) == "forbidden_option"


@pytest.mark.parametrize("network", ["host", "container:abc"])
def test_the_host_and_other_containers_networks_are_forbidden_even_if_listed(network: str) -> None:
    assert code(refusal(Policy(networks=[network]), network=network)) == "forbidden_option"


def test_a_listed_network_and_none_at_all_are_allowed() -> None:
    Container(image="busybox", network="jobs").check(Policy(networks=["jobs"]))
    Container(image="busybox", network="none").check(Policy())
    Container(image="busybox").check(Policy())


@pytest.mark.parametrize("env", [{"A=B": "c"}, {"": "c"}, {"A\x00": "c"}, {"BIG": "x" * 65_000, "MORE": "y" * 65_000}])
def test_a_name_that_the_engine_would_misread_or_a_huge_environment_is_invalid(env: dict[str, str]) -> None:
    assert code(refusal(env=env)) == "invalid_env"


def test_a_nul_byte_is_refused_wherever_it_stands() -> None:
    for fields in (
        {"env": {"A": "\x00"}},
        {"command": ["a\x00"]},
        {"user": "\x00"},
        {"files": {"/a": "\x00"}},
        {"working_dir": "\x00"},
    ):
        assert code(refusal(**fields)) == "validation_error"


@pytest.mark.parametrize(
    "fields",
    [{"memory": 6 * MiB - 1}, {"memory": "5MB"}, {"memory": 0}, {"pids": 0}, {"pids": -5}, {"cpus": 0}, {"cpus": -1},
     {"cpus": 100_000}, {"cpus": math.nan}, {"cpus": math.inf}],
)  # fmt: skip
def test_resources_that_the_engine_would_refuse_or_misread_are_invalid(fields: dict[str, Any]) -> None:
    assert code(refusal(**fields)) == "invalid_resources"


@pytest.mark.parametrize("memory", ["lots", "-1", "1e9", "64 MBit", True, None, [64], math.nan])
def test_a_size_that_is_none_is_refused(memory: object) -> None:
    assert code(refusal(memory=memory)) == "validation_error"


@pytest.mark.parametrize(
    ("text", "count"), [("64MB", 64 * MiB), ("64m", 64 * MiB), ("1GiB", 1024 * MiB), (" 7.5 MB ", 7864320)]
)
def test_a_size_is_written_as_people_write_it(text: str, count: int) -> None:
    assert Container(image="busybox", memory=text).memory == count  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("policy", "fields"),
    [(Policy(max_memory=128 * MiB), {"memory": "129MB"}), (Policy(max_cpus=1), {"cpus": 1.5}), (Policy(max_pids=64), {"pids": 65})],
)  # fmt: skip
def test_the_operators_maxima_hold(policy: Policy, fields: dict[str, Any]) -> None:
    assert code(refusal(policy, **fields)) == "invalid_resources"


@pytest.mark.parametrize(
    "fields",
    [{"files": {"relative": "x"}}, {"files": {"/a/../b": "x"}}, {"output": "out"}, {"output": "/out/.."}, {"secrets": {"a/b": "s"}},
     {"secrets": {"..": "s"}}, {"secrets": {"": "s"}}],
)  # fmt: skip
def test_paths_that_lead_elsewhere_are_refused(fields: dict[str, Any]) -> None:
    assert code(refusal(**fields)) == "validation_error"


@pytest.mark.parametrize(
    "fields",
    [{"colour": "blue"}, {"command": "echo hi"}, {"pull": "sometimes"}, {"env": {"A": 1}}, {"command": [1]}, {"env": ["A=b"]}],
)  # fmt: skip
def test_unknown_fields_and_wrong_types_are_refused(fields: dict[str, Any]) -> None:
    assert code(refusal(**fields)) == "validation_error"


def test_a_refusal_points_to_the_field() -> None:
    error = refusal(memory=1)
    assert isinstance(error, InvalidInput)
    assert error.pointer == "/spec/memory"
