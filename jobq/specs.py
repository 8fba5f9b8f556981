"""What each built-in kind of job is told to do: the specs that applications write.

A spec is checked completely when the job is accepted (``check`` adds the operator's policy), so that a worker
never meets one that cannot be executed. Units: seconds and bytes unless a field says otherwise.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from jobq.errors import Forbidden, InvalidInput
from jobq.net import check_url
from jobq.outbound.http1 import RESERVED_HEADERS

if TYPE_CHECKING:
    from jobq.settings import Policy

MiB = 1024 * 1024
MAX_ENV_BYTES = 64 * 1024
MIN_MEMORY = 6 * MiB  # what the Docker engine itself refuses to go below

_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kmg]?)i?b?\s*$", re.IGNORECASE)
_FACTOR = {"": 1, "k": 1024, "m": MiB, "g": 1024 * MiB}
# The grammar of image references: registry host and port, path components, then a tag or a digest (or both).
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_IMAGE = re.compile(
    rf"^(?:(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]+)?)/)?{_PART}(?:/{_PART})*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@sha256:[a-f0-9]{64})?\Z"
)
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_FORBIDDEN_OPTIONS = frozenset(
    {"privileged", "mounts", "volumes", "binds", "devices", "cap_add", "security_opt", "pid_mode", "ipc_mode"}
    | {"network_mode", "host_config", "userns_mode", "uts_mode", "sysctls", "cgroup_parent", "runtime"}
)


def parse_size(value: object) -> int:
    """Bytes from a number or from text such as ``64MB``, ``64m`` or ``1GiB`` (all are powers of 1024)."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("a size is a number of bytes or text such as '64MB'")
    found = _SIZE.match(str(value))
    if not found:
        raise ValueError(f"{value!r} is no size: write a number of bytes or text such as '64MB'")
    return int(float(found[1]) * _FACTOR[found[2].lower()])


Size = Annotated[int, BeforeValidator(parse_size)]


def _no_nul(text: str) -> str:
    if "\x00" in text:
        raise ValueError("must not contain a NUL byte")
    return text


Text = Annotated[str, AfterValidator(_no_nul)]


def printable(text: str) -> str:
    """A name as people may give it."""
    if not text.isprintable() or not text.strip():
        raise ValueError("must be printable text on one line")
    return text


class Spec(BaseModel):
    """The base of every spec: unknown fields are refused, instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_max_length=65_536)

    def check(self, policy: Policy) -> None:
        """Refuse what the operator's policy does not allow. The base allows everything."""


class Container(Spec):
    """Run one container to its end; exit code 0 completes the job.

    Safe by default: no capabilities, no new privileges, no network, an init process, limits on memory, processes
    and CPU, no mounts. The timeout starts with the container, not with the pull of its image.
    """

    image: Text
    command: list[Text] | None = None
    entrypoint: list[Text] | None = None
    env: dict[str, Text] = Field(default_factory=dict)
    secrets: dict[str, str] = Field(default_factory=dict)
    """File name under /run/secrets in the container → name of the secret of the tenant."""
    working_dir: Text | None = None
    user: Text = "65534:65534"
    memory: Size = 256 * MiB
    cpus: float = 1.0
    pids: int = 128
    network: Text | None = None
    """Name of a Docker network that the operator allows; None: no network at all."""
    pull: Literal["missing", "always", "never"] = "missing"
    files: dict[str, Text] = Field(default_factory=dict)
    """Absolute path in the container → text, put there before the start."""
    output: Text | None = None
    """Absolute path of a folder in the container: its files become the job's artifacts."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_escapes(cls, value: Any) -> Any:
        if isinstance(value, dict) and (found := sorted(_FORBIDDEN_OPTIONS & value.keys())):
            raise Forbidden(
                f"The container option {found[0]!r} is not available.",
                code="forbidden_option",
                hint="jobq never gives containers more rights than its safe defaults.",
                pointer=f"/spec/{found[0]}",
            )
        return value

    @field_validator("image")
    @classmethod
    def _image(cls, image: str) -> str:
        if len(image) > 512 or not _IMAGE.match(image):
            raise InvalidInput(
                f"{image!r} is no image reference.", code="invalid_image",
                hint="Write name[:tag] or name@sha256:digest.", pointer="/spec/image",
            )  # fmt: skip
        return image

    @field_validator("env")
    @classmethod
    def _env(cls, env: dict[str, str]) -> dict[str, str]:
        for key in env:
            if not key or "=" in key or "\x00" in key:
                raise InvalidInput(
                    f"{key!r} is no name of an environment variable: it must not be empty nor contain '=' or NUL.",
                    code="invalid_env", pointer="/spec/env",
                )  # fmt: skip
        if (size := sum(len(key.encode()) + len(text.encode()) + 2 for key, text in env.items())) > MAX_ENV_BYTES:
            raise InvalidInput(
                f"The environment takes {size} bytes; at most {MAX_ENV_BYTES} are allowed.",
                code="invalid_env", hint="Put large values into files.", pointer="/spec/env",
            )  # fmt: skip
        return env

    @model_validator(mode="after")
    def _resources(self) -> Container:
        if self.memory < MIN_MEMORY:
            raise _bad_resource("memory", f"{self.memory} bytes are below Docker's minimum of 6 MB")
        if self.pids <= 0:
            raise _bad_resource("pids", f"{self.pids} is not above 0")
        if not 0.01 <= self.cpus <= 512:
            raise _bad_resource("cpus", f"{self.cpus} is not between 0.01 and 512")
        for where in (*self.files, *([self.output] if self.output else [])):
            if not where.startswith("/") or ".." in where.split("/"):
                raise ValueError(f"{where!r} must be an absolute path without '..'")
        if bad := [name for name in self.secrets if not name or "/" in name or name in {".", ".."}]:
            raise ValueError(f"{bad[0]!r} is no file name for a secret")
        return self

    def check(self, policy: Policy) -> None:
        """Images, networks and maxima that the operator set."""
        if policy.network_modes_forbidden(self.network):
            raise Forbidden(
                f"The network {self.network!r} is not available to containers.", code="forbidden_option",
                hint="The operator allows networks by name with JOBQ_POLICY__NETWORKS.", pointer="/spec/network",
            )  # fmt: skip
        if not policy.allows_image(self.image):
            raise Forbidden(
                f"The image {self.image!r} is not among the images that the operator allows.", code="image_not_allowed",
                hint="The operator allows images by pattern with JOBQ_POLICY__IMAGES.", pointer="/spec/image",
            )  # fmt: skip
        for field, maximum in (("memory", policy.max_memory), ("cpus", policy.max_cpus), ("pids", policy.max_pids)):
            if maximum is not None and getattr(self, field) > maximum:
                raise _bad_resource(field, f"{getattr(self, field)} is above the operator's maximum of {maximum}")


def _bad_resource(field: str, problem: str) -> InvalidInput:
    return InvalidInput(f"{field}: {problem}.", code="invalid_resources", pointer=f"/spec/{field}")


class Heartbeat(Spec):
    """Probe an HTTP endpoint once; the expected status (and text, if given) completes the job.

    The timeout is one deadline over name resolution, connection, TLS, headers and body. Redirects are answers,
    never followed. The address that a name resolves to is checked too: see ``jobq.net``.
    """

    endpoint: str
    method: Literal["GET", "HEAD"] = "GET"
    expected_status_code: Annotated[int, Field(ge=100, le=599)] = 200
    headers: dict[str, str] = Field(default_factory=dict)
    body_contains: Text | None = None

    @field_validator("headers")
    @classmethod
    def _headers(cls, headers: dict[str, str]) -> dict[str, str]:
        for name, text in headers.items():
            if not _HEADER_NAME.fullmatch(name) or any(char in text for char in "\r\n\x00"):
                raise ValueError(f"header {name!r} must be a token, and its value must not contain CR, LF or NUL")
            if name.lower() in RESERVED_HEADERS:
                raise ValueError(f"header {name!r} frames the message itself: jobq sets it")
        return headers

    @model_validator(mode="after")
    def _body(self) -> Heartbeat:
        if self.method == "HEAD" and self.body_contains is not None:
            raise ValueError("body_contains needs the method GET: an answer to HEAD has no body")
        return self

    def check(self, policy: Policy) -> None:
        """The address as it is written: scheme, form and, where it is a literal, the network it is in."""
        check_url(self.endpoint, policy.networks_allowed(), pointer="/spec/endpoint")
