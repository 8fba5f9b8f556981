"""Container jobs per second: the executor beside a bare script on the Docker API, taking turns in one run.

The bare script is what anybody would write first: create, start, wait and remove over one kept connection pool,
with the same safe configuration; no log, no timeout, no recovery. Usage: python -m bench.containers [jobs] [rounds]
"""

import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import aiohttp

from jobq.specs import Container
from jobq.states import Status
from tests import services
from tests.containers import IMAGE, Job, executor_at
from workers.container.config import create_body

CONCURRENCY = 4
SPEC = Container(image=IMAGE, command=["true"])


async def drain(jobs: int, one: Callable[[], Awaitable[None]]) -> dict[str, float]:
    """Run that many, ``CONCURRENCY`` at once; jobs per second, and CPU of this process per job."""
    turns = iter(range(jobs))

    async def slot() -> None:
        for _ in turns:
            await one()

    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(slot() for _ in range(CONCURRENCY)))
    seconds = time.perf_counter() - began
    return {"per_s": round(jobs / seconds, 2), "cpu_ms": round((time.process_time() - cpu) / jobs * 1000, 2)}


async def compare(socket: str, jobs: int, rounds: int) -> dict[str, object]:
    """Alternate the two; the ratio is taken round by round, because the machine drifts."""
    connector = aiohttp.UnixConnector(socket)
    async with aiohttp.ClientSession(connector=connector) as http, executor_at(f"unix://{socket}") as executor:

        async def call(method: str, path: str, body: object = None) -> None:
            async with http.request(method, f"http://docker/v1.41/containers/{path}", json=body) as reply:
                reply.raise_for_status()
                await reply.read()

        async def bare() -> None:
            job = Job()
            body = create_body(
                SPEC, job.ctx.job, env_id="bench", worker_id="bench", now=datetime.now(UTC), max_log_bytes=1 << 20
            )
            await call("POST", f"create?name={job.name}", body)
            await call("POST", f"{job.name}/start")
            await call("POST", f"{job.name}/wait")
            await call("DELETE", f"{job.name}?v=true&force=true")

        async def ours() -> None:
            outcome = await executor.execute(SPEC, Job().ctx)
            assert outcome.status is Status.COMPLETED, outcome

        await drain(CONCURRENCY, bare)
        await drain(CONCURRENCY, ours)
        bares: list[dict[str, float]] = []
        mine: list[dict[str, float]] = []
        for turn in range(rounds):
            for which, results in ((bare, bares), (ours, mine))[:: 1 if turn % 2 else -1]:
                results.append(await drain(jobs, which))
    ratios = [round(m["per_s"] / b["per_s"], 3) for m, b in zip(mine, bares, strict=True)]
    return {
        "jobs": jobs,
        "concurrency": CONCURRENCY,
        "cores": os.cpu_count(),
        "bare": bares,
        "executor": mine,
        "ratios": ratios,
        "ratio_median": round(statistics.median(ratios), 3),
    }


def main() -> None:
    jobs, rounds = (int(text) for text in (*sys.argv[1:], "40", "7")[:2])
    with services.Docker() as engine:
        print(json.dumps(asyncio.run(compare(engine.url.removeprefix("unix://"), jobs, rounds)), indent=1))


if __name__ == "__main__":
    main()
