"""Where one is in a paginated list, as pure functions: the URL of a page, and what comes behind it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, unquote_plus, urlencode, urljoin

from jobq.connectors import InvalidConfiguration, InvalidPayload, Read
from workers.connectors.answers import Answer, search
from workers.connectors.http_configs import PLACEHOLDER, Cursor, HttpSourceConfig, Link, Offset, PageNumber

# RFC 8288: <URL>; rel="next"; title="a, b", <URL>; …
_LINK = re.compile(r'<([^>]*)>((?:[^,"<]|"(?:[^"\\]|\\.)*")*)')
_PARAM = re.compile(r';\s*([\w!#$&+.^`|~*-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;,"]*))')


@dataclass(frozen=True, slots=True)
class Place:
    """Behind which record one is. It holds all that a page depends on, so that reading on asks for the same pages."""

    size: int
    """Records in a page, where the service can be told."""
    at: Any = None
    """Of the page: its number, offset, cursor or URL. None: the first one."""
    skip: int = 0
    """Records of it that have been read."""
    since: Any = None
    state: Any = None
    """The newest change that was seen."""
    end: bool = False
    """True: behind the last page."""

    @classmethod
    def of(cls, request: Read, config: HttpSourceConfig) -> Place:
        """Where to begin. Raises InvalidConfiguration for a cursor that is none of this source."""
        if request.cursor is not None:
            try:
                return cls(**request.cursor)
            except TypeError:
                raise InvalidConfiguration("the cursor does not come from this source: start anew") from None
        since = request.state if request.since is None else _instant(request.since)
        since = since if config.since_param is not None else None
        state = request.state if config.state is not None else None
        return cls(config.page_size or request.batch_size, since=since, state=state)

    def cursor(self) -> dict[str, Any]:
        """The place as JSON; what has its default is left out."""
        return {name: value for name, value in asdict(self).items() if value is not None and value is not False}


def _instant(at: datetime) -> str:
    text = at.astimezone(UTC).isoformat()
    return text.removesuffix("+00:00") + "Z"


def url_of(config: HttpSourceConfig, place: Place) -> str:
    """The URL of the page."""
    way = config.pagination
    if isinstance(way, Link) and place.at is not None:
        return str(place.at)
    params: dict[str, Any] = dict(config.params)
    if config.size_param is not None:
        params[config.size_param] = place.size
    if config.since_param is not None and place.since is not None:
        params[config.since_param] = place.since
    if isinstance(way, PageNumber):
        params[way.param] = way.first if place.at is None else place.at
    elif isinstance(way, Offset):
        params[way.param] = place.at or 0
    elif isinstance(way, Cursor) and place.at is not None:
        params[way.param] = place.at
    return with_params(config.url, params)


def with_params(url: str, params: Mapping[str, Any]) -> str:
    """The URL with these parameters; they take the place of those of the same name that it has."""
    address, _, query = url.partition("#")[0].partition("?")
    kept = [pair for pair in query.split("&") if pair and unquote_plus(pair.partition("=")[0]) not in params]
    written = {name: str(value).lower() if isinstance(value, bool) else value for name, value in params.items()}
    together = "&".join([*kept, urlencode(written)] if written else kept)
    return f"{address}?{together}" if together else address


def behind(config: HttpSourceConfig, place: Place, answer: Answer, value: Any, count: int) -> Place:
    """The page after this one, which had ``count`` records; ``end`` is set where there is none.

    Raises InvalidConfiguration if the answer leads back to the page that it is, which would never end.
    """
    way, at = config.pagination, None
    if isinstance(way, PageNumber) and _goes_on(way.more, value, count):
        at = (way.first if place.at is None else place.at) + 1
    elif isinstance(way, Offset) and count and _goes_on(way.more, value, count):
        at = (place.at or 0) + count
    elif isinstance(way, Cursor):
        at = _found(way.next, value)
        at = at if isinstance(at, str | int | float) and not isinstance(at, bool) and at != "" else None
    elif isinstance(way, Link):
        at = next_link(answer.headers.get("Link", "")) if way.next is None else _found(way.next, value)
        at = _joined(answer, at) if isinstance(at, str) and at else None
    if at is not None and at == place.at:
        raise InvalidConfiguration(f"{answer}: its next page is itself")
    return replace(place, at=at, skip=0, end=at is None)


def _joined(answer: Answer, url: str) -> str:
    try:
        return urljoin(answer.url, url)
    except ValueError:
        raise InvalidConfiguration(f"{answer}, but the URL of its next page is malformed") from None


def _goes_on(more: str | None, value: Any, count: int) -> bool:
    return count > 0 if more is None else bool(_found(more, value))


def _found(expression: str, value: Any) -> Any:
    try:
        return search(expression, value)
    except ValueError as error:
        raise InvalidConfiguration(f"{expression!r} cannot be applied to the answer: {error}") from None


def next_link(header: str) -> str | None:
    """The URL of ``rel="next"`` in a Link header (RFC 8288), as it stands there: it may be relative."""
    for url, params in _LINK.findall(header):
        for name, quoted, plain in _PARAM.findall(params):
            if name.lower() == "rel" and "next" in (quoted or plain).lower().split():
                return str(url)
    return None


def records_of(config: HttpSourceConfig, answer: Answer, value: Any) -> list[Any]:
    """The list of records in an answer; a single object counts as a list of one."""
    found = _found(config.records, value)
    if isinstance(found, dict):
        return [found]
    if not isinstance(found, list):
        what = "nothing" if found is None else "no list"
        hint = f" (where an empty list is written as null: {config.records} || `[]`)" if found is None else ""
        raise InvalidConfiguration(f"{answer}, but there is {what} at {config.records!r}{hint}")
    return found


# --- states ----------------------------------------------------------------------------------------------------


def newest(seen: Any, records: Iterable[Any], expression: str | None) -> Any:
    """The newest of what was seen and of the states of these records."""
    if expression is None:
        return None
    for record in records:
        state = _found(expression, record)
        if isinstance(state, str | int | float) and (seen is None or _rank(state) > _rank(seen)):
            seen = state
    return seen


def _rank(state: Any) -> tuple[int, Any]:
    """Numbers by size, instants by time (naive ones as UTC), other text by its letters."""
    if isinstance(state, int | float):
        return (1, state)
    text = str(state)
    if text.isascii() and text.isdigit():
        return (1, int(text[:400]))
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return (0, text)
    return (2, (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp())


# --- templates ---------------------------------------------------------------------------------------------------


def fill(template: str, **values: str | None) -> str:
    """The URL for one entity. A value can neither leave its place in the path nor add a parameter.

    Raises InvalidPayload for a value that cannot stand there: ``.`` and ``..`` mean folders however they are written.
    """

    def value_of(name: str) -> str:
        value = values.get(name)
        if not value:
            raise InvalidPayload(
                f"the URL needs the {name} of the entity, which is {'empty' if value == '' else 'unknown'}"
            )
        return quote(value.encode("utf-8", "surrogatepass"), safe="")

    url = PLACEHOLDER.sub(lambda found: value_of(found[1]), template)
    path = url.partition("://")[2].partition("?")[0].partition("/")[2]
    if {".", ".."} & set(path.split("/")):
        raise InvalidPayload("the key of the entity cannot stand in a URL: it means a folder")
    return url
