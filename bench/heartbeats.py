"""Probes per second of the HEARTBEAT executor, beside a plain aiohttp loop that does nothing but GET.

    python -m bench.heartbeats [--probes 5000] [--rounds 5]

Prints JSON: probes per second and microseconds of CPU per probe (user and system, of the probing process alone),
each round and the median. The server is another process on the same machine. Every round runs all variants in turn,
because these figures drift with whatever else the machine does: compare within one run only.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from uuid import uuid4

import aiohttp

from jobq.plugins import Context, JobRef
from jobq.settings import Policy, Settings
from jobq.specs import Heartbeat
from workers.heartbeat import HeartbeatExecutor

CONCURRENCY = (100, 1000)
SERVER = """
import asyncio

class Server(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(b"HTTP/1.1 200 OK\\r\\nContent-Type: text/plain\\r\\nContent-Length: 2\\r\\n\\r\\nok")
        self.transport.close()

async def main():
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"""

Once = Callable[[], Awaitable[bool]]


async def measure(once: Once, probes: int, concurrency: int) -> dict[str, float]:
    """Run so many probes, so many of them at a time; every one must succeed."""
    left = iter(range(probes))

    async def slot() -> None:
        for _ in left:
            if not await once():
                raise SystemExit("a probe failed: these figures would mean nothing")

    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(slot() for _ in range(concurrency)))
    seconds = time.perf_counter() - began
    used = time.process_time() - cpu
    return {"per_second": round(probes / seconds), "cpu_us": round(used / probes * 1e6)}


async def rounds(port: int, probes: int, count: int) -> dict[str, list[dict[str, float]]]:
    url = f"http://127.0.0.1:{port}/"
    spec = Heartbeat(endpoint=url)
    executor = HeartbeatExecutor()
    await executor.open(Settings(policy=Policy(probe_networks=["127.0.0.0/8"])))

    async def ours() -> bool:
        job = JobRef(uuid4(), 1, "default", "HEARTBEAT", "bench", "heartbeat", "MANUAL", 10.0)
        return (await executor.execute(spec, Context(job))).status == "COMPLETED"

    found: dict[str, list[dict[str, float]]] = {}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True, limit=0)) as session:

        async def plain() -> bool:
            async with session.get(url, allow_redirects=False) as answer:
                await answer.read()
                return answer.status == 200

        await measure(ours, 200, 50)
        await measure(plain, 200, 50)
        for _ in range(count):
            for concurrency in CONCURRENCY:
                for name, once in (("executor", ours), ("aiohttp", plain)):
                    figures = await measure(once, probes, concurrency)
                    found.setdefault(f"{name} at {concurrency}", []).append(figures)
    await executor.close()
    return found


def summary(found: dict[str, list[dict[str, float]]]) -> dict[str, object]:
    return {
        name: {
            "per_second": statistics.median(each["per_second"] for each in figures),
            "cpu_us": statistics.median(each["cpu_us"] for each in figures),
            "rounds": figures,
        }
        for name, figures in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--probes", type=int, default=5000, help="of each variant in each round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout
            port = int(server.stdout.readline())
            found = asyncio.run(rounds(port, options.probes, options.rounds))
        finally:
            server.kill()
    print(json.dumps({"bench": "heartbeats", "cpus": os.cpu_count(), "variants": summary(found)}, indent=2))


if __name__ == "__main__":
    main()
