"""SYNC: read → sift → store, with one transaction per batch; its children do the rest.

    source.read ──▶ Plan.sift ──▶ fanout.add_batch (entities, children, cursor) ──▶ … ──▶ fanout.end_reading

The next batch is read while this one is stored, and no further ahead: memory stays flat however large the source is.
Whatever stops a SYNC (a kill, a drain, a pause), it goes on behind its last committed batch.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar
from uuid import UUID

from jobq.connectors import Batch, ConnectorError, NotNow, Read, Source
from jobq.models import Outcome
from jobq.plugins import BUILT_IN, Context, Stop
from jobq.settings import Settings
from jobq.states import Reason
from jobq.store import fanout
from jobq.store.database import Connection, Database
from jobq.store.entities import get_state
from jobq.store.fanout import ChildPolicy, Owner, Sifted
from jobq.sync import Sync
from workers.direct import takes_files, write_files
from workers.opened import Opened
from workers.plan import Plan
from workers.preview import preview

Result = TypeVar("Result")

_STALLED = 600.0
"""Seconds without a batch after which a SYNC fails: it has no other timeout."""
_PATIENCE = timedelta(seconds=30)
_TELL_EVERY = 5.0


class Stopped(Exception):
    """The job was told to stop, or is not this worker's any more."""


class SyncExecutor:
    """Reads a source and fans out. It watches its stop itself, and has no total timeout."""

    kind = BUILT_IN["SYNC"]
    cooperative = True
    with_store = True

    async def open(self, settings: Settings, database: Database) -> None:
        """Called once, before the first job."""
        self._settings, self._database = settings, database
        self._opened = Opened(settings, database)

    async def close(self) -> None:
        """Close what is open."""
        await self._opened.close()

    async def execute(self, spec: Sync, ctx: Context) -> Outcome:
        """FANNED_OUT once all is read, or when somebody paused or canceled it; see ``jobq.store.settle``."""
        run = Run(spec, ctx, self._database, self._settings)
        try:
            async with self._opened.source(ctx.job.tenant, spec.source, ctx.log) as source:
                if spec.dry_run:
                    return await preview(run, source)
                if await asyncio.to_thread(takes_files, run, self._opened, source):
                    return await write_files(run, self._opened, source)
                return await run.fan_out(source)
        except Stopped:
            return Outcome.stopped() if ctx.stop in {Stop.DRAIN, Stop.FENCED} else Outcome.fanned_out()
        except NotNow as error:
            return Outcome.requeued(error.after or _PATIENCE, str(error), error_class=error.error_class)
        except TooMany as error:
            return Outcome.failed(str(error), error_class=error.error_class, reason=Reason.INVALID, retry=False)
        except ConnectorError as error:
            return Outcome.failed(str(error), error_class=error.error_class, retry=error.retry)


class Run:
    """One attempt of a SYNC."""

    def __init__(self, spec: Sync, ctx: Context, database: Database, settings: Settings) -> None:
        assert ctx.job.worker_id is not None
        self.spec, self.ctx, self.database = spec, ctx, database
        self.plan = Plan(spec)
        self.owner = Owner(ctx.job.id, ctx.job.attempt, ctx.job.worker_id)
        child = BUILT_IN["REPLICATION"]
        assert child.timeout is not None
        self._policy = ChildPolicy(
            child.timeout.total_seconds(), child.max_attempts, spec.limit_of_children(settings.policy)
        )  # fmt: skip
        self._told = time.monotonic()
        self._read = self._read_before = 0
        self._since: Any = None
        """The state that this run goes on from: it stays as it is until the run ends, however often that begins."""
        self.state: Any = None
        """Of the source: what has been seen when this run ends."""

    async def run(self, work: Callable[[Connection], Result]) -> Result:
        """A transaction, in a thread."""
        return await asyncio.to_thread(self.database.run, work)

    async def write(self, work: Callable[[Connection], Result | None]) -> Result:
        """A guarded transaction: raises Stopped where it says, by a value that is false, that it wrote nothing."""
        done = await self.run(work)
        if not done:
            raise Stopped
        return done

    # --- fan out -----------------------------------------------------------------------------------------------

    async def fan_out(self, source: Source) -> Outcome:
        """Read what this SYNC has not read yet, and store it batch by batch."""
        opened = await self.open()
        self._read_before = opened.read
        if opened.reading:
            earlier, only = await self.look_back()
            cursor = self._go_on_from(opened)
            with self.ctx.step("read"):
                if not only and "again" not in cursor:
                    async for sifted in self.sifted(source, self.request(cursor.get("source"))):
                        await self._store(self._located(sifted))
                if earlier is not None:  # last: an entity that has changed since then gets its child by that
                    await self._take_up(earlier, cursor.get("again"))
            keep = self.keeps_state and not only
            await self.write(
                lambda conn: fanout.end_reading(conn, self.owner, state=self.state, keep_state=keep)
            )  # fmt: skip
        return Outcome.fanned_out(result={"read": self._read})

    async def open(self) -> Any:
        """The fan-out of this SYNC: how far it has read. Raises Stopped."""
        return await self.write(
            lambda conn: fanout.open_fanout(conn, self.owner, self.spec.domain, self.plan.targets)
        )  # fmt: skip

    def _go_on_from(self, opened: Any) -> dict[str, Any]:
        """Where an earlier attempt of this SYNC stopped; empty: there was none, or it had not stored a batch."""
        cursor: dict[str, Any] = opened.cursor or {}
        if cursor:
            self._since, self.state = cursor.get("since"), opened.state
        return cursor

    @property
    def keeps_state(self) -> bool:
        """Does the next incremental run begin where this one ends? Only where this one reads all that is new."""
        return self.spec.override_start_date is None and self.spec.entity is None

    async def look_back(self) -> tuple[UUID | None, bool]:
        """Where the last run of the domain ended, in ``state``, for an incremental run.

        Returns the SYNC whose failed children are taken up again, and whether that is all there is to do: a retry
        reads again only where entities failed before they had children. An incremental run would not read those
        entities again, because they have not changed since.
        """
        return await asyncio.to_thread(self._look_back)

    def _look_back(self) -> tuple[UUID | None, bool]:
        job, incremental = self.ctx.job, self._by_state
        with self.database.read() as conn:
            before = None if job.retry_of is None else fanout.partly_done(conn, job.retry_of)
            stored = get_state(conn, job.tenant, self.spec.domain)
        if before is not None:  # what the source could not tell is asked again, from where that run began
            self._since = (before.cursor or {}).get("since")
            self.state = None if stored is None else stored.state
            return job.retry_of, not before.invalid
        if stored is None:
            return None, False
        if incremental:
            self._since = self.state = stored.state
        return (stored.job_id if incremental and stored.job_id != job.id else None), False

    @property
    def _by_state(self) -> bool:
        return self.spec.mode == "incremental" and self.keeps_state

    def request(self, cursor: Any) -> Read:
        """What is asked of the source."""
        state = self._since if self._by_state else None
        return Read(cursor, state, self.spec.override_start_date, self.spec.entity, self.spec.batch_size)

    async def _take_up(self, earlier: UUID, again: str | None) -> None:
        """Entities that targets may lack since an earlier SYNC: the watermarks tell which of them do."""
        if not again:
            await self._take_up_changed(earlier)
        behind = UUID(again) if again else None
        while True:
            rows = await asyncio.to_thread(self._left_over, earlier, behind)
            if not rows:
                return
            behind = rows[-1].id
            await self._store_again(rows, str(behind))

    async def _take_up_changed(self, earlier: UUID) -> None:
        number = 0
        while rows := await asyncio.to_thread(self._changed, earlier, number):
            number = rows[-1].number
            await self._store_again(rows, "")

    async def _store_again(self, rows: list[Any], again: str) -> None:
        self._look_at_stop()
        keys = list(dict.fromkeys(row.entity_key for row in rows))
        await self._store(Sifted([], {"again": again, "since": self._since}, self.state, again=keys))

    def _changed(self, earlier: UUID, behind: int) -> list[Any]:
        with self.database.read() as conn:
            return fanout.changed_meanwhile(conn, earlier, behind, self.spec.batch_size)

    def _left_over(self, earlier: UUID, behind: UUID | None) -> list[Any]:
        with self.database.read() as conn:
            return fanout.unfinished_business(conn, earlier, behind, self.spec.batch_size)

    def _located(self, sifted: Sifted) -> Sifted:
        """A batch with all that another attempt needs to go on behind it."""
        if sifted.state is not None:
            self.state = sifted.state
        return replace(sifted, cursor={"source": sifted.cursor, "since": self._since}, state=self.state)

    async def _store(self, sifted: Sifted) -> None:
        sifted = replace(sifted, behind=self._read_before + self._read)
        added = await self.write(
            lambda conn: fanout.add_batch(conn, self.owner, sifted, self.plan.targets, self._policy)
        )  # fmt: skip
        if added.too_many:
            raise TooMany(self._policy.limit)
        self._read += sifted.read
        for failure in sifted.failures[:20]:
            self.ctx.log(f"{failure.where}: {failure.message}")
        if time.monotonic() - self._told > _TELL_EVERY:
            self._told = time.monotonic()
            self.ctx.log(f"{self._read} entities read")

    # --- reading -----------------------------------------------------------------------------------------------

    async def sifted(self, source: Source, request: Read) -> AsyncIterator[Sifted]:
        """The source's batches, filtered and mapped: one ahead, so that the next is made while this one is stored.

        Raises Stopped, or ConnectorError where the source stalls.
        """
        stopped = asyncio.ensure_future(self.ctx.stopped())
        async with aclosing(source.read(request)) as reading:  # type: ignore[type-var]  # sources are generators
            upcoming = asyncio.ensure_future(self._next(reading))
            try:
                while True:
                    await asyncio.wait({upcoming, stopped}, timeout=_STALLED, return_when=asyncio.FIRST_COMPLETED)
                    if stopped.done():
                        raise Stopped
                    if not upcoming.done():
                        raise Stalled(f"the source gave nothing for {_STALLED:g} s")
                    sifted = upcoming.result()
                    if sifted is None:
                        return
                    upcoming = asyncio.ensure_future(self._next(reading))
                    yield sifted
            finally:
                stopped.cancel()
                upcoming.cancel()
                await asyncio.gather(upcoming, return_exceptions=True)

    async def _next(self, reading: AsyncIterator[Batch]) -> Sifted | None:
        batch = await anext(reading, None)
        return None if batch is None else await asyncio.to_thread(self.plan.sift, batch)

    def _look_at_stop(self) -> None:
        if self.ctx.stop is not None:
            raise Stopped


class Stalled(ConnectorError):
    """The source neither gave anything nor failed."""

    error_class = "stalled"


class TooMany(ConnectorError):
    """The fan-out would be larger than it may be."""

    error_class = fanout.TOO_LARGE
    retry = False

    def __init__(self, limit: int) -> None:
        super().__init__(f"the fan-out would have more than {limit} children: it is ended, and what waits is canceled")
