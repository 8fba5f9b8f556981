"""The exception to fanning out: files to file areas. The SYNC itself writes one file per target, and has no children."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jobq.connectors import Read, Source
from jobq.mapping import MappingError
from jobq.models import Outcome
from jobq.store import fanout
from jobq.store.fanout import Failure, Sifted
from workers.opened import Opened
from workers.plan import Export

if TYPE_CHECKING:
    from workers.sync import Run

_FAILURES_KEPT = 10_000


def takes_files(run: Run, opened: Opened, source: Source) -> bool:
    """Is the source a file, and does every target take files? Reads the store: call it in a thread."""
    exports = run.plan.exports.values()
    tenant = run.ctx.job.tenant
    return (
        bool(exports)
        and getattr(source, "is_file", False)
        and all(getattr(opened.target_class(tenant, export.spec), "takes_files", False) for export in exports)
    )


async def write_files(run: Run, opened: Opened, source: Source) -> Outcome:
    """One file per target, whole or not at all: a SYNC that is stopped starts again from the beginning.

    The source is read once for each target, so that nothing is held in memory.
    """
    if not (await run.open()).reading:
        return Outcome.fanned_out()
    await run.look_back()
    request = run.request(None)  # once: what one target's reading has seen is not to be missed by the next
    writings = {name: _Writing(run, export, request) for name, export in run.plan.exports.items()}
    files = {}
    for name, writing in writings.items():
        async with opened.target(run.ctx.job.tenant, writing.export.spec) as target:
            with run.ctx.step(f"write {name}"):
                written = await target.write_file(run.spec.domain, writing.records(source))  # type: ignore[attr-defined]
        files[name] = written.external_id
        run.ctx.log(f"{writing.written} entities written to {written.external_id}")
    first = next(iter(writings.values()))
    failures = [failure for writing in writings.values() for failure in writing.failures]
    counts = Sifted([], None, read=first.read, filtered=first.filtered, failures=failures)
    per_target = {name: writing.written for name, writing in writings.items()}
    await run.write(
        lambda conn: fanout.add_files(conn, run.owner, counts, per_target)
        and fanout.end_reading(conn, run.owner, state=run.state, keep_state=run.keeps_state)
    )  # fmt: skip
    return Outcome.fanned_out(result={"files": files})


class _Writing:
    """One target's file."""

    def __init__(self, run: Run, export: Export, request: Read) -> None:
        self._run, self.export, self._request = run, export, request
        self.read = self.filtered = self.written = 0
        self.failures: list[Failure] = []

    async def records(self, source: Source) -> AsyncIterator[Sequence[Mapping[str, Any]]]:
        """What the file is to hold, batch by batch."""
        async for sifted in self._run.sifted(source, self._request):
            if sifted.state is not None:
                self._run.state = sifted.state
            self.read += sifted.read
            self.filtered += sifted.filtered
            self._note(sifted.failures)
            rows = await asyncio.to_thread(self._payloads, sifted)
            self.written += len(rows)
            yield rows

    def _payloads(self, sifted: Sifted) -> list[dict[str, Any]]:
        rows = []
        for each in sifted.found:
            try:
                if self.export.takes(each.body):
                    rows.append(self.export.payload(each.body))
            except MappingError as error:
                self._note([Failure(each.key, error.error_class, error.message)])
        return rows

    def _note(self, failures: Sequence[Failure]) -> None:
        self.failures += failures[: max(_FAILURES_KEPT - len(self.failures), 0)]
