"""Group commit: the outcomes of many jobs in one transaction, with the last lines of their logs.

Outcomes come from the event loop one by one; each commit takes all that have come during the one before. So an idle
worker records at once, and a busy one in batches that grow with the load. An outcome is kept until it is recorded or
refused: while the database is away it waits here, and its slot stays taken.
"""

from __future__ import annotations

import logging
import queue
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol
from uuid import UUID

from jobq import logs, metrics, telemetry
from jobq.errors import Unavailable
from jobq.models import Outcome
from jobq.store.database import Connection, Database, Refusal
from jobq.store.held import Held
from jobq.store.record import Report, record

log = logging.getLogger(__name__)

_BATCH = 1000


class Writer(Protocol):
    """Who else writes in the recording transaction: the journal, with the rest of the logs."""

    def write(self, conn: Connection, held: Sequence[Held]) -> Callable[[], None]:
        """Write what is left of these jobs' logs; the result is called after the commit."""

    def discard(self, held: Held) -> None:
        """Nothing of this attempt is written any more."""


class Recorder:
    """Takes reports from any thread; ``tick`` writes them from one."""

    def __init__(
        self, database: Database, journal: Writer, on_recorded: Callable[[UUID, Sequence[Report]], None]
    ) -> None:
        self._database = database
        self._journal = journal
        self._on_recorded = on_recorded
        self._reports: queue.SimpleQueue[tuple[UUID, Report] | None] = queue.SimpleQueue()
        self.written: Counter[str] = Counter()

    def put(self, worker_id: UUID, report: Report) -> None:
        """Record soon. ``worker_id``: the identity under which the job was claimed."""
        self._reports.put((worker_id, report))

    def stop(self) -> None:
        """End the present tick's wait."""
        self._reports.put(None)

    def tick(self) -> float:
        """Record what has come; waits for it at most a second."""
        batch = self._take()
        owners = {owner for owner, _ in batch}
        for owner in owners:
            self._settle(owner, [report for its, report in batch if its == owner])
        return 0.0

    def _take(self) -> list[tuple[UUID, Report]]:
        batch: list[tuple[UUID, Report]] = []
        try:
            found = self._reports.get(timeout=1.0)
            while True:
                if found is not None:
                    batch.append(found)
                if len(batch) >= _BATCH:
                    return batch
                found = self._reports.get_nowait()
        except queue.Empty:
            return batch

    def _settle(self, owner: UUID, reports: list[Report]) -> None:
        """Write until it is written: a database that is away is waited for, bad data is found by halving."""
        tries = 0
        while reports:
            try:
                self._write(owner, reports)
                break
            except Unavailable as error:
                tries += 1
                if tries == 1:
                    log.warning("outcomes wait: %s", error)
                time.sleep(min(0.1 * 2 ** min(tries, 6), 3.0) * random.uniform(0.5, 1.0))
            except (Refusal, TypeError, ValueError) as error:
                self._halve(owner, reports, error)
                return
        self._on_recorded(owner, reports)

    def _write(self, owner: UUID, reports: list[Report]) -> None:
        def work(conn: Connection) -> tuple[set[UUID], Callable[[], None]]:
            written = record(conn, owner, reports)
            ours = [Held(report.id, report.attempt, owner) for report in reports if report.id in written]
            return written, self._journal.write(conn, ours)

        began, began_ns = time.perf_counter(), time.time_ns()
        written, after = self._database.run(work)
        after()
        metrics.recorded(reports, written, time.perf_counter() - began)
        telemetry.recorded(reports, written, began_ns)
        self.written["recorded"] += len(written)
        if len(written) < len(reports):
            refused = [report for report in reports if report.id not in written]
            self.written["refused"] += len(refused)
            for report in refused:
                self._journal.discard(Held(report.id, report.attempt, owner))
            log.warning(
                "%d outcomes were refused, their jobs have another owner or an end: %s",
                len(refused), [str(report.id) for report in refused[:5]],
            )  # fmt: skip

    def _halve(self, owner: UUID, reports: list[Report], error: Exception) -> None:
        if len(reports) > 1:
            middle = len(reports) // 2
            self._settle(owner, reports[:middle])
            self._settle(owner, reports[middle:])
            return
        report = reports[0]
        with logs.belonging(logs.about(report, owner)):
            log.error("the outcome of job %s cannot be stored: %s", report.id, error)
        if report.outcome.error_class == "unstorable":
            self._on_recorded(owner, reports)  # even the plain statement is refused: the reaper ends the job
            return
        cause = Outcome.failed(
            f"the outcome cannot be stored: {type(error).__name__}", error_class="unstorable", retry=False
        )
        self._settle(owner, [replace(report, outcome=cause, steps=[])])
