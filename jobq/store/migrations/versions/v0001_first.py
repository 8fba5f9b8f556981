"""The first schema: workflows, jobs, attempts, logs, workers, queues and tenants."""

from __future__ import annotations

from uuid import uuid4

from alembic import op

from jobq.store.tables import TERMINAL_GUARD, metadata

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create every table, then the guard of the terminal states."""
    metadata.create_all(op.get_bind(), checkfirst=False)
    op.bulk_insert(metadata.tables["jobq_installation"], [{"id": uuid4()}])
    for statement in TERMINAL_GUARD[op.get_bind().dialect.name]:
        op.execute(statement)
