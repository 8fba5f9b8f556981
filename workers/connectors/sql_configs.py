"""What users write to configure the SQL connector."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from jobq.specs import Text
from workers.connectors.configs import ConnectorConfig, check_area

if TYPE_CHECKING:
    from jobq.settings import Policy


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
