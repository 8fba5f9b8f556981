"""Which installation a database belongs to: what marks its containers on engines that it shares with others."""

from __future__ import annotations

from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobq.store.tables import installation


def installation_id(conn: Connection) -> UUID:
    """An id that was drawn when the database was first migrated, and never changes."""
    found: UUID = conn.execute(sa.select(installation.c.id)).scalar_one()
    return found
