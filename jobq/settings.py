"""Settings: flags, then ``JOBQ_*`` environment, then a TOML file, then defaults. One object per process."""

from __future__ import annotations

import fnmatch
import ipaddress
import os
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from jobq.duration import Duration
from jobq.errors import Misconfigured

EMBEDDED = "memory://"
"""The broker inside ``jobq dev``: it ends at the process, so separate workers and schedulers refuse it."""
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
LOG_FORMATS = ("auto", "console", "text", "json")
"""``text`` is another word for ``console``; ``auto`` is that on a terminal, else JSON."""
_PASSWORD = re.compile(r"(?<=[?&])(password|sslpassword|passwd|pwd|token)=[^&#]*", re.IGNORECASE)


def data_folder() -> Path:
    """Where a user's own data lies (XDG base directory specification)."""
    return Path(os.environ.get("XDG_DATA_HOME") or _home() / ".local" / "share") / "jobq"


def config_file() -> Path:
    """The TOML file that settings are read from, if it exists: ``JOBQ_CONFIG``, or ``jobq/jobq.toml`` of the user."""
    if named := os.environ.get("JOBQ_CONFIG"):
        return Path(named)
    return Path(os.environ.get("XDG_CONFIG_HOME") or _home() / ".config") / "jobq" / "jobq.toml"


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:  # a container's user that has a number only
        return Path("/nonexistent")


class Policy(BaseModel):
    """What the operator allows: checked when a job is accepted, and again by the worker that executes it."""

    model_config = ConfigDict(extra="forbid")

    images: list[str] = Field(default_factory=lambda: ["*"])
    """Shell patterns of allowed container images."""
    networks: list[str] = Field(default_factory=list)
    """Names of Docker networks that containers may ask for."""
    max_memory: int | None = None
    max_cpus: float | None = None
    max_pids: int | None = 4096
    min_interval: Duration = timedelta(seconds=1)
    max_container_timeout: Duration = timedelta(hours=1)
    probe_networks: list[str] = Field(default_factory=list)
    """CIDR blocks that probes and connectors may reach although they are not public (development: 127.0.0.0/8)."""
    max_children: int = Field(default=1_000_000, ge=1)
    """Children that one SYNC may fan out."""
    areas: list[str] = Field(default_factory=list)
    """Folders (absolute) and URL prefixes where connectors may read and write files. None: the worker's disk is closed."""

    @field_validator("probe_networks")
    @classmethod
    def _blocks(cls, blocks: list[str]) -> list[str]:
        for block in blocks:
            ipaddress.ip_network(block, strict=False)
        return blocks

    @field_validator("areas")
    @classmethod
    def _areas(cls, areas: list[str]) -> list[str]:
        for area in areas:
            if _place(area) is None:
                raise ValueError(f"{area!r} is neither an absolute folder nor a URL prefix such as s3://bucket/folder")
        return areas

    def allows_image(self, image: str) -> bool:
        return any(fnmatch.fnmatchcase(image, pattern) for pattern in self.images)

    def names_registry(self, host: str) -> bool:
        """True where a pattern of images names this registry: not where one only happens to match it."""
        heads = [pattern.partition("/")[0] for pattern in self.images if "/" in pattern]
        return any(head[:1] not in {"", "*", "?", "["} and fnmatch.fnmatchcase(host, head) for head in heads)

    def network_modes_forbidden(self, network: str | None) -> bool:
        """True for host mode, for another container's network, and for names that the operator did not list."""
        if network is None or network == "none":
            return False
        return network == "host" or ":" in network or network not in self.networks

    def allows_area(self, url: str) -> bool:
        """True where this file or folder lies in an allowed area, or is one.

        A local path counts as what it leads to, symbolic links and ``..`` resolved; in URLs ``..`` is refused.
        """
        place = _place(url)
        allowed = filter(None, map(_place, self.areas))
        return place is not None and any(place[: len(area)] == area for area in allowed)

    def networks_allowed(self) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
        return tuple(ipaddress.ip_network(block, strict=False) for block in self.probe_networks)


def _place(url: str) -> tuple[str, ...] | None:
    """Scheme, host and folders of a URL or of an absolute local path; None if it could be read in two ways.

    ``::`` joins file systems in fsspec: one that is allowed would open another that is not.
    """
    if "\x00" in url or "::" in url:
        return None
    scheme, found, rest = url.partition("://")
    if not found or scheme.lower() in {"file", "local"}:
        path = rest if found else url
        return ("file", *Path(os.path.realpath(path)).parts) if path.startswith("/") else None
    parts = tuple(rest.rstrip("/").split("/"))
    decoded = "%" in rest and scheme.lower().startswith("http")  # elsewhere a % is a character like others
    if decoded or "@" in parts[0] or {"", ".", ".."} & set(parts) or set(rest) & set("\\?#"):
        return None
    return (scheme.lower(), *parts)


class Quota(BaseModel):
    """What a tenant may have at once, and how often it may ask: see ``jobq.quotas``. None: no limit."""

    model_config = ConfigDict(extra="forbid")

    waiting: int | None = Field(default=None, ge=0)
    """Jobs that are PENDING or QUEUED."""
    running: int | None = Field(default=None, ge=0)
    """Jobs that run, above which no more are accepted; how many may run at all is the tenant's limit."""
    schedules: int | None = Field(default=None, ge=0)
    """Workflows with a schedule."""
    rate: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Requests a second to each API process, by all keys of the tenant together."""
    burst: int | None = Field(default=None, ge=1)
    """Requests that may come at once; default: those of one second."""


class Settings(BaseSettings):
    """Every setting, with its unit in the name or in the text; durations are seconds or ISO-8601."""

    model_config = SettingsConfigDict(
        env_prefix="JOBQ_", env_nested_delimiter="__", extra="ignore", validate_default=True
    )

    database_url: str = Field(default_factory=lambda: f"sqlite:///{data_folder() / 'jobq.db'}")
    """Or the address of an HTTP API (``https://…``), for Python and the command line: see ``jobq.remote``."""
    api_key: SecretStr = SecretStr("")
    """For an HTTP API."""
    api_timeout: Duration = timedelta(seconds=60)
    """How long an HTTP API may take to answer."""
    ca_bundle: str = ""
    """A PEM file with the certificates that an HTTP API's own is signed by; empty: those that are commonly trusted."""
    broker_url: str = EMBEDDED
    docker_host: str = Field(default_factory=lambda: os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock")
    secret_key: SecretStr = SecretStr("")
    env_id: str = "default"
    """Name of this installation: marks its containers, and ``env_id`` of job_details."""
    tenant: str = "default"
    plugins: list[str] = Field(default_factory=list)
    """Executors to load beside the installed entry points, as ``module:Class``."""
    policy: Policy = Field(default_factory=Policy)
    quota: Quota = Field(default_factory=Quota)
    """Of each tenant for which no operator has set another one."""

    lease: Duration = timedelta(seconds=30)
    renew_every: Duration = timedelta(seconds=4)
    """A cancellation comes with it and has to arrive within 5 s: the rest is for the job to stop and to be recorded."""
    reattach_grace: Duration = timedelta(minutes=5)
    stop_grace: Duration = timedelta(seconds=2)
    """Between the stop signal and the kill of a container."""
    prepare_timeout: Duration = timedelta(minutes=5)
    """For the pull of the image and the creation of the container together."""
    drain_timeout: Duration = timedelta(seconds=25)
    """How long a worker that was told to stop lets its jobs go on."""
    deaf_after: Duration = timedelta(minutes=2)
    """How long a worker with room hears nothing of hints that lie at the broker, before it ends to be started again."""
    max_log_bytes: int = 1024 * 1024
    """Of each job's log; half of it is kept from the head, half from the tail."""
    max_spec_bytes: int = 256 * 1024
    retention: Duration = timedelta(days=30)
    """How long finished jobs are kept; a workflow may have a retention of its own."""
    retention_completed: Duration | None = None
    """Instead of that for COMPLETED jobs, and so on; none: the same."""
    retention_failed: Duration | None = None
    retention_canceled: Duration | None = None
    retention_logs: Duration | None = None
    """How long the logs of finished jobs are kept, of any workflow; none, or longer: as long as the jobs."""
    retention_rollups: Duration = timedelta(days=730)
    """How far analytics go back."""
    audit_retention: Duration = timedelta(days=400)
    """How long it stays on record who did what, to jobs that are gone too."""
    webhook_timeout: Duration = timedelta(seconds=15)
    """For one request to a webhook's receiver, from the name's resolution to its answer."""
    webhook_retention: Duration = timedelta(days=30)
    """How long it is kept what was told to webhooks, unless the job goes before. What is still due stays."""
    log_level: str = "INFO"
    log_format: str = "auto"
    """Of the log of schedulers, workers and the API: console, json, or auto: console on a terminal, else json."""
    traces: str = ""
    """URL of an OTLP collector (HTTP), such as http://localhost:4318; ``off``; empty: as ``OTEL_*`` say."""
    trace_targets: bool = False
    """Send targets of Syncs the ``traceparent`` of the job that writes to them."""
    metrics: str = ""
    """Address where a worker or a scheduler serves its metrics, such as 127.0.0.1:9100. Empty: nowhere."""
    hints_per_message: int = Field(default=200, ge=1, le=1000)

    @field_validator("log_level")
    @classmethod
    def _level(cls, level: str) -> str:
        if level.upper() not in _LEVELS:
            raise ValueError(f"should be one of {', '.join(_LEVELS)}")
        return level.upper()

    @field_validator("log_format")
    @classmethod
    def _format(cls, how: str) -> str:
        if how.lower() not in LOG_FORMATS:
            raise ValueError(f"should be one of {', '.join(LOG_FORMATS)}")
        return how.lower()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, environment, file: in this order."""
        return (init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=config_file()))

    @classmethod
    def load(cls, **flags: Any) -> Settings:
        """The settings of this process; ``flags`` win.

        Raises Misconfigured ``bad_setting`` with the setting that is wrong, or the file that cannot be read.
        """
        file = config_file()
        if "JOBQ_CONFIG" in os.environ and not file.is_file():
            raise _bad_setting(f"There is no file of settings {str(file)!r}", "JOBQ_CONFIG or --config names it.")
        try:
            return cls(**flags)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            name = "__".join(str(part).upper() for part in first["loc"] if not isinstance(part, int))
            hint = f"It comes from a flag, the environment or {file}."
            raise _bad_setting(f"The setting JOBQ_{name} is wrong: {_lowered(first['msg'])}", hint) from None
        except SettingsError as error:
            hint = "In the environment, lists and objects are written as JSON."
            name = str(error).partition('"')[2].partition('"')[0].upper()
            raise _bad_setting(f"The setting JOBQ_{name} is wrong: it is no JSON", hint) from None
        except (OSError, ValueError) as error:  # TOMLDecodeError, UnicodeDecodeError
            raise _bad_setting(f"The file of settings {str(file)!r} cannot be read: {error}") from None

    def masked(self) -> dict[str, Any]:
        """The effective values, passwords and keys replaced by asterisks: what ``jobq config`` prints."""
        values = self.model_dump(mode="json")
        for name in ("database_url", "broker_url", "docker_host"):
            values[name] = mask_url(values[name])
        for name in ("secret_key", "api_key"):
            if getattr(self, name).get_secret_value():
                values[name] = "***"
        return values


def _bad_setting(message: str, hint: str | None = None) -> Misconfigured:
    return Misconfigured(f"{message}.", code="bad_setting", hint=hint)


def _lowered(message: str) -> str:
    text = message.removeprefix("Value error, ").rstrip(".")
    return text[:1].lower() + text[1:]


def is_http(url: str) -> bool:
    """Is this the address of an HTTP API, not of a database?"""
    return url.partition("://")[0].lower() in {"http", "https"}


def mask_url(url: str) -> str:
    """The URL without its password."""
    head, found, rest = url.partition("://")
    if not found or rest.startswith("/"):  # a path: it has no user
        return url
    userinfo, at, tail = rest.rpartition("@")
    tail = _PASSWORD.sub(r"\1=***", tail)
    return f"{head}://{userinfo.partition(':')[0]}:***@{tail}" if at else f"{head}://{tail}"
