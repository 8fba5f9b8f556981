"""What applications see of SYNC jobs: their children, their counts, how far each domain was read; and job_details."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any
from uuid import UUID

from jobq.cursors import fingerprint, make_cursor, read_cursor
from jobq.details import SYNC, job_details
from jobq.errors import InvalidInput, NotFound
from jobq.models import Export, FanOut, Job, Page, Problem
from jobq.store import control, entities, exports
from jobq.store import jobs as store
from jobq.store.details import gather

if TYPE_CHECKING:
    from jobq.settings import Settings
    from jobq.store.database import Connection, Database


@dataclass(frozen=True, slots=True)
class SyncState:
    """How far a domain was read: ``state`` is its source's own word for it, ``job_id`` the SYNC that left it."""

    domain: str
    state: Any
    job_id: UUID
    updated_at: datetime


class SyncStates:
    """What incremental SYNCs of a tenant go on from."""

    def __init__(self, database: Database, tenant: str, actor: str) -> None:
        self._database, self._tenant, self._actor = database, tenant, actor

    def list(self) -> Sequence[SyncState]:
        """All domains that were read to their end, by name."""
        with self._database.read() as conn:
            return [self._state(row) for row in entities.list_states(conn, self._tenant)]

    def get(self, domain: str) -> SyncState:
        """Raises NotFound."""
        with self._database.read() as conn:
            if (row := entities.get_state(conn, self._tenant, domain)) is None:
                raise _no_state(domain)
            return self._state(row)

    def reset(self, domain: str) -> None:
        """The next incremental SYNC reads everything; what targets have is still known. Raises NotFound."""

        def work(conn: Connection) -> None:
            if not entities.reset_state(conn, self._tenant, domain):
                raise _no_state(domain)
            control.add_event(conn, self._tenant, f"domain:{domain}", "reset", self._actor)

        self._database.run(work)

    @staticmethod
    def _state(row: Any) -> SyncState:
        return SyncState(row.domain, row.state, row.job_id, row.updated_at)


def _no_state(domain: str) -> NotFound:
    return NotFound(f"No SYNC has read {domain[:100]!r} to its end.", hint="jobq sync state list shows the domains.")


class Syncs:
    """The half of ``JobQ`` that concerns fan-outs."""

    settings: Settings
    tenant: str
    actor: str

    if TYPE_CHECKING:

        @cached_property
        def database(self) -> Database: ...

        @property
        def _cursor_key(self) -> bytes: ...

        def list(self, *, limit: int = 50, cursor: str | None = None, **only: Any) -> Page[Job]: ...

    @cached_property
    def sync_states(self) -> SyncStates:
        """List, look at and reset how far each domain was read."""
        return SyncStates(self.database, self.tenant, self.actor)

    def children(self, job_id: UUID, *, limit: int = 50, cursor: str | None = None, **only: Any) -> Page[Job]:
        """The jobs that a SYNC fanned out, the newest first; ``only``: see ``list``. Raises NotFound."""
        with self.database.read() as conn:
            store.get(conn, self.tenant, job_id)
        return self.list(limit=limit, cursor=cursor, parent_id=job_id, **only)

    def fanout(self, job_id: UUID) -> FanOut:
        """How far a SYNC is: exact, in one look, however many children it has. Raises NotFound.

        All counts are 0 before the SYNC starts, and for jobs of other kinds.
        """
        with self.database.read() as conn:
            store.get(conn, self.tenant, job_id)
            return exports.fanout(conn, job_id)

    def exports(self, job_id: UUID, *, limit: int = 50, cursor: str | None = None) -> Page[Export]:
        """What became of each entity at each target, in the order in which the children were made.

        Entities that a target had already, as they are, have no child: they are counted only. Raises NotFound.
        """
        if not 1 <= limit <= 200:
            raise InvalidInput("limit is between 1 and 200.", pointer="/limit")
        filters = fingerprint(listing="exports", tenant=self.tenant, of=str(job_id))
        behind = read_cursor(self._cursor_key, filters, cursor)
        with self.database.read() as conn:
            store.get(conn, self.tenant, job_id)
            found = exports.list_page(conn, job_id, behind=behind, limit=limit + 1)
        page = found[:limit]
        return Page(page, make_cursor(self._cursor_key, filters, page[-1].job_id) if len(found) > limit else None)

    def problems(self, job_id: UUID, *, behind: int = 0, limit: int = 200) -> Sequence[Problem]:
        """Entities of a SYNC that failed before they had children, behind the one with that number."""
        with self.database.read() as conn:
            store.get(conn, self.tenant, job_id)
            return exports.problems(conn, job_id, behind=behind, limit=limit)

    def details(self, job_id: UUID, *, exports: int = 100) -> dict[str, Any]:
        """job_details: one JSON document on a job of any kind, at any stage, with the same keys (docs/job-details.md).

        Of a SYNC it holds the first ``exports`` (1 to 200) export details; ``exportDetailsNext`` beside them is the
        cursor with which ``JobQ.exports`` goes on. Raises NotFound.
        """
        with self.database.read() as conn:
            facts = gather(conn, store.get(conn, self.tenant, job_id), self.settings.env_id)
        if facts.kind == SYNC:
            page = self.exports(job_id, limit=exports)
            facts = replace(facts, exports=page.items, exports_next=page.next_cursor)
        return job_details(facts)
