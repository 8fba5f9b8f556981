"""What each built-in kind of job is told to do: the specs that applications write.

A spec is checked completely when the job is accepted (``check`` adds the operator's policy), so that a worker
never meets one that cannot be executed. Units: seconds and bytes unless a field says otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from jobq.errors import Forbidden, InvalidInput
from jobq.net import check_url
from jobq.outbound.http1 import RESERVED_HEADERS

if TYPE_CHECKING:
    from jobq.settings import Policy

MiB = 1024 * 1024
MAX_ENV_BYTES = 64 * 1024
MAX_HEADER_BYTES = 16 * 1024  # most servers take no more, all headers together
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
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_FORBIDDEN_OPTIONS = frozenset(
    {"privileged", "mounts", "volumes", "volumes_from", "binds", "tmpfs", "devices", "device_requests", "gpus"}
    | {"cap_add", "security_opt", "pid_mode", "ipc_mode", "network_mode", "host_config", "userns_mode", "uts_mode"}
    | {"sysctls", "cgroup_parent", "cgroupns_mode", "runtime", "group_add", "ulimits", "links", "extra_hosts"}
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

    def secret_names(self) -> frozenset[str]:
        """The tenant's secrets whose values the job is handed. The base: the values of a field ``secrets``, if any."""
        return frozenset((getattr(self, "secrets", None) or {}).values())


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
    registry_secret: Annotated[Text, Field(min_length=1)] | None = None
    """Name of the tenant's secret with which the image is pulled: see ``workers.container.registry``."""
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

    @field_validator("env", mode="before")
    @classmethod
    def _env(cls, env: Any) -> Any:
        if not isinstance(env, dict) or not all(isinstance(text, str) for pair in env.items() for text in pair):
            return env  # judged as any other field is
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

    def secret_names(self) -> frozenset[str]:
        """The secrets that become files, and the one for the registry."""
        return super().secret_names() | ({self.registry_secret} if self.registry_secret else frozenset())

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
        if (where := _inside(self.image, policy)) is not None:
            raise Forbidden(
                f"The image {self.image!r} would be pulled from {where}, which jobq does not have asked.",
                code="image_not_allowed", pointer="/spec/image",
                hint="The operator allows such a registry by its name in JOBQ_POLICY__IMAGES: registry-host:port/*.",
            )  # fmt: skip
        if not policy.allows_image(self.image):
            raise Forbidden(
                f"The image {self.image!r} is not among the images that the operator allows.", code="image_not_allowed",
                hint="The operator allows images by pattern with JOBQ_POLICY__IMAGES.", pointer="/spec/image",
            )  # fmt: skip
        for field, maximum in (("memory", policy.max_memory), ("cpus", policy.max_cpus), ("pids", policy.max_pids)):
            if maximum is not None and getattr(self, field) > maximum:
                raise _bad_resource(field, f"{getattr(self, field)} is above the operator's maximum of {maximum}")


def _inside(image: str, policy: Policy) -> str | None:
    """The registry of an image, if it leads into the operator's network as it is written: a pull is a request too.

    None for every other, and for one that the operator named in the patterns of images.
    """
    host, slash, _ = image.partition("/")
    if not slash or not ("." in host or ":" in host or host == "localhost"):
        return None  # Docker Hub's
    if policy.names_registry(host):
        return None
    try:
        check_url(f"https://{host}/", policy.networks_allowed())
    except InvalidInput:
        return f"the registry {host!r}"
    return None


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
    secret_headers: dict[str, Text] = Field(default_factory=dict)
    """Header → name of the tenant's secret that is its value: no row, message or log ever holds that."""
    body_contains: Text | None = None

    @field_validator("expected_status_code")
    @classmethod
    def _final(cls, status: int) -> int:
        if status < 200:
            raise ValueError("an answer 1xx is never the last one: expect a status from 200 to 599")
        return status

    @field_validator("headers", "secret_headers")
    @classmethod
    def _headers(cls, headers: dict[str, str]) -> dict[str, str]:
        for name, text in headers.items():
            if not _HEADER_NAME.fullmatch(name):
                raise ValueError(f"{name[:100]!r} is no name of a header")
            if name.lower() in RESERVED_HEADERS:
                raise ValueError(f"header {name!r} frames the message itself: jobq sets it")
            if _CONTROL.search(text):
                raise ValueError(f"the value of header {name[:100]!r} must not contain control characters")
        if (size := _header_bytes(headers)) > MAX_HEADER_BYTES:
            raise ValueError(f"the headers take {size} bytes; at most {MAX_HEADER_BYTES} are allowed")
        return headers

    @field_validator("body_contains")
    @classmethod
    def _searched(cls, text: str | None) -> str | None:
        if text == "":
            raise ValueError("every body contains the empty text: leave it out to look at the status only")
        return text

    @model_validator(mode="after")
    def _once(self) -> Heartbeat:
        plain = {name.lower() for name in self.headers}
        if twice := [name for name in self.secret_headers if name.lower() in plain]:
            raise ValueError(f"header {twice[0][:100]!r} is in headers and in secret_headers: keep one")
        return self

    @model_validator(mode="after")
    def _body(self) -> Heartbeat:
        if self.method == "HEAD" and self.body_contains is not None:
            raise ValueError("body_contains needs the method GET: an answer to HEAD has no body")
        return self

    @property
    def secrets(self) -> Mapping[str, str]:
        """What takes its value from a secret → name of the secret."""
        return self.secret_headers

    def request_headers(self, secrets: Mapping[str, str]) -> dict[str, str]:
        """All headers, with the values of the secrets. Raises InvalidInput, which shows none of them."""
        headers = dict(self.headers)
        for name, secret in self.secret_headers.items():
            pointer = f"/spec/secret_headers/{name}"
            if secret not in secrets:
                raise InvalidInput(f"There is no secret {secret!r}.", code="secret_missing", pointer=pointer)
            headers[name] = secrets[secret]
            if _CONTROL.search(headers[name]):
                raise InvalidInput(
                    f"The secret {secret!r} cannot be the value of a header: it contains control characters.",
                    hint="Store it without a line break at its end.", pointer=pointer,
                )  # fmt: skip
        if (size := _header_bytes(headers)) > MAX_HEADER_BYTES:
            raise InvalidInput(
                f"The headers take {size} bytes with the values of their secrets; "
                f"at most {MAX_HEADER_BYTES} are allowed.",
                pointer="/spec/secret_headers",
            )
        return headers

    def check(self, policy: Policy) -> None:
        """The address as it is written: scheme, form and, where it is a literal, the network it is in."""
        check_url(self.endpoint, policy.networks_allowed(), pointer="/spec/endpoint")


def _header_bytes(headers: Mapping[str, str]) -> int:
    """What the headers take in a request."""
    return sum(len(f"{name}: {text}\r\n".encode()) for name, text in headers.items())
