"""The books of a run of kills: what was accepted, what became of it, and how long each kill held it up."""

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tests.rig import Rig
from tests.tally import Executions


@dataclass(slots=True)
class Kill:
    """Who was killed when; ``pid`` only of processes."""

    kind: str
    at: float
    pid: int = 0


@dataclass(slots=True)
class Book:
    """Writes down what a test does, and reads from the database what it did to jobs."""

    rig: Rig
    kills: list[Kill] = field(default_factory=list)

    def note(self, kind: str, pid: int = 0) -> None:
        """Call it right before the kill."""
        self.kills.append(Kill(kind, time.time(), pid))

    def close(self, **more: Any) -> dict[str, Any]:
        """The ledger; ``lost``, ``doubled``, ``mismatches``, ``twice`` and ``overlaps`` are to be 0."""
        fleet, executions = self.rig.fleet, Executions(self.rig.file)
        terminal = {row[0] for row in fleet.ask("SELECT id FROM jobq_jobs WHERE finished_at IS NOT NULL")}
        return {
            **more,
            "accepted": len(self.rig.accepted),
            "terminal": len(terminal),
            "lost": len(self.rig.accepted - terminal),
            "doubled": self._one("SELECT count(*) FROM (SELECT job_id FROM jobq_attempts WHERE outcome IN "
                                 "('COMPLETED', 'FAILED', 'CANCELED') GROUP BY 1 HAVING count(*) > 1) AS twice"),
            "ends": dict(fleet.ends()),
            "attempts_counted": self._one("SELECT coalesce(sum(attempt), 0) FROM jobq_jobs"),
            "attempts_recorded": self._one("SELECT count(*) FROM jobq_attempts"),
            "mismatches": self._one(
                "SELECT count(*) FROM (SELECT j.id FROM jobq_jobs j LEFT JOIN jobq_attempts a ON a.job_id = j.id "
                "GROUP BY j.id, j.attempt HAVING count(a.attempt) <> j.attempt) AS wrong"),
            "lost_attempts": self._one("SELECT count(*) FROM jobq_attempts WHERE outcome = 'LOST'"),
            "executions": len(executions),
            "executed_twice_under_one_attempt": len(executions.twice()),
            "overlaps": len(executions.overlaps()),
            "orphans": 0,  # these jobs have no containers
            "kills": dict(Counter(kill.kind for kill in self.kills)),
            "claimed_again": spread(self.claimed_again()),
            "promoted_after_a_scheduler": spread(self._next("queued_at", "jobq_jobs", "scheduler")),
            "claimed_after_a_flush": spread(self._next("started_at", "jobq_attempts", "flush")),
            "claimed_after_the_broker": spread(self._next("started_at", "jobq_attempts", "broker")),
        }  # fmt: skip

    def claimed_again(self) -> list[float]:
        """Seconds from the kill of a worker to the next claim of each attempt that it took along."""
        killed = {kill.pid: kill.at for kill in self.kills if kill.kind == "worker"}
        rows = self.rig.fleet.ask(
            "SELECT w.pid, extract(epoch FROM again.started_at) FROM jobq_attempts a "
            "JOIN jobq_workers w ON w.id = a.worker_id "
            "JOIN jobq_attempts again ON again.job_id = a.job_id AND again.attempt = a.attempt + 1 "
            "WHERE a.outcome = 'LOST'"
        )
        return [float(at) - killed[pid] for pid, at in rows if pid in killed and float(at) > killed[pid]]

    def _next(self, column: str, table: str, kind: str) -> list[float]:
        """Seconds from each kill of this kind until jobs went on: the first such instant after it."""
        found = self.rig.fleet.ask(f"SELECT extract(epoch FROM {column}) FROM {table} WHERE {column} IS NOT NULL")
        instants = sorted(float(at) for (at,) in found)
        return [
            next((at - kill.at for at in instants if at > kill.at), 0.0) for kill in self.kills if kill.kind == kind
        ]

    def _one(self, sql: str) -> int:
        return int(self.rig.fleet.ask(sql)[0][0])


def spread(seconds: list[float]) -> dict[str, float]:
    """How many, p50, p99 and the most."""
    if not seconds:
        return {"count": 0, "p50": 0.0, "p99": 0.0, "most": 0.0}
    ordered = sorted(seconds)

    def at(share: float) -> float:
        return round(ordered[min(int(len(ordered) * share), len(ordered) - 1)], 2)

    return {"count": len(ordered), "p50": at(0.5), "p99": at(0.99), "most": round(ordered[-1], 2)}


def show(ledger: dict[str, Any]) -> None:
    """As a table, and as one line of JSON."""
    print()
    for name, value in ledger.items():
        rows = value if isinstance(value, dict) else {"": value}
        for detail, number in rows.items():
            print(f"  {' '.join(filter(None, (name.replace('_', ' '), detail))):<42}{number:>12}")
    print(json.dumps(ledger))
