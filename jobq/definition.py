"""What people ask for: the definition of a workflow, and the request for one job. Checked completely at the door.

Both are read with ``jobq.validation.parse`` (unknown fields and wrong types are refused there) and then completed by
``checked``, which knows the installation: kinds, the operator's policy, maxima. What ``checked`` returns has every
default filled in and is what the store keeps. Durations are given as ISO 8601 text, seconds or timedelta.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Self
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    field_validator,
    model_validator,
)

from jobq.duration import HINT, Duration, format_duration, parse_duration
from jobq.errors import InvalidInput, JobQError
from jobq.plugins import BUILT_IN, Kind, find_kind
from jobq.retry import RetryPolicy
from jobq.schedule import (
    Cron,
    Every,
    Misfire,
    Overlap,
    Schedule,
    check_minimum,
    parse_instant,
    parse_rfc3339,
)
from jobq.specs import Spec, printable
from jobq.validation import check_json, located, parse
from jobq.webhook_events import chosen, words

if TYPE_CHECKING:
    from jobq.settings import Settings

QUEUE_NAME = r"^[a-z0-9][a-z0-9._-]{0,62}$"
_ISO_IN_JSON = PlainSerializer(format_duration, return_type=str, when_used="json-unless-none")


def _storable(text: str) -> str:
    if "\x00" in text or any("\ud800" <= char <= "\udfff" for char in text):
        raise ValueError("must not contain NUL or half of a surrogate pair")
    return text


def _positive(duration: timedelta) -> timedelta:
    if duration <= timedelta(0):
        raise ValueError("must be longer than zero")
    return duration


def _timeout(value: object) -> timedelta | None:
    if value is None:
        return None
    try:
        return _positive(parse_duration(value))
    except ValueError as error:
        raise InvalidInput(
            f"The timeout is wrong: {error}.", code="invalid_timeout", hint=HINT, pointer="/timeout"
        ) from None


def _interval(value: object) -> timedelta | None:
    return None if value is None else Every(value).interval  # type: ignore[arg-type]  # it judges any value


def _start_at(value: object) -> datetime | None:
    return None if value is None else parse_rfc3339(value, "/start_at")


def _scheduled_at(value: object) -> datetime | None:
    return None if value is None else parse_rfc3339(value, "/scheduled_at")


Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(printable)]
Key = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_storable)]
Lasting = Annotated[Duration, AfterValidator(_positive)]


class _Work(BaseModel):
    """What workflows and single jobs have in common."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    kind: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """May be left out where the spec is an instance of a built-in spec class."""
    spec: Any = Field(default_factory=dict)
    """An object, or an instance of the kind's spec class; an object after ``checked``."""
    name: Name | None = None
    """Assigned where none is given: the kind and eight random digits."""
    queue: Annotated[str, Field(pattern=QUEUE_NAME)] | None = None
    """Default: the kind in lower case."""
    priority: Annotated[int, Field(ge=0, le=9)] = 4
    """9 goes first."""
    timeout: Annotated[timedelta | None, BeforeValidator(_timeout), _ISO_IN_JSON] = None
    """Default: the kind's. After ``checked``, None means that the kind has no total timeout."""
    retry: RetryPolicy = RetryPolicy()
    stale_after: Lasting | None = timedelta(days=7)
    """How long a ready job may wait before it is given up; None: for ever."""

    @model_validator(mode="before")
    @classmethod
    def _kind_of_spec(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("kind") is None and isinstance(spec := data.get("spec"), Spec):
            kind = next((kind.name for kind in BUILT_IN.values() if type(spec) is kind.spec), None)
            return {**data, "kind": kind}
        return data

    @field_validator("spec")
    @classmethod
    def _object(cls, spec: Any) -> Any:
        if not isinstance(spec, dict | Spec):
            raise ValueError("a spec is an object")
        return spec

    def _resolved(self, settings: Settings) -> dict[str, Any]:
        """The fields that the kind and the operator decide or judge."""
        if self.kind is None:
            raise InvalidInput(
                "The kind of job is required.",
                hint="Name it ('HEARTBEAT'), or pass a built-in spec such as Heartbeat(…).",
                pointer="/kind",
            )
        kind = find_kind(self.kind, tuple(settings.plugins))
        return {
            "spec": _checked_spec(self.spec, kind, settings),
            "queue": self.queue or kind.queue,
            "timeout": _checked_timeout(self.timeout, kind, settings),
            "retry": self.retry.resolved(kind),
        }


def assigned_name(kind: str | None) -> str:
    """A name for what got none: the kind and eight random digits."""
    return f"{str(kind).lower()}-{secrets.token_hex(4)}"


def _checked_spec(spec: Any, kind: Kind, settings: Settings) -> dict[str, Any]:
    """The spec as JSON, valid for its kind and allowed by the operator."""
    if isinstance(spec, Spec) and not isinstance(spec, kind.spec):
        raise InvalidInput(f"A {type(spec).__name__} is no spec of {kind.name}.", pointer="/spec")
    # An instance is read anew as well, as the worker will: it may be a copy with changes, which nobody has judged.
    given = spec.model_dump(mode="json", warnings=False) if isinstance(spec, Spec) else spec
    valid = parse(kind.spec, given, "/spec")
    valid.check(settings.policy)
    stored: dict[str, Any] = valid.model_dump(mode="json")
    check_json(stored, max_bytes=settings.max_spec_bytes, pointer="/spec")
    return stored


def _checked_timeout(timeout: timedelta | None, kind: Kind, settings: Settings) -> timedelta | None:
    """The timeout, or the kind's default; InvalidInput ``invalid_timeout`` above the maximum."""
    longest = settings.policy.max_container_timeout if kind.name == "CONTAINER" else kind.max_timeout
    if timeout is None:
        return None if kind.timeout is None else min(kind.timeout, longest)
    if timeout > longest:
        raise InvalidInput(
            f"A {kind.name} job may run for {format_duration(longest)} at most; {format_duration(timeout)} is longer.",
            code="invalid_timeout",
            pointer="/timeout",
        )
    return timeout


class Definition(_Work):
    """A workflow as somebody defines it: what to run, when, and under which policies.

    Python code may pass ``schedule=Every(…)`` or ``Cron(…)`` in place of ``interval``, ``cron``, ``timezone`` and
    ``start_at``. With neither, the workflow runs only when it is triggered.
    """

    concurrency: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """How many of its jobs may run at once; None: as many as there is room for."""
    interval: Annotated[timedelta | None, BeforeValidator(_interval), _ISO_IN_JSON] = None
    cron: str | None = None
    timezone: str = "UTC"
    start_at: Annotated[datetime | None, BeforeValidator(_start_at)] = None
    misfire: Misfire = "coalesce"
    misfire_grace: Duration | None = None
    """How late a slot may start and still be on time, 1 s to 1 day; None: ``schedule.default_grace``."""
    max_catch_up: Annotated[int, Field(ge=1, le=1000)] = 10
    """For misfire ``catch_up``: how many missed slots are made up for at most."""
    overlap: Overlap = "queue"
    max_consecutive_job_failures_allowed: Annotated[int, Field(ge=1, le=100)] = 3
    retention: Lasting | None = None
    """How long finished jobs are kept; None: the installation's ``JOBQ_RETENTION``."""

    @model_validator(mode="before")
    @classmethod
    def _spread_schedule(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not isinstance(data.get("schedule"), Every | Cron):
            return data
        rest = dict(data)
        schedule = rest.pop("schedule")
        if any(rest.get(field) is not None for field in ("interval", "cron", "timezone", "start_at")):
            raise _bad_schedule("A schedule is given whole or by its fields, not both", "/schedule")
        if isinstance(schedule, Every):
            return {**rest, "interval": schedule.interval, "start_at": schedule.start_at}
        fields = {"cron": schedule.expression, "timezone": schedule.timezone, "start_at": schedule.start_at}
        return {**rest, **fields}

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.interval is not None and self.cron is not None:
            raise _bad_schedule("A workflow has an interval or a cron expression, not both", "/cron")
        if self.cron is None and self.timezone != "UTC":
            raise _bad_schedule("A time zone belongs to a cron expression; there is none", "/timezone")
        if self.schedule is None and self.start_at is not None:
            raise _bad_schedule("start_at belongs to an interval or a cron expression; there is none", "/start_at")
        grace = self.misfire_grace
        if grace is not None and not timedelta(seconds=1) <= grace <= timedelta(days=1):
            raise InvalidInput("misfire_grace lasts from 1 second to 1 day.", pointer="/misfire_grace")
        return self

    @property
    def schedule(self) -> Schedule | None:
        """The schedule as a value; None: manual only."""
        if self.interval is not None:
            return Every(self.interval, self.start_at)
        return None if self.cron is None else Cron(self.cron, self.timezone, self.start_at)

    def checked(self, settings: Settings) -> Definition:
        """The definition with every default filled in, if this installation accepts it; else an error of the tree."""
        if (schedule := self.schedule) is not None:
            check_minimum(schedule, settings.policy.min_interval)
        return self.model_copy(update={**self._resolved(settings), "name": self.name or assigned_name(self.kind)})


def _bad_schedule(message: str, pointer: str) -> InvalidInput:
    return InvalidInput(f"{message}.", code="invalid_schedule", pointer=pointer)


def _ids(value: object) -> object:
    """Ids of jobs, from one or many, as UUIDs or text; each once."""
    several = value if isinstance(value, list | tuple | set | frozenset) else [value]
    return tuple(dict.fromkeys(UUID(item) if isinstance(item, str) else item for item in several))


class WebhookOf(BaseModel):
    """The endpoint of a job's own."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    endpoint: Name
    """Its name or its id."""
    events: tuple[Annotated[str, Field(max_length=100)], ...] | None = None
    """As those of an endpoint; None: the endpoint's own, or all if it has none."""

    @field_validator("events", mode="before")
    @classmethod
    def _patterns(cls, events: Any) -> Any:
        return tuple(events) if isinstance(events, list) else events

    def stored(self) -> tuple[str, str | None]:
        """As the store takes it. Raises InvalidInput ``unknown_event``."""
        return self.endpoint, None if self.events is None else words(chosen(self.events, "/webhook/events"))


class Particulars(BaseModel):
    """What differs between jobs that are enqueued together."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: Name | None = None
    dedupe_key: Key | None = None
    """While a job with this key is live, a second one is recorded as CANCELED·duplicate."""
    scheduled_at: Annotated[datetime | None, BeforeValidator(_scheduled_at)] = None
    """RFC 3339 with an offset, at most a year ahead; None or the past: now."""
    idempotency_key: Key | None = None
    state: Any = None
    """A JSON value that the job gets to see."""
    after: Annotated[tuple[UUID, ...], BeforeValidator(_ids), Field(max_length=100)] = ()
    """Jobs of the same tenant that must be COMPLETED first; if one of them is not, this one ends CANCELED."""
    webhook: WebhookOf | None = None
    """Tell this endpoint, and no other, what happens to the job."""


class JobRequest(_Work, Particulars):
    """A job that no workflow makes, as somebody asks for it."""

    def prepared(self, settings: Settings) -> Template:
        """Judge everything that does not differ between the jobs of one batch: kind, spec, policy, timeout."""
        return Template(self.model_copy(update=self._resolved(settings)), settings.max_spec_bytes)

    def checked(self, settings: Settings, now: datetime) -> JobRequest:
        """The request with every default filled in, if this installation accepts it; else an error of the tree.

        ``scheduled_at`` in the past becomes ``now``, None stays.
        """
        return self.prepared(settings).complete(self, now)


@dataclass(frozen=True, slots=True)
class Template:
    """An accepted request without its particulars: of it, each job costs a few microseconds."""

    request: JobRequest
    max_state_bytes: int

    def job(self, now: datetime, **particulars: Any) -> JobRequest:
        """A request like ``JobRequest.checked`` returns it, with these ``Particulars`` (which are validated)."""
        return self.complete(parse(Particulars, particulars), now)

    def complete(self, particulars: Particulars, now: datetime) -> JobRequest:
        """The same with particulars that are values already."""
        scheduled_at, state = particulars.scheduled_at, particulars.state
        if scheduled_at is not None:
            scheduled_at = parse_instant(scheduled_at, now)
        if state is not None:
            check_json(state, max_bytes=self.max_state_bytes, pointer="/state")
        fields = {
            "name": particulars.name or assigned_name(self.request.kind),
            "dedupe_key": particulars.dedupe_key,
            "scheduled_at": scheduled_at,
            "idempotency_key": particulars.idempotency_key,
            "state": state,
            "after": particulars.after,
            "webhook": particulars.webhook,
        }
        return self.request.model_copy(update=fields)


def requests_of(requests: Iterable[JobRequest | dict[str, Any]]) -> list[JobRequest]:
    """Each as a value. An error says which one it is about, as in ``checked_all``."""
    found = []
    for number, request in enumerate(requests):
        try:
            found.append(request if isinstance(request, JobRequest) else parse(JobRequest, request))
        except JobQError as error:
            raise located(error, f"Request {number}", f"/{number}") from None
    return found


def checked_all(requests: Iterable[JobRequest], settings: Settings, now: datetime) -> list[JobRequest]:
    """``checked`` for many: what requests have in common is judged once.

    An error says which request it is about, counted from 0: its pointer begins with that number.
    """
    templates: dict[object, Template] = {}
    accepted = []
    for number, request in enumerate(requests):
        try:
            key = _common_part(request)
            template = templates.get(key)
            if template is None:
                template = templates[key] = request.prepared(settings)
            accepted.append(template.complete(request, now))
        except JobQError as error:
            raise located(error, f"Request {number}", f"/{number}") from None
    return accepted


def _common_part(request: JobRequest) -> object:
    """Equal for requests that differ in their particulars only."""
    spec = request.spec
    text = spec.model_dump_json() if isinstance(spec, Spec) else json.dumps(spec, default=repr)
    return (
        *(type(spec), text, request.kind, request.queue, request.priority),
        *(request.timeout, request.retry, request.stale_after),
    )
