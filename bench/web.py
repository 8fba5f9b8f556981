"""The HTTP API: enqueue requests a second, and what one takes, next to the same rows by Python; watchers of events.

API, clients and PostgreSQL share the machine's cores: a client that costs nothing would see more.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

from bench.figures import percentile
from bench.stack import HERE, Servers
from jobq.client import JobQ
from jobq.settings import Settings
from tests.services import free_port, wait_until

JOB = {"kind": "HEARTBEAT", "spec": {"endpoint": "https://example.org/"}, "name": "bench"}
BODY = json.dumps(JOB).encode()


def measure(where: Servers, *, seconds: float, clients: int, readers: int) -> dict[str, Any]:
    """One API process, and clients in another one."""
    name = where.postgres.create()
    port = free_port()
    environment = {
        **os.environ, "PYTHONPATH": str(HERE), "JOBQ_DATABASE_URL": where.postgres.url(name), "JOBQ_LOG_LEVEL": "WARNING",
    }  # fmt: skip
    subprocess.run([sys.executable, "-m", "bench.process", "upgrade"], env=environment, check=True, cwd=HERE)
    api = subprocess.Popen(
        [sys.executable, "-c", "from jobq.cli import main; main()", "api", "--port", str(port)],
        env=environment, cwd=HERE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until(lambda: _listens(port), timeout=30, what="the API")
        return {
            "cores": os.cpu_count(),
            **_ask(where.postgres.url(name), environment, port, seconds=seconds, clients=clients, readers=readers),
        }
    finally:
        api.terminate()
        api.wait(15)
        where.postgres.drop(name)


def _ask(
    url: str, environment: dict[str, str], port: int, *, seconds: float, clients: int, readers: int
) -> dict[str, Any]:  # fmt: skip
    found: dict[str, Any] = {}
    for what in ("get", "plain", "once"):
        for count in (1, clients):
            told = subprocess.run(
                [sys.executable, "-m", "bench.web", what, str(port), str(count), str(seconds)],
                env=environment, cwd=HERE, check=True, capture_output=True, text=True,
            )  # fmt: skip
            found[f"{what}_{count}"] = json.loads(told.stdout)
    with JobQ(url, settings=Settings()) as direct, JobQ(f"http://127.0.0.1:{port}", settings=Settings()) as remote:
        for label, jobq in (("python", direct), ("remote", remote)):
            for count in (1, clients):
                found[f"{label}_{count}"] = timed(lambda jobq=jobq: jobq.enqueue(**JOB), count, seconds)
            began = time.perf_counter()
            jobq.enqueue_many([JOB] * 5000)
            found[f"{label}_many_per_second"] = round(5000 / (time.perf_counter() - began))
        found["events"] = fan_out(direct, port, readers)
    return found


def timed(work: Callable[[], Any], threads: int, seconds: float) -> dict[str, Any]:
    """How often so many threads get it done, and how long one takes."""
    took: list[float] = []
    ends = time.perf_counter() + seconds

    def repeat() -> None:
        while (began := time.perf_counter()) < ends:
            work()
            took.append(time.perf_counter() - began)

    working = [threading.Thread(target=repeat) for _ in range(threads)]
    for thread in working:
        thread.start()
    for thread in working:
        thread.join()
    return {
        "per_second": round(len(took) / seconds), "p50_ms": round(1000 * percentile(took, 50), 2),
        "p99_ms": round(1000 * percentile(took, 99), 2),
    }  # fmt: skip


# --- a client that costs little ----------------------------------------------------------------------------------------


class Client:
    """A connection that is kept, and one request of bytes that are made already."""

    def __init__(self, port: int, what: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._what, self._number = what, 0

    def __call__(self) -> None:
        self._number += 1
        key = f"Idempotency-Key: {id(self)}-{self._number}\r\n" if self._what == "once" else ""
        head = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(BODY)}\r\n{key}\r\n"
        get = b"GET /v1/jobs?limit=1 HTTP/1.1\r\nHost: localhost\r\n\r\n"
        self._socket.sendall(get if self._what == "get" else b"POST /v1/jobs HTTP/1.1\r\n" + head.encode() + BODY)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += self._socket.recv(65536)
        headers, _, body = answer.partition(b"\r\n\r\n")
        assert headers.startswith((b"HTTP/1.1 201", b"HTTP/1.1 200")), answer
        length = int(headers.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        while len(body) < length:
            body += self._socket.recv(65536)


def load(what: str, port: int, threads: int, seconds: float) -> dict[str, Any]:
    """So many connections, each with one request at a time."""
    mine = threading.local()

    def ask() -> None:
        if not hasattr(mine, "client"):
            mine.client = Client(port, what)
        mine.client()

    return timed(ask, threads, seconds)


# --- watchers ----------------------------------------------------------------------------------------------------------


def fan_out(jobq: JobQ, port: int, readers: int) -> dict[str, Any]:
    """Seconds from the commit of a job until the first and the last of so many readers of /v1/events heard of it."""
    sockets = [_reader(port) for _ in range(readers)]
    first, last = [], []
    for number in range(10):
        name = f"event-{number}"
        began = time.perf_counter()
        jobq.enqueue(**{**JOB, "name": name})
        heard: list[float] = []

        def hear(reader: socket.socket, name: bytes = name.encode(), began: float = began, heard: Any = heard) -> None:
            while name not in reader.recv(1 << 20):
                pass
            heard.append(time.perf_counter() - began)

        listening = [threading.Thread(target=hear, args=(reader,)) for reader in sockets]
        for thread in listening:
            thread.start()
        for thread in listening:
            thread.join()
        first.append(min(heard))
        last.append(max(heard))
    for reader in sockets:
        reader.close()
    return {
        "readers": readers, "first_p50_ms": round(1000 * percentile(first, 50)),
        "last_p50_ms": round(1000 * percentile(last, 50)), "last_max_ms": round(1000 * max(last)),
    }  # fmt: skip


def _reader(port: int) -> socket.socket:
    reader = socket.create_connection(("127.0.0.1", port), timeout=60)
    reader.sendall(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
    seen = b""
    while b"event: open" not in seen:
        seen += reader.recv(65536)
    return reader


def _listens(port: int) -> bool:
    try:
        with closing(socket.create_connection(("127.0.0.1", port), timeout=1)):
            return True
    except OSError:
        return False


if __name__ == "__main__":
    print(json.dumps(load(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))))
