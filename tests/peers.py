"""Another party on the network: a small HTTP service that holds entities, in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

TOKEN = "s3cret-t0ken-of-the-service"


@dataclass
class Request:
    """What the service was asked."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any = None


@dataclass
class HttpPeer:
    """``/items`` lists ``items`` in pages of every fashion; ``/entities/{key}`` and ``/entities`` take entities.

    ``answers``: taken one by one instead of the usual answer: (status, headers, body), or a callable that makes it.
    """

    items: list[dict[str, Any]] = field(default_factory=list)
    entities: dict[str, dict[str, Any]] = field(default_factory=dict)
    answers: list[tuple[int, dict[str, str], Any]] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    token: str | None = None
    page_size: int = 2
    seconds: float = 0.0
    """How long each answer takes."""
    on_request: Callable[[Request], None] | None = None

    def __enter__(self) -> Self:
        started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(started)), daemon=True)
        self._thread.start()
        assert started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)

    async def _serve(self, started: threading.Event) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_route("*", r"/{tail:[\s\S]*}", self._answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.port: int = runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self.port}"
        started.set()
        await self._end.wait()
        await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json() if request.can_read_body else None
        seen = Request(request.method, request.raw_path, dict(request.query), dict(request.headers), body)
        self.requests.append(seen)
        if self.on_request:
            self.on_request(seen)
        if self.seconds:
            await asyncio.sleep(self.seconds)
        if self.answers:
            status, headers, content = self.answers.pop(0)
            if isinstance(content, bytes):
                return web.Response(status=status, headers=headers, body=content)
            return web.json_response(content, status=status, headers=headers)
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.json_response({"error": f"bad token {request.headers.get('Authorization')}"}, status=401)
        if request.path == "/items":
            return self._page(request)
        # The key is one segment of the path, however it is spelled: the raw path tells.
        return self._entity(request, request.raw_path.partition("?")[0].split("/"), body)

    def _page(self, request: web.Request) -> web.Response:
        query = request.query
        items = [item for item in self.items if item["changed"] >= query.get("since", "")]
        size = int(query.get("limit", self.page_size))
        start = int(query.get("offset", 0)) or (int(query.get("page", 1)) - 1) * size
        start = start or int(query.get("cursor", "c0")[1:])
        page = items[start : start + size]
        more = start + size < len(items)
        following = f"{request.path}?cursor=c{start + size}&limit={size}"
        if "since" in query:
            following += f"&since={query['since'].replace('+', '%2B')}"
        headers = {"Link": f'<{self.url}/first>; rel="first", <{following}>; rel="next"'} if more else {}
        content = {"data": page, "next": f"c{start + size}" if more else None, "url": following if more else None}
        return web.json_response(content, headers=headers)

    def _entity(self, request: web.Request, path: list[str], body: Any) -> web.Response:
        from urllib.parse import unquote

        key = unquote(path[2]) if len(path) == 3 else str((body or {}).get("id"))
        if request.method == "GET":
            found = next((item for item in self.items if item["id"] == key), None)
            return web.json_response({"item": found} if found else {}, status=200 if found else 404)
        is_new = key not in self.entities
        self.entities[key] = body
        return web.json_response({"number": f"N-{key}"}, status=201 if is_new else 200)
