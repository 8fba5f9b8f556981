"""A receiver of webhooks as another system runs it: a process of its own that answers as it is told, and remembers.

    with Receiver(folder) as receiver:
        receiver.url("/fine")            # 200
        receiver.url("/status/503")      # always this status; ?retry_after=7
        receiver.url("/fails/2")         # 500 for each webhook-id twice, then 200
        receiver.url("/slow/30")         # answers after so many seconds
        receiver.url("/away")            # 503 while the file ``away`` exists in the folder
        receiver.url("/redirect")        # 302 to /fine

Each request is a line of JSON in ``received``: path, headers, body, instant.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, Self

from tests.services import wait_until

ROOT = Path(__file__).parent.parent
ADDRESS = "127.0.0.1"


class Receiver:
    """Starts the process and reads what it wrote down."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.away = folder / "away"
        self._port = folder / "port"
        self._received = folder / "received"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._received.touch()
        self._process = subprocess.Popen([sys.executable, "-m", "tests.receiver", str(self.folder)], cwd=ROOT)
        wait_until(lambda: self._port.exists() and self._port.read_text())
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    @property
    def port(self) -> int:
        return int(self._port.read_text())

    def url(self, path: str) -> str:
        return f"http://{ADDRESS}:{self.port}{path}"

    def received(self, path: str | None = None) -> list[dict[str, Any]]:
        """What came in, in order: all, or what came to this path."""
        lines = self._received.read_text().splitlines()
        found: list[dict[str, Any]] = [json.loads(line) for line in lines]
        return [each for each in found if path is None or each["path"] == path]

    def ids(self, path: str | None = None) -> Counter[str]:
        """How often each webhook-id came."""
        return Counter(each["headers"]["webhook-id"] for each in self.received(path))

    def events(self, path: str | None = None) -> list[dict[str, Any]]:
        """The documents that came."""
        return [json.loads(each["body"]) for each in self.received(path)]


class _Server:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = (folder / "received").open("a")
        self._seen: Counter[str] = Counter()

    async def serve(self) -> None:
        server = await asyncio.start_server(self._answer, ADDRESS, 0, backlog=512)
        port = self._folder / "port.new"
        port.write_text(str(server.sockets[0].getsockname()[1]))
        port.rename(self._folder / "port")
        async with server:
            await server.serve_forever()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head.strip().split("\r\n")
            headers = {name.lower(): text.strip() for name, _, text in (line.partition(":") for line in lines)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            path, _, query = first.split(" ")[1].partition("?")
            self._write_down(path, headers, body)
            status, more = await self._status(path, query, headers.get("webhook-id", ""))
            text = b"thanks" if status < 300 else b"no"
            writer.write(
                f"HTTP/1.1 {status} X\r\nContent-Length: {len(text)}\r\n{more}Connection: close\r\n\r\n".encode() + text
            )
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def _write_down(self, path: str, headers: dict[str, str], body: bytes) -> None:
        line = {"path": path, "headers": headers, "body": body.decode(), "at": time.time()}
        self._log.write(json.dumps(line) + "\n")
        self._log.flush()

    async def _status(self, path: str, query: str, webhook_id: str) -> tuple[int, str]:
        what, _, argument = path.lstrip("/").partition("/")
        self._seen[webhook_id + path] += 1
        match what:
            case "status":
                after = query.removeprefix("retry_after=")
                return int(argument), f"Retry-After: {after}\r\n" if after else ""
            case "fails":
                return (500 if self._seen[webhook_id + path] <= int(argument) else 200), ""
            case "slow":
                await asyncio.sleep(float(argument))
                return 200, ""
            case "away":
                return (503 if (self._folder / "away").exists() else 200), ""
            case "redirect":
                return 302, "Location: /fine\r\n"
        return 200, ""


if __name__ == "__main__":
    asyncio.run(_Server(Path(sys.argv[1])).serve())
