"""The schema's versions (Alembic), for PostgreSQL and SQLite alike."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from jobq.errors import Misconfigured
from jobq.store.database import Database

if TYPE_CHECKING:
    from alembic.config import Config

VERSION_TABLE = "jobq_schema_version"


def _config(database: Database | None = None) -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["database"] = database
    return config


@cache
def newest() -> str:
    """The version that this release needs."""
    from alembic.script import ScriptDirectory

    head = ScriptDirectory.from_config(_config()).get_current_head()
    assert head is not None
    return head


def current(database: Database) -> str | None:
    """The version that the database has; None: no jobq tables."""
    from alembic.migration import MigrationContext

    with database.read() as conn:
        return MigrationContext.configure(conn, opts={"version_table": VERSION_TABLE}).get_current_revision()


def upgrade(database: Database) -> None:
    """Bring the database to the newest version. Safe to run twice and from several places at once.

    Raises Misconfigured for a database that a newer release made.
    """
    from alembic import command
    from alembic.util import CommandError

    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        command.upgrade(_config(database), "head")
    except CommandError as error:
        raise Misconfigured(
            f"The database has schema version {current(database)}, which this release does not know.",
            code="schema", hint="Use the release of jobq that made it, or a newer one.",
        ) from error  # fmt: skip


def check(database: Database) -> None:
    """Raise Misconfigured unless the database has exactly the version that this release needs."""
    found = current(database)
    if found != newest():
        raise Misconfigured(
            f"The database has schema version {found or 'none'}; this release needs {newest()}.",
            code="schema",
            hint="Run: jobq db upgrade",
        )
