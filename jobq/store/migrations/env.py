"""How Alembic reaches the database: always through ``jobq.store.migrations.upgrade``."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import sqlalchemy as sa
from alembic import context

from jobq.store.migrations import VERSION_TABLE
from jobq.store.patience import without_timeouts
from jobq.store.sql import POSTGRESQL
from jobq.store.tables import metadata

if TYPE_CHECKING:
    from jobq.store.database import Database

_LOCK = 0x6A6F6272


def run() -> None:
    """One transaction for all versions; on PostgreSQL two upgrades at once take turns."""
    database: Database = context.config.attributes["database"]
    on_postgresql = database.dialect == POSTGRESQL
    with database.begin() as conn, without_timeouts(conn) if on_postgresql else nullcontext():
        if on_postgresql:
            conn.execute(sa.text("SET LOCAL lock_timeout = '60s'"))
            conn.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
        context.configure(
            connection=conn,
            target_metadata=metadata,
            version_table=VERSION_TABLE,
            render_as_batch=database.dialect != POSTGRESQL,
            transactional_ddl=True,
        )
        with context.begin_transaction():
            context.run_migrations()


run()
