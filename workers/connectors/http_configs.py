"""What users write to configure the HTTP connector."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Literal

import jmespath
from jmespath.exceptions import JMESPathError
from pydantic import AfterValidator, Field, field_validator, model_validator

from jobq.net import check_url
from jobq.specs import Spec, Text
from workers.connectors.configs import ConnectorConfig

if TYPE_CHECKING:
    from jobq.settings import Policy

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_OWN_HEADERS = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "expect", "te", "trailer", "upgrade", "keep-alive"}
)
_SECRET_HEADERS = frozenset({"authorization", "proxy-authorization", "cookie"})
PLACEHOLDER = re.compile(r"\{(\w*)\}")


def _jmespath(text: str) -> str:
    try:
        jmespath.compile(text)
    except JMESPathError as error:
        raise ValueError(f"is no JMESPath expression: {str(error).splitlines()[0]}") from None
    return text


JMESPath = Annotated[str, AfterValidator(_jmespath)]
Scalar = str | int | float | bool


class Bearer(Spec):
    """``Authorization: Bearer <secret>``."""

    type: Literal["bearer"]
    secret: str


class Basic(Spec):
    """User and password (RFC 7617)."""

    type: Literal["basic"]
    user: Text
    secret: str


class Header(Spec):
    """A header of the service's own, such as ``X-Api-Key``."""

    type: Literal["header"]
    name: Annotated[str, Field(pattern=rf"^{_HEADER_NAME.pattern}$")]
    secret: str
    prefix: Text = ""


class RateLimit(Spec):
    """At most so many requests in so many seconds, from each worker."""

    requests: Annotated[int, Field(ge=1)]
    per: Annotated[float, Field(gt=0, le=86_400)] = 1.0


class HttpConfig(ConnectorConfig):
    """What source and target have in common."""

    headers: dict[str, Text] = Field(default_factory=dict)
    auth: Annotated[Bearer | Basic | Header, Field(discriminator="type")] | None = None
    rate_limit: RateLimit | None = None
    timeout: Annotated[float, Field(gt=0, le=300)] = 30.0
    """Seconds for one request and its whole answer."""

    @field_validator("headers")
    @classmethod
    def _headers(cls, headers: dict[str, str]) -> dict[str, str]:
        for name, text in headers.items():
            if not _HEADER_NAME.fullmatch(name) or "\r" in text or "\n" in text:
                raise ValueError(f"header {name!r} must be a token, and its value must not contain CR or LF")
            if name.lower() in _OWN_HEADERS:
                raise ValueError(f"header {name!r} frames the message itself: it is set by the connector")
            if name.lower() in _SECRET_HEADERS:
                raise ValueError(f"header {name!r} carries a secret: use `auth`")
        return headers

    @model_validator(mode="after")
    def _auth_has_its_secret(self) -> HttpConfig:
        self._needs([self.auth.secret] if self.auth else [])
        return self


class PageNumber(Spec):
    """``?page=1``, ``?page=2`` … up to an empty page (or 404), or as long as ``more`` holds."""

    type: Literal["page"]
    param: str = "page"
    first: int = 1
    more: JMESPath | None = None
    """A condition on the answer: are there more pages?"""


class Offset(Spec):
    """``?offset=0``, then as many further as records came; up to an empty page, or as long as ``more`` holds."""

    type: Literal["offset"]
    param: str = "offset"
    more: JMESPath | None = None


class Cursor(Spec):
    """The answer says what to send for the next page; it ends where that is null, false or empty."""

    type: Literal["cursor"]
    next: JMESPath
    param: str = "cursor"


class Link(Spec):
    """The answer has the next page's URL: in the header Link (RFC 8288, rel="next"), or where ``next`` says."""

    type: Literal["link"]
    next: JMESPath | None = None


class HttpSourceConfig(HttpConfig):
    """A JSON API to read from."""

    url: str
    method: Literal["GET"] = "GET"
    params: dict[str, Scalar] = Field(default_factory=dict)
    records: JMESPath = "@"
    """Where the list of records is in an answer."""
    pagination: Annotated[PageNumber | Offset | Cursor | Link, Field(discriminator="type")] | None = None
    page_size: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Records to ask for in a page, by ``size_param``. None: as many as a batch has."""
    size_param: str | None = None
    since_param: str | None = None
    """The parameter that asks for changes only: gets the state of the last run, or the instant of the override."""
    state: JMESPath | None = None
    """Where a record tells its last change (an instant in ISO 8601, or a number that grows)."""
    entity_url: str | None = None
    """The URL of one entity, with ``{key}``."""
    entity_record: JMESPath = "@"
    """Where the record is in the answer of ``entity_url``."""
    timeout: Annotated[float, Field(gt=0, le=300)] = 60.0

    @model_validator(mode="after")
    def _incremental(self) -> HttpSourceConfig:
        if (self.since_param is None) != (self.state is None):
            raise ValueError("`since_param` and `state` go together: one asks for what the other has seen")
        if self.page_size is not None and self.size_param is None:
            raise ValueError("`page_size` needs `size_param`: the name of the parameter that carries it")
        if self.entity_url is not None:
            _placeholders(self.entity_url, {"key"}, "entity_url")
        return self

    def check(self, policy: Policy) -> None:
        """The addresses as they are written."""
        check_url(self.url, policy.networks_allowed(), pointer="/url")
        if self.entity_url is not None:
            check_url(PLACEHOLDER.sub("x", self.entity_url), policy.networks_allowed(), pointer="/entity_url")


class Rule(Spec):
    """What an answer means, where the service does not say it by its status. The first rule that fits decides."""

    status: int | list[int] | None = None
    body: JMESPath | None = None
    """A condition on the JSON of the answer."""
    then: Literal["requeue", "retry", "fail", "accept"]
    """requeue: come later, not charged · retry: a failed try · fail: never again · accept: it has been written."""
    after: Annotated[float, Field(ge=0, le=86_400)] | None = None
    """Seconds; for ``requeue``. Default: the answer's Retry-After."""
    error_class: Annotated[str, Field(min_length=1, max_length=100)] | None = None

    @model_validator(mode="after")
    def _says_when(self) -> Rule:
        if self.status is None and self.body is None:
            raise ValueError("a rule needs `status` or `body`")
        if self.after is not None and self.then != "requeue":
            raise ValueError("`after` is for `then: requeue`")
        return self


class Update(Spec):
    """How to write an entity that the service has had before."""

    method: Literal["POST", "PUT", "PATCH"] = "PATCH"
    url: str
    """May contain ``{key}`` and ``{external_id}``."""


class HttpTargetConfig(HttpConfig):
    """A JSON API to write to: one request for each entity, its payload as the body."""

    url: str
    """May contain ``{key}``; ``{external_id}`` only if ``update`` is used or every entity is known."""
    method: Literal["POST", "PUT", "PATCH"] = "PUT"
    update: Update | None = None
    """Used instead where the entity's external id is known."""
    external_id: JMESPath | None = None
    """Where the answer tells the id that the service gave."""
    rules: list[Rule] = Field(default_factory=list)

    @model_validator(mode="after")
    def _templates(self) -> HttpTargetConfig:
        _placeholders(self.url, {"key", "external_id"}, "url")
        if self.update:
            _placeholders(self.update.url, {"key", "external_id"}, "update")
        return self

    def check(self, policy: Policy) -> None:
        """The addresses as they are written."""
        check_url(PLACEHOLDER.sub("x", self.url), policy.networks_allowed(), pointer="/url")
        if self.update:
            check_url(PLACEHOLDER.sub("x", self.update.url), policy.networks_allowed(), pointer="/update/url")


def _placeholders(template: str, known: set[str], field: str) -> None:
    if unknown := set(PLACEHOLDER.findall(template)) - known:
        raise ValueError(f"{field} has the placeholder {{{min(unknown)}}}; known: {', '.join(sorted(known))}")
    if PLACEHOLDER.search(template.partition("://")[2].partition("/")[0]):
        raise ValueError(f"{field} has a placeholder in its host: only path and query may have one")
