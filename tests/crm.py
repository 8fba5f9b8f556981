"""Another party, in a process of its own: a service that has customers, and targets that take them.

    GET  /customers?page=1&size=50&since=…   one page; ``Authorization: Bearer`` is required, as everywhere but /admin
    GET  /customers/KEY                      one customer
    PUT  /NAME/KEY                           target NAME takes a customer; a repeated Idempotency-Key changes nothing
    PUT  /admin      GET /admin?target=NAME  what a test sets, and what it wants to know (default: of all targets)

Targets answer 422 for the keys that they refuse, and repeat the header with the token as rude services do; 429 with
Retry-After for a second after each ``limit`` requests, however slowly they come. It ends with whoever started it.
"""

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "canary-7c41e0-bearer"
_RETRY_AFTER = 1

# --- the service -----------------------------------------------------------------------------------------------------


@dataclass
class World:
    """What the service has and was sent."""

    customers: list[dict[str, Any]] = field(default_factory=list)
    page_seconds: float = 0.0
    refused: dict[str, list[str]] = field(default_factory=dict)
    limit: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    pages: list[Any] = field(default_factory=list)
    """(instant, query) of each page that was asked for."""
    writes: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    """Per target: (instant, key, idempotency key, status) of each request."""
    entities: dict[str, dict[str, Any]] = field(default_factory=lambda: defaultdict(dict))
    answered: dict[str, int] = field(default_factory=dict)
    taken: Counter[str] = field(default_factory=Counter)
    rests_until: dict[str, float] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def page(self, query: dict[str, str]) -> dict[str, Any]:
        found = self.customers
        if "since" in query:
            since = datetime.fromisoformat(query["since"])
            found = [each for each in found if datetime.fromisoformat(each["changed"]) >= since]
        number, size = int(query.get("page", 1)), int(query.get("size", 50))
        with self.lock:
            self.pages.append((time.time(), query))
        time.sleep(self.page_seconds)
        return {"items": found[(number - 1) * size : number * size], "more": number * size < len(found)}

    def take(self, target: str, key: str, idempotency_key: str, body: Any) -> int:
        time.sleep(self.seconds.get(target, 0.0))
        with self.lock:
            status = self._judge(target, key, idempotency_key, body)
            self.writes[target].append((time.time(), key, idempotency_key, status))
        return status

    def tell(self, only: list[str] | None) -> dict[str, Any]:
        with self.lock:
            return {
                "pages": self.pages,
                "writes": {name: self.writes[name] for name in (only or list(self.writes))},
                "entities": {name: self.entities[name] for name in (only or list(self.entities))},
            }

    def _judge(self, target: str, key: str, idempotency_key: str, body: Any) -> int:
        now = time.time()
        if now < self.rests_until.get(target, 0.0):
            return 429
        self.taken[target] += 1
        if target in self.limit and self.taken[target] % (self.limit[target] + 1) == 0:
            self.rests_until[target] = now + _RETRY_AFTER
            return 429
        if key in self.refused.get(target, ()):
            return 422
        if idempotency_key in self.answered:
            return self.answered[idempotency_key]
        status = self.answered[idempotency_key] = 200 if key in self.entities[target] else 201
        self.entities[target][key] = body
        return status


class _Service(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    world: World

    def do_GET(self) -> None:
        place = urlsplit(self.path)
        if place.path == "/admin":
            return self._answer(200, self.world.tell(parse_qs(place.query).get("target")))
        if not self._is_known():
            return self._answer(401, {"error": f"who is {self.headers.get('Authorization')}?"})
        if place.path == "/customers":
            return self._answer(200, self.world.page({name: all_[0] for name, all_ in parse_qs(place.query).items()}))
        key = unquote(place.path.rpartition("/")[2])
        found = next((each for each in self.world.customers if str(each["id"]) == key), None)
        return self._answer(200 if found else 404, found)

    def do_PUT(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/admin":
            for name, value in body.items():
                setattr(self.world, name, value)
            return self._answer(200, {})
        if not self._is_known():
            return self._answer(401, {})
        _, target, key = urlsplit(self.path).path.split("/")
        status = self.world.take(target, unquote(key), self.headers["Idempotency-Key"], body)
        error = {"error": "no such street", "you": self.headers["Authorization"]} if status == 422 else {}
        return self._answer(status, error or {"number": f"{target}-{unquote(key)}"})

    def _is_known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _answer(self, status: int, document: Any) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if status == 429:
            self.send_header("Retry-After", str(_RETRY_AFTER))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name that the base class gave it
        """Nobody reads it."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that are killed are nothing to speak of."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def serve() -> None:
    """Serve until stdin ends; the port is printed first."""
    _Service.world = World()
    server = _Server(("127.0.0.1", 0), _Service)
    print(server.server_port, flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()
    os._exit(0)


# --- the test's end of it --------------------------------------------------------------------------------------------


class Crm:
    """The service, as a test starts and sets it up; with a ``url``: as it runs already."""

    def __init__(self, url: str = "") -> None:
        self.url = url

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.crm"], cwd=Path(__file__).parent.parent, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout
        self.url = f"http://127.0.0.1:{int(self.process.stdout.readline())}"
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()

    def set(self, **values: Any) -> None:
        """Change what the service has, or how it answers; see ``World``."""
        self._ask("PUT", json.dumps(values).encode())

    def reset(self, customers: list[dict[str, Any]], **values: Any) -> None:
        """These customers, and all else as at the start."""
        nothing = {"page_seconds": 0.0, "refused": {}, "limit": {}, "seconds": {}, "pages": []}
        self.set(**{**nothing, "customers": customers, **values})

    def pages(self) -> list[Any]:
        """(instant, query) of each page that was asked for."""
        return list(self._ask("GET")["pages"])

    def writes(self, target: str) -> list[Any]:
        """(instant, key, idempotency key, status) of each request to the target."""
        return list(self._ask("GET", of=target)["writes"][target])

    def entities(self, target: str) -> dict[str, Any]:
        """What the target has."""
        return dict(self._ask("GET", of=target)["entities"][target])

    def _ask(self, method: str, body: bytes | None = None, *, of: str = "") -> Any:
        query = f"?target={of}" if of else ""
        request = urllib.request.Request(f"{self.url}/admin{query}", data=body, method=method)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.loads(answer.read())


if __name__ == "__main__":
    serve()
