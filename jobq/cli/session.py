"""What each command begins with: the settings that its flags, the environment and the file make, and a ``JobQ``."""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, cast
from uuid import UUID

import typer

from jobq.errors import InvalidInput

if TYPE_CHECKING:
    from jobq.client import JobQ
    from jobq.settings import Settings


@dataclass
class Session:
    """The global options, in ``typer.Context.obj``. Nothing is read or opened before a command asks for it."""

    flags: dict[str, str] = field(default_factory=dict)
    config: str | None = None

    @cached_property
    def settings(self) -> Settings:
        """The effective settings. Raises Misconfigured."""
        from jobq.settings import Settings

        if self.config is not None:
            os.environ["JOBQ_CONFIG"] = self.config
        return Settings.load(**self.flags)


def session(context: typer.Context) -> Session:
    """The session of a command."""
    return cast("Session", context.find_root().obj)


@contextmanager
def connected(context: typer.Context) -> Iterator[JobQ]:
    """A ``JobQ`` for one command."""
    from jobq.client import JobQ

    with JobQ(settings=session(context).settings, actor=_actor()) as jobq:
        yield jobq


def judging(jobq: JobQ) -> Settings | None:
    """What files are judged by as they are read; None: an API does so, by settings of its own."""
    from jobq.settings import is_http

    return None if is_http(jobq.settings.database_url) else jobq.settings


def _actor() -> str:
    """Who acts, for the record of interventions."""
    try:
        return f"{getpass.getuser()} (cli)"
    except (KeyError, OSError):  # a container's user that has a number only
        return "cli"


def parse_id(text: str, what: str = "job") -> UUID:
    """A full id. Ids are not abbreviated: the newest ones differ in their last digits only."""
    try:
        return UUID(text)
    except ValueError:
        raise InvalidInput(
            f"{text[:100]!r} is no id of a {what}.", hint=f"jobq {what} list shows them; give the whole id."
        ) from None


def parse_key(text: str) -> UUID | str:
    """A workflow by its id, or else by its name."""
    try:
        return UUID(text) if len(text) in {32, 36} else text
    except ValueError:
        return text
