"""Fan-outs: children per second from one SYNC, its worker's memory, replication to a target that does nothing, pause.

Celery's counterpart is a group of as many no-op tasks (``celery.group``), from its first message to its last execution.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any

from bench.ends import installed
from bench.figures import ratio, summary
from bench.stack import Peer, Servers, Stack, together

_BATCH = 1000


def measure(where: Servers, *, children: int, peer_tasks: int, rounds: int, sizes: list[int]) -> dict[str, Any]:
    """``children`` of one SYNC, and the cost of one child for each of ``sizes``."""
    points = installed()
    sys.path.append(points)  # this process enqueues
    with Stack(where, broker_db=4, workers=1, queues="sync:1", path=points) as stack:
        inserted = [_insert(stack, f"insert {number}", children) for number in range(rounds)]
        pauses = [_pause(stack, f"pause {number}", children) for number in range(rounds)]
    with Stack(where, broker_db=4, workers=1, queues="sync:1", path=points) as stack:
        cost = {
            str(size): round(1e6 / _insert(stack, f"size {size}", size, clear=False)["children_per_s"], 1)
            for size in sizes
        }
    ours, theirs = _whole_way(where, points, children, peer_tasks, rounds)
    return {
        "children": children,
        "inserted_per_s": summary([one["children_per_s"] for one in inserted], 0),
        "worker_mb_above_idle": summary([one["megabytes"] for one in inserted], 1),
        "us_per_child_inserted": cost,
        "pause_s": summary(pauses, 3),
        "replicated_per_s": summary(ours, 0),
        "celery_group_per_s": summary(theirs, 0),
        "jobq is so many times (medians)": ratio(statistics.median(ours), statistics.median(theirs)),
    }


def _sync(domain: str, children: int) -> dict[str, Any]:
    end = {"type": "bench", "config": {}}
    source = {"type": "bench", "config": {"count": children}}
    return {"domain": domain, "source": source, "targets": [{"name": "noop", **end}], "batch_size": _BATCH}


def _insert(stack: Stack, domain: str, children: int, *, clear: bool = True) -> dict[str, float]:
    """Read and insert: from the start of the SYNC to its last batch. Nobody executes the children.

    ``clear``: they are canceled before the next measurement.
    """
    client, (pid,) = stack.client(), stack.worker_pids()
    idle = _resident(pid)
    job = client.enqueue(_sync(domain, children), kind="SYNC", name="bench")
    while not (counts := client.fanout(job.id)).total or counts.reading:
        time.sleep(0.02)
    ((seconds,),) = stack.query(
        "SELECT extract(epoch FROM max(c.created_at) - min(p.started_at)) FROM jobq_jobs c "
        f"JOIN jobq_jobs p ON p.id = c.parent_id WHERE p.id = '{job.id}'"
    )
    peak = _peak(pid)
    if clear:
        client.cancel(job.id)
        client.wait(job.id, 300)
    assert counts.total == children, counts
    return {"children_per_s": children / float(seconds), "megabytes": peak - idle}


def _pause(stack: Stack, domain: str, children: int) -> float:
    """Seconds until a SYNC with so many waiting children is paused."""
    client = stack.client()
    job = client.enqueue(_sync(domain, children), kind="SYNC", name="bench")
    while not (counts := client.fanout(job.id)).total or counts.reading:
        time.sleep(0.02)
    began = time.monotonic()
    client.pause(job.id)
    while client.get(job.id).reason != "paused":
        time.sleep(0.005)
    seconds = time.monotonic() - began
    client.cancel(job.id)
    client.wait(job.id, 300)
    return seconds


def _whole_way(
    where: Servers, points: str, children: int, peer_tasks: int, rounds: int
) -> tuple[list[float], list[float]]:
    ours: list[float] = []
    theirs: list[float] = []
    parts: dict[str, Any] = {
        "jobq": Stack(where, broker_db=5, queues="sync:1,replication:500", path=points),
        "celery": Peer(where, "prefork", broker_db=6),
    }
    with together(parts) as running:
        for number in range(rounds):
            ours.append(children / _replicate(running["jobq"], f"replicate {number}", children))
            theirs.append(peer_tasks / running["celery"].group(peer_tasks)["seconds"])
    return ours, theirs


def _replicate(stack: Stack, domain: str, children: int) -> float:
    """Seconds from enqueuing the SYNC to its own end."""
    client = stack.client()
    began = time.monotonic()
    job = client.enqueue(_sync(domain, children), kind="SYNC", name="bench")
    ended = client.wait(job.id, 900)
    assert ended.status == "COMPLETED", ended
    return time.monotonic() - began


def _resident(pid: int) -> float:
    """Megabytes that the process holds now."""
    return _status(pid, "VmRSS")


def _peak(pid: int) -> float:
    """Megabytes that the process has held at most."""
    return _status(pid, "VmHWM")


def _status(pid: int, field: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise ValueError(field)
