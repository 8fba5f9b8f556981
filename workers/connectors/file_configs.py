"""What users write to configure the connectors for files."""

from __future__ import annotations

import codecs
import re
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator, model_validator

from jobq.specs import Spec, Text
from workers.connectors.configs import ConnectorConfig, check_area

if TYPE_CHECKING:
    from jobq.settings import Policy


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
