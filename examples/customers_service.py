"""A small service on this machine for the examples: it has customers, and takes subscribers of a newsletter.

    GET /customers?page=1    ten customers a page; needs "Authorization: Bearer open-sesame"
    PUT /subscribers/ID      at each fifth it rests for a second: 429 with Retry-After; 422 for an address that is none

customers_sync.py starts it. For customers.yaml, run it: python examples/customers_service.py
"""

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from urllib.parse import parse_qs, urlsplit

PORT = 8322
TOKEN = "open-sesame"  # noqa: S105 - everybody knows it
NAMES = [
    *("Ada", "Alan", "Barbara", "Donald", "Edsger", "Frances", "Grace", "Hedy"),
    *("Ivan", "Jean", "Ken", "Leslie", "Margaret", "Niklaus", "Radia"),
]
CUSTOMERS = [
    {
        "id": number,
        "name": {"first": name, "last": f"No. {number}"},
        "email": f"{name.lower()}@example.org",
        "active": number % 5 != 0,
        "newsletter": number % 2 == 0,
        "changed": f"2026-01-{number:02}T00:00:00Z",
    }
    for number, name in enumerate(NAMES, 1)
]
CUSTOMERS[7]["email"] = "hedy at example"  # number 8


class Service(BaseHTTPRequestHandler):
    mended = False
    asked = count(1)
    rests_until = 0.0

    def do_GET(self) -> None:
        place = urlsplit(self.path)
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "who are you?"})
        page = int(parse_qs(place.query).get("page", ["1"])[0])
        return self.answer(200, {"items": CUSTOMERS[(page - 1) * 10 : page * 10], "more": page * 10 < len(CUSTOMERS)})

    def do_PUT(self) -> None:
        subscriber = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if next(self.asked) % 5 == 0:
            Service.rests_until = time.monotonic() + 1
        if time.monotonic() < self.rests_until:
            return self.answer(429, {"error": "not so fast"})
        if "@" not in subscriber["email"] and not self.mended:
            return self.answer(422, {"error": "no such address"})
        return self.answer(201, {"number": f"S-{self.path.rpartition('/')[2]}"})

    def answer(self, status: int, document: object) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if status == 429:
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


def server(port: int = 0) -> ThreadingHTTPServer:
    """On a free port, unless one is named; ``serve_forever`` serves."""
    return ThreadingHTTPServer(("127.0.0.1", port), Service)


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else PORT
    print(f"http://127.0.0.1:{port}/customers, until Ctrl-C", flush=True)
    server(port).serve_forever()
