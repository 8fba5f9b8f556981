"""Quotas: what a tenant may have at once, and how often it may ask. Judged at the door only, and never of slots or children.

Counts are looked up at most every five seconds by each process, which adds what it accepted itself meanwhile: so a
quota costs an enqueue next to nothing, and several processes together may pass it by what they accept in five seconds.
"""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass, field
from uuid import UUID

from jobq.errors import TooMany
from jobq.settings import Quota, Settings
from jobq.store import quotas as store
from jobq.store.database import Connection, Database

COUNTED_EVERY = 5.0
"""Seconds for which quotas and counts are taken as they were found."""
_MOST = 10_000
_MOST_TRIED = 1000
"""Accepted ids that are remembered: of calls that may yet be tried again."""
_MARGIN = 0.1


@dataclass(slots=True)
class Bucket:
    """Requests that may come at once: filled at a rate, emptied by each request."""

    rate: float
    """Requests a second."""
    size: int
    level: float
    filled_at: float

    def take(self, at: float) -> float:
        """0.0, or the seconds until there is room for a request."""
        self.level = min(self.level + (at - self.filled_at) * self.rate, float(self.size))
        self.filled_at = at
        if self.level < 1.0:
            return (1.0 - self.level) / self.rate
        self.level -= 1.0
        return 0.0


@dataclass(frozen=True, slots=True)
class Taken:
    """What one request took of a tenant's rate, as HTTP tells it (draft-ietf-httpapi-ratelimit-headers)."""

    wait: float
    """0.0: it may go on."""
    size: int
    remaining: int
    full_in: int
    """Seconds until all of it is there again."""
    fills_in: int
    """Seconds that it takes to fill from empty."""

    @property
    def headers(self) -> dict[str, str]:
        """The fields of the answer."""
        return {
            "RateLimit-Policy": f'"tenant";q={self.size};w={self.fills_in}',
            "RateLimit": f'"tenant";r={self.remaining};t={self.full_in}',
        }


@dataclass(slots=True)
class _Known:
    """What was found of a tenant, and what this process accepted since."""

    until: float
    quota: Quota
    waiting: int
    running: int


@dataclass(slots=True)
class Quotas:
    """The quotas of all tenants, as one process sees them; safe from any thread."""

    database: Database
    settings: Settings
    _known: dict[str, _Known] = field(default_factory=dict)
    _accepted: dict[UUID, None] = field(default_factory=dict)
    _buckets: dict[str, Bucket] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, tenant: str, conn: Connection | None = None) -> Quota:
        """A tenant's quota; about: a change by another process shows within five seconds."""
        return self._look(tenant, conn).quota

    def forget(self, tenant: str) -> None:
        """The next question is answered from the database: for who changed a quota just now."""
        self._known.pop(tenant, None)

    def admit(self, tenant: str, jobs: int = 1, conn: Connection | None = None, *, first: UUID | None = None) -> None:
        """Accept that many more jobs, all or none. Raises TooMany ``quota_exceeded``.

        ``conn``: what to count with, where the caller has a transaction open. Such a transaction may be tried again, its
        first try having been committed: ``first``, the id of the (first) new job, tells that these were accepted.
        """
        if first is not None and first in self._accepted:
            return
        known = self._look(tenant, conn)
        quota = known.quota
        if quota.waiting is None and quota.running is None:
            return
        with self._lock:
            if quota.running is not None and known.running >= quota.running:
                raise _over(tenant, known, f"has {known.running} jobs running, of {quota.running} at most")
            if quota.waiting is not None and known.waiting + jobs > quota.waiting:
                more = "" if jobs == 1 else f", and {jobs} more are asked for"
                raise _over(tenant, known, f"has {known.waiting} jobs waiting, of {quota.waiting} at most{more}")
            known.waiting += jobs
            if first is not None:
                self._accept(first)

    def admit_schedule(self, conn: Connection, tenant: str, *, first: UUID | None = None) -> None:
        """Accept one more workflow with a schedule: counted exactly. Raises TooMany ``quota_exceeded``."""
        if first is not None and first in self._accepted:
            return
        known = self._look(tenant, conn)
        most = known.quota.schedules
        if most is not None and (there := store.count_schedules(conn, tenant)) >= most:
            raise _over(tenant, known, f"has {there} workflows with a schedule, of {most} at most")
        if most is not None and first is not None:
            with self._lock:
                self._accept(first)

    def _accept(self, first: UUID) -> None:
        self._accepted[first] = None
        while len(self._accepted) > _MOST_TRIED:
            del self._accepted[next(iter(self._accepted))]

    def knows(self, tenant: str) -> bool:
        """Can it be told of this tenant without a look at the database?"""
        known = self._known.get(tenant)
        return known is not None and known.until > time.monotonic() + _MARGIN

    def take(self, tenant: str) -> Taken | None:
        """Count one request at the API's door; None: the tenant has no rate. Each process has a bucket of its own."""
        quota = self.of(tenant)
        if quota.rate is None:
            return None
        size, at = quota.burst or max(math.ceil(quota.rate), 1), time.monotonic()
        with self._lock:
            bucket = self._buckets.get(tenant)
            if bucket is None or (bucket.rate, bucket.size) != (quota.rate, size):
                if len(self._buckets) >= _MOST:
                    self._buckets.clear()
                bucket = self._buckets[tenant] = Bucket(quota.rate, size, float(size), at)
            wait = bucket.take(at)
            full_in = math.ceil((size - bucket.level) / bucket.rate)
            return Taken(wait, size, int(bucket.level), full_in, math.ceil(size / bucket.rate))

    def _look(self, tenant: str, conn: Connection | None) -> _Known:
        known = self._known.get(tenant)
        if known is not None and known.until > time.monotonic():
            return known
        if conn is not None:
            known = self._found(conn, tenant)
        else:
            with self.database.read() as own:
                known = self._found(own, tenant)
        if len(self._known) >= _MOST:
            self._known.clear()
        self._known[tenant] = known
        return known

    def _found(self, conn: Connection, tenant: str) -> _Known:
        quota = self.settings.quota.model_copy(update=store.read(conn, tenant))
        waiting = 0 if quota.waiting is None else store.count_waiting(conn, tenant, quota.waiting)
        running = 0 if quota.running is None else store.count_running(conn, tenant)
        return _Known(time.monotonic() + COUNTED_EVERY, quota, waiting, running)


def _over(tenant: str, known: _Known, what: str) -> TooMany:
    return TooMany(
        f"The tenant {tenant!r} {what}.", code="quota_exceeded",
        retry_after=max(math.ceil(known.until - time.monotonic()), 1),
        hint="Try again when it has fewer; an operator sets its quota: jobq tenant quota.",
    )  # fmt: skip
