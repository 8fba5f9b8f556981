"""What happens to jobs and workflows, told as it happens: for Python, and for streams over HTTP alike.

Promised is the newest state of each job that moved, within a second; states in between may be skipped, and after a
reconnection one may be told again. The database is looked at twice a second, whoever listens and however many.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from jobq.errors import InvalidInput
from jobq.models import Change, Job, Workflow
from jobq.store import changes as store
from jobq.store.workers import database_now

if TYPE_CHECKING:
    from jobq.store.changes import Seen, Version
    from jobq.store.database import Connection, Database

LOOK_EVERY = 0.5
_OVERLAP = timedelta(seconds=3)
"""How long a transaction may take from its write to its commit, or a host's clock lag, and still be seen."""
_FORGOTTEN = 15.0
_FARTHEST = timedelta(minutes=15)
_MOST_AT_ONCE = 10_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def place_of(at: datetime) -> str:
    """An instant of the database as the place in the stream of changes."""
    return str((at - _EPOCH) // _MICROSECOND)


def read_place(place: str) -> datetime:
    """The instant of a place. Raises InvalidInput."""
    if not (place.isascii() and place.isdecimal() and len(place) <= 17):
        raise InvalidInput("This is no place in the stream of changes.", pointer="/after")
    return _EPOCH + int(place) * _MICROSECOND


class Feed:
    """The changes of a tenant, or of all, one look after the other. Not safe from several threads at once."""

    def __init__(self, database: Database, tenant: str | None, after: str | None = None) -> None:
        self._database, self._tenant = database, tenant
        self._since: datetime | None = None if after is None else read_place(after)
        self._resumes = after is not None
        self._restless: set[UUID] = set()
        self._known: dict[UUID, tuple[Version, float]] = {}
        self._flows: dict[UUID, tuple[datetime, float]] = {}
        self.place = after or "0"

    def look(self) -> list[Change]:
        """What changed since the look before; the first one tells where to begin, or what was missed."""
        with self._database.read() as conn:
            return self._look(conn)

    def _look(self, conn: Connection) -> list[Change]:
        first, resumes = self._since is None, self._resumes
        now = database_now(conn)
        since = now if self._since is None else max(self._since, now - _FARTHEST)
        skipped = self._since is not None and since != self._since
        seen = store.look(conn, self._tenant, since - _OVERLAP, _MOST_AT_ONCE if resumes else None)
        self._since, self._resumes, self.place = seen.at, False, place_of(seen.at)
        news = [] if first else self._news(seen)
        jobs = store.read(conn, self._tenant, news)
        flows = [flow for flow in seen.workflows if self._is_new(flow)]
        self._remember(seen, jobs)
        if first:
            return []
        told = [Change("gap", self.place)] if skipped or not seen.whole else []
        told += [Change("workflow", self.place, workflow=flow) for flow in flows]
        return told + [Change("job", self.place, job=job) for job in jobs]

    def _news(self, seen: Seen) -> list[UUID]:
        """Jobs whose state is not the one that was told last; those that rest now are looked at once more."""
        at_rest = self._restless - seen.restless.keys() - seen.recent.keys()
        moved = {
            job_id
            for found in (seen.restless, seen.recent)
            for job_id, version in found.items()
            if self._known.get(job_id, (None,))[0] != version
        }
        unknown = {job_id for job_id in seen.touched if job_id not in seen.restless and job_id not in seen.recent}
        return sorted(moved | at_rest | unknown)

    def _is_new(self, flow: Workflow) -> bool:
        return self._flows.get(flow.id, (None,))[0] != flow.updated_at

    def _remember(self, seen: Seen, told: list[Job]) -> None:
        now = time.monotonic()
        for found in (seen.recent, seen.restless):
            for job_id, version in found.items():
                self._known[job_id] = (version, now)
        for job in told:
            self._known[job.id] = (store.version_of(job), now)
        for flow in seen.workflows:
            self._flows[flow.id] = (flow.updated_at, now)
        self._restless = set(seen.restless)
        self._known = {key: value for key, value in self._known.items() if value[1] > now - _FORGOTTEN}
        self._flows = {key: value for key, value in self._flows.items() if value[1] > now - _FORGOTTEN}


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which changes: sets are alternatives. Of workflows, those that no condition is only for jobs."""

    statuses: frozenset[str] = frozenset()
    kinds: frozenset[str] = frozenset()
    queues: frozenset[str] = frozenset()
    workflow_id: UUID | None = None
    tenant: str | None = field(default=None, kw_only=True)

    def wants(self, change: Change) -> bool:
        """Is this among them?"""
        one = change.job or change.workflow
        if one is None:
            return True
        belongs_to = one.workflow_id if isinstance(one, Job) else one.id
        return (
            (self.tenant is None or one.tenant == self.tenant)
            and (not self.statuses or (isinstance(one, Job) and one.status in self.statuses))
            and (not self.kinds or one.kind in self.kinds)
            and (not self.queues or one.queue in self.queues)
            and (self.workflow_id is None or belongs_to == self.workflow_id)
        )


def follow_changes(feed: Feed, wanted: Wanted) -> Iterator[Change]:
    """On and on; a reader that takes its time gets the newest states when it comes back."""
    while True:
        yield from filter(wanted.wants, feed.look())
        time.sleep(LOOK_EVERY)
