"""Webhooks are delivered: what is due is leased, sent from an event loop of its own, and recorded in batches.

A request to a stranger takes what it takes, so the loop here never waits for one: each round records what has come
back, then leases as much as there is room for. Room is what keeps endpoints apart: each has a few requests at once,
one that fails has fewer, and all together have as many as the process can bear.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from jobq import metrics, telemetry
from jobq.errors import InvalidInput, Misconfigured, NotFound, Unavailable
from jobq.net import check_url
from jobq.outbound.causes import RequestFailed
from jobq.outbound.client import Outbound
from jobq.outbound.http1 import Request
from jobq.outbound.resolver import Resolves
from jobq.settings import Settings
from jobq.store.database import Database
from jobq.store.jobs import new_id
from jobq.store.sql import instant_text
from jobq.store.webhook_deliveries import (
    Leased,
    Tried,
    endpoints_to_look_at,
    events_of,
    lease,
    record,
)
from jobq.store.webhook_documents import documents_of
from jobq.store.webhook_live import hook_live_jobs
from jobq.store.webhooks import any_exists
from jobq.store.workers import database_now
from jobq.vault import Vault
from jobq.webhook_delivery import MAX_ANSWER, Verdict, judge, no_answer, signed_headers
from jobq.webhook_events import Happened, body
from jobq.webhooks import vault_name

log = logging.getLogger(__name__)

ALL_AT_ONCE = 256
EACH_AT_ONCE = 32
FAILING_AT_ONCE = 2
"""Requests under way: in all, to one endpoint, and to one whose last delivery failed."""
_IDLE = 1.0
_LOOK_EVERY = 0.05
"""Seconds to the next look where nothing was due; between two looks, however often somebody announces a commit."""
_NOBODY = 1.0
"""Seconds between two looks while there is no endpoint at all: who has no webhooks does not pay for them."""
_LEASE_SPARE = 15.0
"""Seconds between a request's deadline and the end of its lease: for its record, and for what is sent before it."""
_GRACE = 3.0
_MOST_KEPT = 10_000
Key = tuple[UUID, int]
End = Callable[[Leased, Verdict, float], None]


class Deliverer:
    """Sends what is due. ``wake``: called from any thread when a request has come to an end."""

    def __init__(self, database: Database, settings: Settings, resolver: Resolves | None = None) -> None:
        self._database = database
        self._settings = settings
        self._deadline = settings.webhook_timeout.total_seconds()
        self._sender = new_id()
        self._under_way: Counter[UUID] = Counter()
        self._ended: deque[Tried] = deque()
        self._requests = Requests(settings, resolver)
        self._next_look = 0.0
        self._opened: dict[tuple[UUID, str], str] = {}
        self.wake: Callable[[], None] = lambda: None

    def stop(self) -> None:
        """When the loop has ended: a few seconds for the requests under way. What is left is sent again by others."""
        self._requests.stop(_GRACE)
        with suppress(Unavailable):
            if self._ended:
                self._exchange({}, list(self._ended))

    def tick(self) -> float:
        """One round; returns the seconds until the next, which the end of a request shortens."""
        ended = list(self._ended)
        early = self._next_look - time.monotonic()
        if early > 0 and not ended:
            return early
        with self._database.read() as conn:
            looked = endpoints_to_look_at(conn)
            nobody = not looked and not self._under_way and not any_exists(conn)
        self._next_look = time.monotonic() + (_NOBODY if nobody else _LOOK_EVERY)
        if nobody:
            return _NOBODY
        hooking = any(row.hooking for row in looked)
        if hooking:
            self._database.run(hook_live_jobs)
        endpoints = {row.id: row for row in looked if row.due}
        taken = self._exchange(endpoints, ended) if endpoints or ended else []
        if taken:
            self._send(taken, endpoints)
        return _LOOK_EVERY if taken or hooking else _IDLE

    # --- record, and lease ---------------------------------------------------------------------------------------

    def _exchange(self, endpoints: Mapping[UUID, Any], ended: Sequence[Tried]) -> Sequence[Leased]:
        """One transaction: what has come back is recorded, and as much is leased as there is room for then."""
        busy = self._under_way - Counter(tried.delivery.endpoint_id for tried in ended)
        rooms = rooms_of(endpoints.values(), busy)
        well = {row.id for row in endpoints.values() if row.failing_since is None and row.fresh}
        lasts = self._deadline + min(_LEASE_SPARE, self._deadline)

        def work(conn: Any) -> Sequence[Leased]:
            if ended:
                record(conn, self._sender, ended, well)
            return lease(conn, self._sender, rooms, lasts)

        try:
            taken = self._database.run(work)
        except Unavailable:
            raise  # they are recorded in a later round
        except Exception:
            self._forget(ended)  # whatever it is that cannot be written: it must not come again in every round
            raise
        self._forget(ended)
        metrics.WEBHOOKS.add_all(Counter((tried.verdict.outcome,) for tried in ended))
        return taken

    def _forget(self, ended: Sequence[Tried]) -> None:
        for _ in ended:
            self._ended.popleft()
        self._under_way -= Counter(tried.delivery.endpoint_id for tried in ended)

    # --- send ----------------------------------------------------------------------------------------------------

    def _send(self, taken: Sequence[Leased], endpoints: dict[UUID, Any]) -> None:
        with self._database.read() as conn:
            now = database_now(conn)
            events = events_of(conn, taken)
            found = self._documents(conn, events)
        documents = {
            key: json.dumps(body(events[key], data), separators=(",", ":")).encode() for key, data in found.items()
        }
        for delivery in taken:
            key = (delivery.subject_id, delivery.number)
            self._under_way[delivery.endpoint_id] += 1
            try:
                if key not in documents:
                    raise NotFound("what it tells of was deleted, or cannot be put into words", code="nothing_to_tell")
                endpoint = endpoints[delivery.endpoint_id]
                request = self._request(endpoint, events[key].webhook_id, documents[key], now)
            except (InvalidInput, Misconfigured, NotFound) as error:
                self._end(delivery, no_answer(delivery.tries, _class_of(error), error.message, random.random), 0.0)
            else:
                self._requests.submit(request, delivery, events[key], self._end)

    def _documents(self, conn: Any, events: Mapping[Key, Happened]) -> dict[Key, dict[str, Any]]:
        """What is told of each event; one that cannot be put into words costs itself."""
        try:
            return documents_of(conn, events.values(), self._settings.env_id)
        except Unavailable:
            raise
        except Exception:
            log.exception("some of %d events cannot be put into words", len(events))
        found: dict[Key, dict[str, Any]] = {}
        for event in events.values():
            with suppress(Exception):  # it was logged
                found |= documents_of(conn, [event], self._settings.env_id)
        return found

    def _request(self, endpoint: Any, webhook_id: str, document: bytes, now: Any) -> Request:
        target = check_url(endpoint.url, self._settings.policy.networks_allowed())
        headers = signed_headers(
            self._secrets(endpoint, now), webhook_id, int(now.timestamp()), document, endpoint.hub_signature
        )
        return Request(
            target, "POST", {"user-agent": "jobq-webhooks", **headers}, document, max_body=MAX_ANSWER, confidential=True
        )

    def _secrets(self, endpoint: Any, now: Any) -> list[str]:
        """Those that are valid now, the newest first. Opening one takes longer than signing with it: they are kept."""
        if len(self._opened) > _MOST_KEPT:
            self._opened.clear()
        found = []
        for each in endpoint.secrets:
            if each["until"] is not None and each["until"] <= instant_text(now):
                continue
            key = (endpoint.id, each["sealed"])
            if key not in self._opened:
                name = vault_name(endpoint.id)
                self._opened[key] = Vault(self._settings).open(endpoint.tenant, name, each["sealed"])
            found.append(self._opened[key])
        return found

    def _end(self, delivery: Leased, verdict: Verdict, seconds: float) -> None:
        self._ended.append(Tried(delivery, verdict, seconds))
        self.wake()


def rooms_of(endpoints: Any, under_way: Counter[UUID]) -> dict[UUID, int]:
    """How many more requests each endpoint may have under way. What is short is shared alike."""
    asked = {
        row.id: max((EACH_AT_ONCE if row.failing_since is None else FAILING_AT_ONCE) - under_way[row.id], 0)
        for row in endpoints
    }
    left = ALL_AT_ONCE - under_way.total()
    rooms: dict[UUID, int] = {}
    for number, (endpoint_id, room) in enumerate(sorted(asked.items(), key=lambda item: (item[1], random.random()))):
        share = max(left, 0) // (len(asked) - number)
        rooms[endpoint_id] = min(room, share or (1 if left > 0 else 0))
        left -= rooms[endpoint_id]
    return rooms


def _class_of(error: Exception) -> str:
    if isinstance(error, InvalidInput):
        return "blocked" if error.code == "target_blocked" else error.code
    return getattr(error, "code", "error")


class Requests:
    """An event loop in a thread, and the guarded client in it. Begins with the first request."""

    def __init__(self, settings: Settings, resolver: Resolves | None = None) -> None:
        self._resolver = resolver
        self._networks = settings.policy.networks_allowed()
        self._deadline = settings.webhook_timeout.total_seconds()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._outbound: Outbound | None = None
        self._under_way: set[Future[None]] = set()

    def submit(self, request: Request, delivery: Leased, event: Happened, end: End) -> None:
        """Send it; ``end`` is called from the loop's thread."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._run, args=(self._loop,), name="jobq-requests", daemon=True)
            self._thread.start()
        future = asyncio.run_coroutine_threadsafe(self._deliver(request, delivery, event, end), self._loop)
        self._under_way.add(future)
        future.add_done_callback(self._under_way.discard)

    def stop(self, grace: float) -> None:
        """Wait so many seconds for what is under way, then end the loop."""
        if self._loop is None or self._thread is None:
            return
        wait(tuple(self._under_way), grace)
        for future in tuple(self._under_way):
            future.cancel()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(2.0)

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        self._outbound = Outbound(self._networks, resolver=self._resolver)
        try:
            loop.run_forever()
        finally:
            self._outbound.close()
            loop.close()

    async def _deliver(self, request: Request, delivery: Leased, event: Happened, end: End) -> None:
        began, to = time.monotonic(), request.target
        with telemetry.delivering(event.traceparent, event.type, to.host, to.port) as (traced, span):
            verdict = await self._try(replace(request, headers={**request.headers, **traced}), delivery.tries)
            if verdict.status_code is not None:
                telemetry.answered(span, verdict.status_code)
            if verdict.error_class not in {None, "status"}:  # an answer's status is its class
                telemetry.failed(span, str(verdict.error_class))
        end(delivery, verdict, time.monotonic() - began)

    async def _try(self, request: Request, tries: int) -> Verdict:
        assert self._outbound is not None
        try:
            answer = await self._outbound.send(request, seconds=self._deadline)
            return judge(tries, answer, datetime.now(UTC), random.random)
        except RequestFailed as failure:
            return no_answer(tries, failure.code, failure.message, random.random)
        except Exception as error:
            log.exception("a delivery failed in a way that nobody foresaw")
            return no_answer(tries, "error", f"{type(error).__name__}: {error}", random.random)
