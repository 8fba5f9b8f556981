"""Artifacts: files that a job left behind. Small ones, kept in the database until the job is pruned."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobq.errors import NotFound
from jobq.models import Artifact
from jobq.store.sql import insert
from jobq.store.tables import artifacts


def put(conn: Connection, job_id: UUID, attempt: int, files: Mapping[str, bytes]) -> None:
    """Keep files with a job; a name that is there already is replaced (a later attempt, or this call repeated)."""
    for name, content in sorted(files.items()):
        values = {
            "attempt": attempt,
            "size": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "content": content,
        }
        conn.execute(
            insert(conn.dialect.name, artifacts)
            .values(job_id=job_id, name=name, **values)
            .on_conflict_do_update(index_elements=["job_id", "name"], set_=values)
        )


def list_of(conn: Connection, job_id: UUID) -> list[Artifact]:
    """The artifacts of a job, by name, without their contents."""
    columns = (artifacts.c.name, artifacts.c.size, artifacts.c.sha256, artifacts.c.attempt)
    rows = conn.execute(sa.select(*columns).where(artifacts.c.job_id == job_id).order_by(artifacts.c.name))
    return [Artifact(*row) for row in rows]


def read(conn: Connection, job_id: UUID, name: str) -> bytes:
    """The content of one artifact. Raises NotFound."""
    query = sa.select(artifacts.c.content).where(artifacts.c.job_id == job_id, artifacts.c.name == name)
    content = conn.scalar(query)
    if content is None:
        raise NotFound(f"Job {job_id} has no artifact {name!r}.")
    return bytes(content)
