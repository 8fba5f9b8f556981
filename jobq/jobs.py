"""What ``JobQ`` knows of jobs, one by one and in listings. Nothing here changes anything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any
from uuid import UUID

from jobq.changes import Feed, Wanted, follow_changes
from jobq.cursors import fingerprint, make_cursor, read_cursor
from jobq.errors import InvalidInput
from jobq.models import Artifact, Attempt, Change, Job, JobFilter, LogLine, Page, Total
from jobq.settings import Settings
from jobq.states import Status
from jobq.store import artifacts, audit, control, listing
from jobq.store import jobs as store
from jobq.store import why as reasons
from jobq.store.audit import AuditEvent, AuditFilter
from jobq.store.fanin import child_spec
from jobq.tail import Tail, follow_log
from jobq.timeline import Event, timeline
from jobq.waiting import wait_for_end

if TYPE_CHECKING:
    from jobq.store.database import Database

_MOST_LINES = 1000


class Jobs:
    """Get, list, count, watch and wait for jobs."""

    tenant: str
    settings: Settings

    if TYPE_CHECKING:

        @cached_property
        def database(self) -> Database: ...

    def get(self, job_id: UUID) -> Job:
        """The job as it is now. Raises NotFound, also for another tenant's."""
        with self.database.read() as conn:
            return store.get(conn, self.tenant, job_id)

    def list(self, *, limit: int = 50, cursor: str | None = None, **only: Any) -> Page[Job]:
        """The newest jobs first; ``only``: the fields of ``jobq.store.listing.JobFilter``. ``limit``: 1 to 200.

        A page costs the same however many jobs there are. One that would have to look at too many, for a rare text in
        a name for instance, comes back with fewer, or none, and a ``next_cursor`` that goes on from there.
        """
        if not 1 <= limit <= 200:
            raise InvalidInput("limit is between 1 and 200.", pointer="/limit")
        wanted = JobFilter(**only)
        # Sorted: another process prints a set in another order.
        only = {
            name: sorted(value) if isinstance(value, frozenset) else value for name, value in asdict(wanted).items()
        }
        filters = fingerprint(listing="jobs", tenant=self.tenant, only=only)
        before = read_cursor(self._cursor_key, filters, cursor)
        with self.database.read() as conn:
            found = listing.list_page(conn, self.tenant, wanted, before=before, limit=limit)
        more = None if found.behind is None else make_cursor(self._cursor_key, filters, found.behind)
        return Page(found.jobs, more)

    def count(self, **only: Any) -> Total:
        """How many jobs a listing has: exact up to 10,000, beyond that an estimate (on SQLite always exact)."""
        with self.database.read() as conn:
            return listing.count(conn, self.tenant, JobFilter(**only))

    @property
    def _cursor_key(self) -> bytes:
        return (self.settings.secret_key.get_secret_value() or f"jobq:{self.settings.env_id}").encode()

    def spec(self, job_id: UUID) -> dict[str, Any]:
        """What the job was told to do."""
        with self.database.read() as conn:
            job = store.get(conn, self.tenant, job_id)
            if job.entity_key is not None:
                return child_spec(job)
            found: dict[str, Any] = store.get_data(conn, job_id).spec
            return found

    def attempts(self, job_id: UUID) -> Sequence[Attempt]:
        """The attempts that have ended, oldest first: outcome, cause, steps, usage and result of each."""
        with self.database.read() as conn:
            store.get(conn, self.tenant, job_id)
            return store.list_attempts(conn, job_id)

    def timeline(self, job_id: UUID) -> Sequence[Event]:
        """What happened to the job, and what people did to it, in order."""
        with self.database.read() as conn:
            job = store.get(conn, self.tenant, job_id)
            return timeline(job, store.list_attempts(conn, job_id), control.list_events(conn, f"job:{job_id}"))

    def artifacts(self, job_id: UUID) -> Sequence[Artifact]:
        """The files that the job left behind, without their contents."""
        with self.database.read() as conn:
            store.get(conn, self.tenant, job_id)
            return artifacts.list_of(conn, job_id)

    def artifact(self, job_id: UUID, name: str) -> bytes:
        """The content of one artifact. Raises NotFound."""
        with self.database.read() as conn:
            store.get(conn, self.tenant, job_id)
            return artifacts.read(conn, job_id, name)

    def why(self, job_id: UUID) -> str:
        """One or two sentences: why the job is where it is."""
        with self.database.read() as conn:
            return reasons.why(conn, self.tenant, job_id)

    def logs(self, job_id: UUID, *, after: int = 0, follow: bool = False, poll: float = 0.25) -> Iterator[LogLine]:
        """The job's log behind line ``after``. ``follow``: go on until the job has ended, without gap or repeat."""
        self.get(job_id)
        yield from follow_log(Tail(self.database), job_id, after, poll if follow else None)

    def log_page(
        self, job_id: UUID, *, after: int = 0, limit: int = 200, stream: str | None = None, text: str | None = None
    ) -> Sequence[LogLine]:
        """Up to ``limit`` (1 to 1000) lines behind line ``after``: of one stream, with this text in them."""
        if not 1 <= limit <= _MOST_LINES:
            raise InvalidInput(f"limit is between 1 and {_MOST_LINES}.", pointer="/limit")
        found: list[LogLine] = []
        for line in self.logs(job_id, after=after):
            if (stream is None or line.stream == stream) and (text is None or text in line.text):
                found.append(line)
            if len(found) == limit:
                break
        return found

    def wait(self, job_id: UUID, timeout: float | None = None) -> Job:
        """Wait until the job has ended; a duplicate is followed to the job that it duplicates.

        Raises Unavailable ``wait_timeout`` after ``timeout`` seconds (None: wait for ever); the job goes on.
        """
        return wait_for_end(self.get, job_id, timeout)

    def changes(
        self,
        *,
        after: str | None = None,
        statuses: frozenset[Status] = frozenset(),
        kinds: frozenset[str] = frozenset(),
        queues: frozenset[str] = frozenset(),
        workflow_id: UUID | None = None,
    ) -> Iterator[Change]:
        """Jobs and workflows as they change, on and on, from now on or behind an earlier change's ``place``.

        The newest state of each within a second; states in between may be skipped, or told again after ``after``.
        Sets are alternatives; workflows are told unless ``statuses`` are asked for.
        """
        feed = Feed(self.database, self.tenant, after)
        if after is None:
            feed.look()  # from now on
        return follow_changes(feed, Wanted(statuses, kinds, queues, workflow_id))

    def audit(
        self, *, everything: bool = False, limit: int = 50, cursor: str | None = None, **only: Any
    ) -> Page[AuditEvent]:
        """Who did what, the newest first; ``only``: the fields of ``jobq.store.audit.AuditFilter``. ``limit``: 1 to 200.

        ``everything``: of all tenants, and what concerns none, such as queues. Plain enqueues are no events.
        """
        if not 1 <= limit <= 200:
            raise InvalidInput("limit is between 1 and 200.", pointer="/limit")
        tenant, wanted = None if everything else self.tenant, AuditFilter(**only)
        filters = fingerprint(listing="audit", tenant=tenant, only=asdict(wanted))
        before = read_cursor(self._cursor_key, filters, cursor)
        with self.database.read() as conn:
            found = audit.list_page(conn, tenant, wanted, before=before, limit=limit + 1)
        page = found[:limit]
        return Page(page, make_cursor(self._cursor_key, filters, page[-1].id) if len(found) > limit else None)
