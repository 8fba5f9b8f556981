"""``JobQ.webhooks``: who is told what happens to a tenant's jobs. One implementation for Python, HTTP and the CLI."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal, TypeVar
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from jobq.cursors import fingerprint, make_cursor, read_cursor
from jobq.duration import HINT, parse_duration
from jobq.errors import Conflict, InvalidInput, NotFound
from jobq.models import Page
from jobq.net import check_url
from jobq.schedule import parse_rfc3339
from jobq.settings import Settings
from jobq.specs import printable
from jobq.store import control, webhooks
from jobq.store.database import Connection, Database
from jobq.store.jobs import new_id
from jobq.store.sql import instant_text
from jobq.store.wakeup import announce, ring
from jobq.store.webhook_live import hook_live
from jobq.store.webhooks import Delivery
from jobq.store.workers import database_now
from jobq.validation import parse
from jobq.vault import Vault
from jobq.webhook_delivery import key_of, make_secret
from jobq.webhook_events import chosen, words

Result = TypeVar("Result")
OVERLAP = timedelta(hours=24)
_MOST_ENDPOINTS = 100
_MOST_SECRETS = 5
_REPLAYED_AT_ONCE = 2000
_MAX_URL = 2000
State = Literal["PENDING", "SUCCEEDED", "FAILED"]
Key = UUID | str
"""An endpoint's id or its name."""

_Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(printable)]
_Url = Annotated[str, Field(min_length=1, max_length=_MAX_URL)]
_Patterns = list[Annotated[str, Field(max_length=100)]]
_Hub = list[Literal["sha256", "sha1"]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A receiver of webhooks. Its secrets are never shown again."""

    id: UUID
    name: str
    url: str
    events: list[str]
    """Patterns such as ``job.*``. Empty: only events of jobs that name it (``JobRequest.webhook``)."""
    children: bool
    """Events of SYNCs' children, too."""
    hub_signature: list[str]
    """X-Hub-Signature headers that it gets beside those of Standard Webhooks: sha256, sha1."""
    secrets: int
    """How many sign now: two, while a rotation overlaps."""
    enabled: bool
    disabled_reason: str | None
    failing_since: datetime | None
    """The first failure behind the last success; None: all is well."""
    succeeded_at: datetime | None
    """About: noted once a minute at most."""
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class SecretMade:
    """The only moment at which a secret can be read."""

    secret: str
    endpoint: Endpoint


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class WebhookRequest(_Body):
    """A new endpoint."""

    url: _Url
    """http or https, in a network that the operator lets out."""
    name: _Name | None = None
    """Assigned where none is given."""
    events: _Patterns = ["*"]
    """Names of events, or patterns such as ``job.*``. Empty: only events of jobs that name the endpoint."""
    children: bool = False
    """Events of SYNCs' children, too: there may be a million of them."""
    hub_signature: _Hub = []
    """X-Hub-Signature-256 (sha256) and X-Hub-Signature (sha1) headers, for receivers that know nothing else."""
    secret: str | None = None
    """``whsec_`` and base64 of 24 to 64 bytes; made where none is given."""


class WebhookChange(_Body):
    """What is given is changed; the secret is rotated instead."""

    url: _Url | None = None
    name: _Name | None = None
    events: _Patterns | None = None
    children: bool | None = None
    hub_signature: _Hub | None = None
    enabled: bool | None = None


class Webhooks:
    """A tenant's endpoints: made, changed, tested; and the log of what was delivered to them."""

    def __init__(self, database: Database, settings: Settings, tenant: str, actor: str, cursor_key: bytes) -> None:
        self._database, self._settings, self._tenant, self._actor = database, settings, tenant, actor
        self._cursor_key = cursor_key

    # --- endpoints -----------------------------------------------------------------------------------------------

    def create(self, **fields: Any) -> SecretMade:
        """A new endpoint, and its secret, which is shown this once; ``fields``: those of ``WebhookRequest``.

        Jobs that are enqueued from now on, and those that are live, are told of. Raises InvalidInput
        (``invalid_url``, ``target_blocked``, ``unknown_event``), Conflict ``name_taken`` or ``too_many_webhooks``.
        """
        return self.make(parse(WebhookRequest, fields))

    def make(self, asked: WebhookRequest) -> SecretMade:
        """``create`` of a request that is a value already."""
        endpoint_id, secret = new_id(), self._secret(asked.secret)
        name = asked.name or f"webhook-{endpoint_id.hex[-8:]}"
        fields = {
            **self._columns(asked.model_dump(exclude={"secret"})), "name": name,
            "secrets": [{"sealed": self._seal(endpoint_id, secret), "until": None}],
        }  # fmt: skip

        def work(conn: Connection) -> Endpoint:
            if webhooks.count(conn, self._tenant) >= _MOST_ENDPOINTS:
                raise Conflict(f"A tenant has {_MOST_ENDPOINTS} webhooks at most.", code="too_many_webhooks")
            row = webhooks.create(conn, endpoint_id, self._tenant, fields)
            if row is None:
                raise _name_taken(name)
            self._note(conn, endpoint_id, "create", {"name": name})
            announce(conn)
            return self._endpoint(conn, row)

        return SecretMade(secret, self._write(work))

    def list(self) -> list[Endpoint]:
        """All, by name."""
        with self._database.read() as conn:
            return [self._endpoint(conn, row) for row in webhooks.list_all(conn, self._tenant)]

    def get(self, webhook: Key) -> Endpoint:
        """The endpoint with this id or name. Raises NotFound."""
        with self._database.read() as conn:
            return self._endpoint(conn, self._find(conn, webhook))

    def update(self, webhook: Key, **changes: Any) -> Endpoint:
        """Change some fields; ``changes``: those of ``WebhookChange``. Raises what ``create`` does, and NotFound."""
        return self.change(webhook, parse(WebhookChange, changes))

    def change(self, webhook: Key, asked: WebhookChange) -> Endpoint:
        """``update`` with changes that are a value already."""
        changes = self._columns(asked.model_dump(exclude_unset=True, exclude_none=True))
        if asked.enabled is not None:
            changes |= {"disabled_reason": None if asked.enabled else f"by {self._actor}", "failing_since": None}

        def work(conn: Connection) -> Endpoint:
            row = self._find(conn, webhook, lock=True)
            taken = None if asked.name is None else webhooks.find(conn, self._tenant, asked.name)
            if taken is not None and taken.id != row.id:
                raise _name_taken(taken.name)
            webhooks.update(conn, row.id, changes)
            hook_live(conn, row.id)
            self._note(conn, row.id, "update", {name: value for name, value in asked if name in asked.model_fields_set})
            announce(conn)
            return self._endpoint(conn, self._find(conn, row.id))

        return self._write(work)

    def enable(self, webhook: Key) -> Endpoint:
        """Send to it again: what was due when it was disabled, and what happens from now on."""
        return self.update(webhook, enabled=True)

    def delete(self, webhook: Key) -> None:
        """Nothing more is sent to it; its log is gone. Raises NotFound."""

        def work(conn: Connection) -> None:
            row = self._find(conn, webhook, lock=True)
            webhooks.remove(conn, row.id)
            self._note(conn, row.id, "delete", {"name": row.name})

        self._write(work)

    def rotate(
        self, webhook: Key, *, overlap: timedelta | float | str = OVERLAP, secret: str | None = None
    ) -> SecretMade:
        """A new secret, shown this once. For the time of ``overlap`` what is sent is signed with the old one as well."""
        try:
            lasts = parse_duration(overlap)
        except ValueError as error:
            raise InvalidInput(f"overlap is wrong: {error}.", hint=HINT, pointer="/overlap") from None
        if not timedelta(0) <= lasts <= timedelta(days=30):
            raise InvalidInput("An overlap lasts up to 30 days.", pointer="/overlap")
        made = self._secret(secret)

        def work(conn: Connection) -> Endpoint:
            row = self._find(conn, webhook, lock=True)
            now = database_now(conn)
            until = instant_text(now + lasts)
            old = [
                {**each, "until": min(each["until"] or until, until)}
                for each in row.secrets
                if each["until"] is None or each["until"] > instant_text(now)
            ]
            new = {"sealed": self._seal(row.id, made), "until": None}
            webhooks.update(conn, row.id, {"secrets": [new, *(old if lasts else [])][:_MOST_SECRETS]})
            self._note(conn, row.id, "rotate", {"overlap": lasts.total_seconds()})
            return self._endpoint(conn, self._find(conn, row.id))

        return SecretMade(made, self._write(work))

    # --- deliveries ----------------------------------------------------------------------------------------------

    def test(self, webhook: Key) -> Delivery:
        """Send it the event ``webhook.test``, whatever it listens to; ``delivery`` tells how that went."""
        subject = new_id()

        def work(conn: Connection) -> Delivery:
            row = self._find(conn, webhook)
            if not row.enabled:
                raise Conflict(
                    f"The webhook {row.name!r} is disabled.",
                    code="webhook_disabled",
                    hint=f"jobq webhook enable {row.id}",
                )
            announce(conn, always=True)
            made = webhooks.add_test(conn, self._tenant, row.id, subject, f"a test, asked for by {self._actor}")
            self._note(conn, row.id, "test", {"delivery": made.id})
            return made

        return self._write(work)

    def delivery(self, webhook: Key, delivery: int) -> Delivery:
        """One of them, as it is now. Raises NotFound."""
        with self._database.read() as conn:
            return _found(webhooks.delivery(conn, self._find(conn, webhook).id, delivery), delivery)

    def deliveries(
        self,
        webhook: Key,
        *,
        state: State | None = None,
        type: str | None = None,  # noqa: A002 - the name of the field
        job_id: UUID | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page[Delivery]:
        """What was, or is to be, delivered to an endpoint, the newest first. ``limit``: 1 to 200."""
        if not 1 <= limit <= 200:
            raise InvalidInput("limit is between 1 and 200.", pointer="/limit")
        wanted = {"state": state, "type": type, "subject_id": job_id}
        only = {name: value for name, value in wanted.items() if value is not None}
        with self._database.read() as conn:
            endpoint_id = self._find(conn, webhook).id
            filters = fingerprint(listing="deliveries", tenant=self._tenant, endpoint=endpoint_id, only=only)
            behind = read_cursor(self._cursor_key, filters, cursor)
            before = None if behind is None else behind.int
            found = webhooks.deliveries(conn, endpoint_id, only, before=before, limit=limit + 1)
        page = found[:limit]
        more = len(found) > limit
        return Page(page, make_cursor(self._cursor_key, filters, UUID(int=page[-1].id)) if more else None)

    def replay(self, webhook: Key, delivery: int) -> Delivery:
        """Send one again, whatever became of it, under the same ``webhook-id``. Raises NotFound."""

        def work(conn: Connection) -> Delivery:
            endpoint = self._find(conn, webhook)
            found = _found(webhooks.replay(conn, endpoint.id, delivery), delivery)
            self._note(conn, endpoint.id, "replay", {"delivery": delivery})
            announce(conn)
            return found

        return self._write(work)

    def replay_failed(self, webhook: Key, since: datetime | str) -> int:
        """Send again all that failed for good of the events since then, in their order; returns how many."""
        since = _instant(since)
        total, behind = 0, 0
        while True:
            done = self._write(lambda conn, behind=behind: self._replay_some(conn, webhook, since, behind))  # type: ignore[misc]
            total += len(done)
            if len(done) < _REPLAYED_AT_ONCE:
                return total
            behind = done[-1]

    def _replay_some(self, conn: Connection, webhook: Key, since: datetime, behind: int) -> Sequence[int]:
        endpoint = self._find(conn, webhook)
        if not behind:
            self._note(conn, endpoint.id, "replay", {"failed_since": instant_text(since)})
        done = webhooks.replay_failed(conn, endpoint.id, since, behind, _REPLAYED_AT_ONCE)
        announce(conn)
        return done

    # --- parts ---------------------------------------------------------------------------------------------------

    def _columns(self, fields: dict[str, Any]) -> dict[str, Any]:
        """What was asked for as columns of the endpoint, judged."""
        if fields.get("url") is not None:
            check_url(fields["url"], self._settings.policy.networks_allowed(), "/url")
        if "events" in fields:
            patterns = fields.pop("events")
            fields |= {"patterns": patterns, "types": words(chosen(patterns))}
        return fields

    def _secret(self, given: str | None) -> str:
        if given is None:
            return make_secret()
        try:
            key_of(given)
        except ValueError as error:
            raise InvalidInput(f"The secret is wrong: {error}.", pointer="/secret") from None
        return given

    def _seal(self, endpoint_id: UUID, secret: str) -> str:
        return Vault(self._settings).seal(self._tenant, vault_name(endpoint_id), secret)

    def _find(self, conn: Connection, webhook: Key, *, lock: bool = False) -> Any:
        row = webhooks.find(conn, self._tenant, webhook, lock=lock)
        if row is None:
            raise NotFound(f"There is no webhook {str(webhook)[:100]!r}.", hint="jobq webhook list shows them.")
        return row

    def _endpoint(self, conn: Connection, row: Any) -> Endpoint:
        values = {
            name: getattr(row, name) for name in Endpoint.__dataclass_fields__ if name not in {"events", "secrets"}
        }
        now = instant_text(database_now(conn))
        live = sum(each["until"] is None or each["until"] > now for each in row.secrets)
        return Endpoint(**values, events=row.patterns, secrets=live)

    def _note(self, conn: Connection, endpoint_id: UUID, action: str, detail: Any) -> None:
        control.add_event(conn, self._tenant, f"webhook:{endpoint_id}", action, self._actor, detail=detail)

    def _write(self, work: Callable[[Connection], Result]) -> Result:
        done = self._database.run(work)
        ring(self._database)
        return done


def vault_name(endpoint_id: UUID) -> str:
    """What an endpoint's secrets are sealed as."""
    return f"webhook:{endpoint_id}"


def _found(delivery: Delivery | None, delivery_id: int) -> Delivery:
    if delivery is None:
        raise NotFound(
            f"There is no delivery {delivery_id} to this webhook.", hint="jobq webhook deliveries lists them."
        )
    return delivery


def _instant(since: datetime | str) -> datetime:
    try:
        return parse_rfc3339(since, "/failed_since")
    except InvalidInput as error:
        raise InvalidInput(error.message, hint="Such as 2027-01-01T08:00:00Z.", pointer=error.pointer) from None


def _name_taken(name: str) -> Conflict:
    return Conflict(f"There is a webhook {name!r} already.", code="name_taken", hint="Choose another name.")
