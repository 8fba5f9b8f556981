"""HTTP: reads the records of a JSON API page by page, and writes one entity by one request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any, ClassVar

from jobq.connectors import Access, Batch, Entity, InvalidConfiguration, InvalidPayload, NotNow, Problem, Read, Written
from jobq.errors import InvalidInput
from jobq.net import parse_url
from workers.connectors import pages
from workers.connectors.answers import LATER, Answer, judge_read, judge_write, retry_after, search
from workers.connectors.http_configs import HttpSourceConfig, HttpTargetConfig, Offset, PageNumber
from workers.connectors.pace import Pace
from workers.connectors.pages import Place
from workers.connectors.session import Session
from workers.connectors.values import write_json
from workers.redaction import Veil

MiB = 1024 * 1024
MAX_PAGE = 64 * MiB
MAX_ANSWER = 1 * MiB


class HttpSource:
    """Reads a JSON API. A page that is asked for too early (429, 503) is waited for, at most ``patience`` seconds."""

    config: ClassVar[type[HttpSourceConfig]] = HttpSourceConfig
    patience: ClassVar[float] = 300.0
    is_file = False

    def __init__(self, config: HttpSourceConfig, access: Access) -> None:
        self._config, self._log = config, access.log
        self._session = Session(config, access, MAX_PAGE)
        self._pace = Pace(config.rate_limit)
        self._veil = Veil(access.secrets)

    async def read(self, request: Read) -> AsyncIterator[Batch]:
        """The records, page by page. Records that are no objects are problems."""
        if request.entity is not None and self._config.entity_url is not None:
            if records := await self._one(self._config.entity_url, request.entity):
                yield Batch(records, None)
            return
        place, before = self._place(request), b""
        if request.cursor is not None:  # there may be nothing more, and what has been seen must not be forgotten
            yield Batch([], self._cursor(place), place.state)
        while not place.end:
            answer = await self._ask(pages.url_of(self._config, place), may_be_missing=self._is_further(place))
            value = [] if answer.status == 404 else _value(answer)
            records = [] if answer.status == 404 else pages.records_of(self._config, answer, value)
            if records and answer.body == before and isinstance(self._config.pagination, PageNumber | Offset):
                raise InvalidConfiguration(f"{answer}: two pages in a row are the same, does it know the parameter?")
            before = answer.body
            following = pages.behind(self._config, place, answer, value, len(records))
            state = place.state
            for batch in self._batches(records, place, following, request.batch_size):
                yield batch
                state = batch.state
            place = replace(following, state=state)

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    def _place(self, request: Read) -> Place:
        place = Place.of(request, self._config)
        return replace(place, at=self._veil.lift(place.at)) if isinstance(place.at, str) else place

    def _cursor(self, place: Place) -> dict[str, Any]:
        """The cursor, which is stored: services write tokens that they were sent into the URL of the next page."""
        return replace(place, at=self._veil.cover(place.at) if isinstance(place.at, str) else place.at).cursor()

    def _is_further(self, place: Place) -> bool:
        """Some services answer a page behind the last one with 404."""
        return isinstance(self._config.pagination, PageNumber) and place.at is not None

    async def _ask(self, url: str, *, may_be_missing: bool = False) -> Answer:
        """The answer with a page, as soon as the service gives it."""
        waited, tries = 0.0, 0
        while True:
            await self._pace.turn()
            answer = await self._session.ask("GET", url, credentials=_same_origin(url, self._config.url))
            if answer.status == 404 and may_be_missing:
                return answer
            if answer.status not in LATER:
                break
            asked = retry_after(answer.headers)
            pause = 2.0**tries if asked is None else asked.total_seconds()
            if waited + pause > self.patience:
                raise NotNow(f"{answer}", after=asked)
            self._log(f"{answer}: waiting {pause:g} s")
            await asyncio.sleep(pause)
            waited, tries = waited + pause, tries + 1
        judge_read(answer)
        return answer

    async def _one(self, template: str, key: str) -> list[dict[str, Any]]:
        """The entity with this key, if there is one."""
        answer = await self._ask(pages.fill(template, key=key), may_be_missing=True)
        if answer.status == 404:
            return []
        try:
            record = search(self._config.entity_record, _value(answer))
        except ValueError as error:
            raise InvalidConfiguration(f"{answer}, but its record cannot be found: {error}") from None
        return [record] if isinstance(record, dict) else []

    def _batches(self, records: list[Any], place: Place, following: Place, size: int) -> Iterator[Batch]:
        """The records of a page that have not been read, cut into batches, each with the place behind it."""
        for start in range(place.skip, len(records), size):
            part = records[start : start + size]
            good = [record for record in part if isinstance(record, dict)]
            state = pages.newest(place.state, good, self._config.state)
            ended = start + size >= len(records)
            place = replace(following if ended else place, skip=0 if ended else start + size, state=state)
            problems = [
                Problem(f"record {start + number + 1} of a page", f"it is no object, but {_kind(record)}")
                for number, record in enumerate(part)
                if not isinstance(record, dict)
            ]
            yield Batch(good, self._cursor(place), state, problems)


class HttpTarget:
    """Writes entities to a JSON API, each by one request that carries the job's idempotency key."""

    config: ClassVar[type[HttpTargetConfig]] = HttpTargetConfig
    patience: ClassVar[float] = 10.0
    """Seconds to wait for a turn under ``rate_limit``; beyond, the job comes later instead of holding its place."""

    def __init__(self, config: HttpTargetConfig, access: Access) -> None:
        self._config = config
        self._session = Session(config, access, MAX_ANSWER)
        self._pace = Pace(config.rate_limit)

    async def write(self, entity: Entity) -> Written:
        """Send the entity. ``created``: True for 201, None for 202 (not yet known), else False."""
        method, url = self._address(entity)
        try:
            body = write_json(dict(entity.payload))
        except (ValueError, TypeError) as error:
            raise InvalidPayload(f"the payload cannot be sent as JSON: {type(error).__name__}") from None
        await self._pace.turn(self.patience)
        headers = {"Content-Type": "application/json", "Idempotency-Key": entity.idempotency_key}
        answer = await self._session.ask(method, url, headers=headers, body=body)
        judge_write(answer, self._config.rules, self._said(answer))
        created = None if answer.status == 202 else answer.status == 201
        return Written(self._external_id(answer) or entity.external_id, created)

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    def _address(self, entity: Entity) -> tuple[str, str]:
        update = self._config.update if entity.external_id is not None else None
        method, template = (update.method, update.url) if update else (self._config.method, self._config.url)
        return method, pages.fill(template, key=entity.key, external_id=entity.external_id)

    def _said(self, answer: Answer) -> str:
        """What the service says, where it may be a complaint."""
        if answer.status < 300 and not self._config.rules:
            return ""
        return self._session.hide(answer.body.decode(errors="replace"))

    def _external_id(self, answer: Answer) -> str | None:
        if self._config.external_id is None:
            return None
        try:
            found = search(self._config.external_id, answer.json())
        except ValueError:  # it has been written: an answer without an id is no failure
            return None
        return str(found) if isinstance(found, str | int) and not isinstance(found, bool) and found != "" else None


def _value(answer: Answer) -> Any:
    if len(answer.body) > MAX_PAGE:
        raise InvalidConfiguration(f"{answer}, with more than {MAX_PAGE // MiB} MiB: ask for smaller pages")
    try:
        return answer.json()
    except ValueError as error:
        raise InvalidConfiguration(f"{answer}, but {error}") from None


def _same_origin(url: str, home: str) -> bool:
    """True where both URLs lead to the same scheme, host and port: elsewhere credentials do not belong."""
    try:
        return parse_url(url).origin == parse_url(home).origin
    except InvalidInput:  # the session says what is wrong with it
        return False


def _kind(value: Any) -> str:
    return {str: "text", list: "a list", type(None): "null"}.get(type(value), "a number or a boolean")
