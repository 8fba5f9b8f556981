"""A dry run: what a SYNC would send to each target. Nothing is written but the job's own artifact."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from jobq.connectors import Source
from jobq.mapping import MappingError
from jobq.models import Outcome
from jobq.store.entities import hashes
from jobq.store.fanout import Failure, Sifted

if TYPE_CHECKING:
    from workers.sync import Run

ARTIFACT = "preview.jsonl"
_SHOWN = 20
_KEPT_BYTES = 8 * 1024 * 1024


async def preview(run: Run, source: Source) -> Outcome:
    """Read everything, and keep the payloads of as many entities as fit into the artifact; the result shows a few."""
    look = _Preview(run)
    await run.look_back()
    with run.ctx.step("read"):
        async for sifted in run.sifted(source, run.request(None)):
            await asyncio.to_thread(look.take, sifted)
    run.ctx.save_artifact(ARTIFACT, "".join(look.lines).encode())
    return Outcome.succeeded({**look.counts, "previews": look.shown}, message="a dry run: nothing was written")


class _Preview:
    """Counts everything, keeps the first payloads."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._room = _KEPT_BYTES
        self.counts = dict.fromkeys(("read", "filtered", "invalid", "new", "updated", "existing"), 0)
        self.lines: list[str] = []
        self.shown: list[dict[str, Any]] = []

    def take(self, sifted: Sifted) -> None:
        """Compare a batch with the store."""
        job = self._run.ctx.job
        with self._run.database.read() as conn:
            known = hashes(conn, job.tenant, self._run.spec.domain, [each.key for each in sifted.found])
        self.counts["read"] += sifted.read
        self.counts["filtered"] += sifted.filtered
        self._note(sifted.failures)
        for each in sifted.found:
            before = known.get(each.key)
            change = "new" if before is None else "existing" if before == each.hash else "updated"
            self.counts[change] += 1
            for name, export in self._run.plan.exports.items():
                self._show({"entity": each.key, "change": change, "target": name, **_sent(export, each.body)})
            if not self._run.plan.exports:
                self._show({"entity": each.key, "change": change, "payload": each.body})

    def _note(self, failures: Any) -> None:
        self.counts["invalid"] += len(failures)
        for failure in failures:
            assert isinstance(failure, Failure)
            self._show({"entity": failure.where, "error_class": failure.error_class, "message": failure.message})

    def _show(self, row: dict[str, Any]) -> None:
        if self._room <= 0:
            return
        line = json.dumps(row, ensure_ascii=False) + "\n"
        self._room -= len(line)
        self.lines.append(line)
        if len(self.shown) < _SHOWN and len(line) < 10_000:
            self.shown.append(row)


def _sent(export: Any, body: dict[str, Any]) -> dict[str, Any]:
    """What a target would be sent, or why it would not."""
    try:
        return {"payload": export.payload(body)} if export.takes(body) else {"filtered": True}
    except MappingError as error:
        return {"error_class": error.error_class, "message": error.message}
