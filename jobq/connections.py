"""How a Sync says where it reads and writes: a stored connector by its name, or a type; its settings; its secrets.

Secrets are only ever named: ``secrets`` leads from the name that the connector knows to a secret of the tenant
(``jobq secret set``). A configuration that holds one in clear is refused, because job rows can be read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Self

from pydantic import Field, model_validator

from jobq.connectors import SOURCES, TARGETS, connector_class
from jobq.errors import InvalidInput, JobQError, Misconfigured
from jobq.specs import Spec
from jobq.validation import parse

if TYPE_CHECKING:
    from jobq.settings import Policy

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,100}$")]
Type = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,100}$")]
SecretName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]
Secrets = dict[SecretName, SecretName]
"""The connector's name of a secret → the tenant's name of it."""

_SECRET_KEY = re.compile(
    r"(^|[^a-z])(pass(word|wd|phrase)|pwd|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|credentials?"
    r"|authorization)$",
    re.IGNORECASE,
)
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_URL_PASSWORD = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@\s]*:[^/?#@\s]+@", re.IGNORECASE)


class Connection(Spec):
    """One end of a Sync: either a stored ``connector``, whose settings may be changed here, or a ``type``."""

    connector: Name | None = None
    type: Type | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    """Fields of the type's configuration; each replaces the stored connector's as a whole."""
    secrets: Secrets = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.connector is None) == (self.type is None):
            raise ValueError("needs either the name of a stored connector or a type")
        return self


class Connector(Spec):
    """A connector as somebody stores it, for many Syncs: what it leaves out, they say."""

    name: Name
    type: Type
    config: dict[str, Any] = Field(default_factory=dict)
    secrets: Secrets = Field(default_factory=dict)

    def check(self, policy: Policy) -> None:
        """The type is known, and no secret is in clear. Each Sync is judged with the whole configuration."""
        check_no_secret(self.config, self.secrets, "/config")
        source, target = (_problem_of_type(group, self.type) for group in (SOURCES, TARGETS))
        if source is not None and target is not None:
            raise _at(source, "/type")


@dataclass(frozen=True, slots=True)
class StoredConnector:
    """A connector as it is stored; ``secrets`` are names."""

    name: str
    type: str
    config: dict[str, Any]
    secrets: dict[str, str]
    created_at: datetime
    updated_at: datetime


class Resolved(NamedTuple):
    """A connection with all that a stored connector adds to it."""

    type: str
    config: dict[str, Any]
    secrets: dict[str, str]


def configuration(model: type[Spec], config: Mapping[str, Any], secrets: Mapping[str, str]) -> Spec:
    """The configuration that a connector's class is made with. Raises InvalidInput, with pointers within ``config``.

    A class whose configuration has a field ``secrets`` is told the names that it may use.
    """
    names = {"secrets": dict(secrets)} if "secrets" in model.model_fields else {}
    return parse(model, {**config, **names})


def check_connection(group: str, found: Resolved, policy: Policy, pointer: str) -> None:
    """Judge a connection as the connector's class and the operator do. Raises InvalidInput, Forbidden.

    Where what the connector needs is not installed (an application that only enqueues), the worker judges.
    """
    if (problem := _problem_of_type(group, found.type)) is not None:
        raise _at(problem, f"{pointer}/type")
    check_no_secret(found.config, found.secrets, f"{pointer}/config")
    try:
        model = connector_class(group, found.type).config
    except Misconfigured:
        return
    try:
        configuration(model, found.config, found.secrets).check(policy)
    except JobQError as error:
        raise _at(error, f"{pointer}/config{error.pointer}") from None


def _problem_of_type(group: str, type_: str) -> JobQError | None:
    try:
        connector_class(group, type_)
    except InvalidInput as error:
        return error
    except Misconfigured:
        return None
    return None


def _at(error: JobQError, pointer: str) -> JobQError:
    outer = copy(error)
    outer.pointer = pointer
    return outer


def check_no_secret(config: Mapping[str, Any], secrets: Mapping[str, str], pointer: str) -> None:
    """Refuse what looks like a secret in clear. A field called ``token`` may name one of ``secrets``."""
    if "secrets" in config:
        raise InvalidInput("The secrets stand beside the configuration, not in it.", pointer=f"{pointer}/secrets")
    for where, key, value in _leaves(config, pointer):
        if value is None or isinstance(value, bool):
            continue
        if _SECRET_KEY.search(_CAMEL.sub("_", key)) and value not in secrets:
            raise _secret(f"{key[:100]!r} is a secret in clear, or names none of the secrets", where)
        if isinstance(value, str) and _URL_PASSWORD.match(value.strip()):
            raise _secret(f"The URL in {key[:100]!r} holds a password", where)


def _secret(problem: str, pointer: str) -> InvalidInput:
    return InvalidInput(
        f"{problem}: a configuration can be read by others.",
        code="secret_in_config", pointer=pointer,
        hint="Store it with jobq secret set NAME, and list it in secrets.",
    )  # fmt: skip


def _leaves(value: Any, pointer: str, key: str = "") -> Iterator[tuple[str, str, Any]]:
    """Each value that is no object and no list: where it is, and the nearest name above it."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _leaves(item, f"{pointer}/{str(name).replace('~', '~0').replace('/', '~1')}", str(name))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _leaves(item, f"{pointer}/{number}", key)
    else:
        yield pointer, key, value
