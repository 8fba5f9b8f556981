"""What users write to configure a built-in connector. Checked when it is saved; no driver is loaded for that.

Secrets are never written here: ``secrets`` maps the names that a configuration uses to the names of the tenant's
secrets, and every other field that needs one names it by the former.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

import jmespath
from jmespath.exceptions import JMESPathError
from pydantic import AfterValidator, Field, field_validator, model_validator

from jobq.errors import Forbidden, InvalidInput
from jobq.net import check_url
from jobq.specs import Spec, Text

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


class ConnectorConfig(Spec):
    """The base: every configuration names the secrets that it uses."""

    secrets: dict[str, str] = Field(default_factory=dict)
    """Name that this configuration uses → name of the tenant's secret."""

    def _needs(self, names: Iterable[str | None]) -> None:
        for name in names:
            if name is not None and name not in self.secrets:
                raise ValueError(f"it uses the secret {name!r}, which `secrets` does not have")


# --- http ------------------------------------------------------------------------------------------------------


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


# --- sql -------------------------------------------------------------------------------------------------------


class SqlConfig(ConnectorConfig):
    """Where the database is: a URL without a password, or a secret that holds the whole URL."""

    url: str | None = None
    """``postgresql://user@host:5432/database`` or ``sqlite:////folder/file.db``."""
    password: str | None = None
    """Name of the secret with the password for ``url``."""
    secret: str | None = None
    """Name of the secret that holds the whole URL."""
    connections: Annotated[int, Field(ge=1, le=64)] = 4
    timeout: Annotated[float, Field(gt=0, le=3600)] = 60.0
    """Seconds for one statement (PostgreSQL), or to wait for a lock (SQLite)."""

    @model_validator(mode="after")
    def _where(self) -> SqlConfig:
        if (self.url is None) == (self.secret is None):
            raise ValueError("give either `url` or `secret` (the name of the secret that holds the URL)")
        if self.url is not None and urlsplit(self.url).password is not None:
            raise ValueError("`url` contains a password: name a secret in `password` instead")
        if self.password is not None and self.url is None:
            raise ValueError("`password` goes with `url`")
        self._needs([self.secret, self.password])
        return self

    def check(self, policy: Policy) -> None:
        """A file must lie in an allowed area; hosts are resolved and checked when they are connected to."""
        if self.url is not None and self.url.startswith("sqlite"):
            check_area(self.url.partition("://")[2].removeprefix("/"), policy, "/url")


class SqlSourceConfig(SqlConfig):
    """A table or a query to read from, in the order of ``state_column`` and ``key``."""

    table: Text | None = None
    db_schema: Text | None = None
    columns: list[Text] | None = None
    query: Text | None = None
    """A SELECT; it is read as a subquery."""
    key: Text
    """The column that tells records apart."""
    state_column: Text | None = None
    """The column that grows with every change. Rows as new as the newest one seen are read again."""

    @model_validator(mode="after")
    def _what(self) -> SqlSourceConfig:
        if (self.table is None) == (self.query is None):
            raise ValueError("give either `table` or `query`")
        if self.query is not None and (self.columns or self.db_schema):
            raise ValueError("`columns` and `db_schema` go with `table`; name columns in the query itself")
        return self


class SqlTargetConfig(SqlConfig):
    """A table to write to: one row for each entity, inserted or updated by its key."""

    table: Text
    db_schema: Text | None = None
    key: Annotated[list[Text], Field(min_length=1)]
    """The column, or the columns, of the primary key or of a unique constraint."""

    @field_validator("key", mode="before")
    @classmethod
    def _one_or_more(cls, key: Any) -> Any:
        return [key] if isinstance(key, str) else key


# --- files -----------------------------------------------------------------------------------------------------

STORAGE_SECRETS = frozenset(
    {"key", "secret", "token", "username", "password", "account_name", "account_key", "sas_token"}
)


class AreaConfig(ConnectorConfig):
    """Files, through fsspec: an absolute folder, or the URL of a store whose fsspec package is installed."""

    storage: dict[str, str] = Field(default_factory=dict)
    """What the store's credentials are called there (``key``, ``secret``, ``token``, …) → name in ``secrets``."""
    encoding: str = "utf-8"

    @field_validator("encoding")
    @classmethod
    def _encoding(cls, name: str) -> str:
        sample = '\n\r",;\t0aZ'
        try:
            if sample.encode(name) == sample.encode("ascii"):
                return codecs.lookup(name).name
        except (LookupError, UnicodeError):
            raise ValueError(f"there is no encoding {name!r}") from None
        raise ValueError(f"{name!r} does not extend ASCII: convert the file to UTF-8")

    @model_validator(mode="after")
    def _storage(self) -> AreaConfig:
        if unknown := self.storage.keys() - STORAGE_SECRETS:
            raise ValueError(f"storage has {min(unknown)!r}; known: {', '.join(sorted(STORAGE_SECRETS))}")
        self._needs(self.storage.values())
        return self


class FileSourceConfig(AreaConfig):
    """Files to read: one, or all that a pattern names, in the order of their names."""

    path: Text
    """``/folder/customers.csv``, ``s3://bucket/2026/*.csv``, ``/folder/**/*.jsonl.gz``."""
    incremental: Literal["changed", "name"] = "changed"
    """changed: files that are new or have changed (at most 1,000 files) · name: files behind the last one's name."""

    def check(self, policy: Policy) -> None:
        """The folder above the pattern must lie in an allowed area."""
        check_area(fixed_part(self.path), policy, "/path")


class Dialect(Spec):
    """How a CSV file is written."""

    delimiter: Annotated[str, Field(min_length=1, max_length=1, pattern=r"[^\r\n\"\x00]")] = ","


class CsvSourceConfig(FileSourceConfig, Dialect):
    """CSV files (RFC 4180); the first record of each names the columns, unless ``columns`` does."""

    columns: Annotated[list[Text], Field(min_length=1)] | None = None


class JsonlSourceConfig(FileSourceConfig):
    """JSON Lines files: one object in each line."""


class FileTargetConfig(AreaConfig):
    """A folder to write to."""

    area: Text
    """``/folder`` or ``s3://bucket/folder``; made if it is not there."""

    def check(self, policy: Policy) -> None:
        """It must lie in an allowed area."""
        check_area(self.area, policy, "/area")


class CsvTargetConfig(FileTargetConfig, Dialect):
    """CSV files (RFC 4180, with a header)."""

    columns: Annotated[list[Text], Field(min_length=1)] | None = None
    """The columns and their order. None: what the first batch of records has; further ones are then refused."""


class JsonlTargetConfig(FileTargetConfig):
    """JSON files: one object in each, or in each line."""


def fixed_part(path: str) -> str:
    """The path up to the first folder whose name is a pattern."""
    found = re.search(r"[*?\[]", path)
    return path if found is None else path[: found.start()].rpartition("/")[0] or "/"


def check_area(url: str, policy: Policy, pointer: str = "") -> None:
    """Refuse what lies outside of the operator's areas. Raises Forbidden or InvalidInput."""
    if not url.startswith("/") and "://" not in url:
        raise InvalidInput(f"{url!r} is neither an absolute path nor a URL.", code="invalid_area", pointer=pointer)
    if not policy.allows_area(url):
        raise Forbidden(
            f"{url!r} lies in no area that the operator allows.", code="area_not_allowed",
            hint="The operator allows folders and URL prefixes with JOBQ_POLICY__AREAS.", pointer=pointer,
        )  # fmt: skip
