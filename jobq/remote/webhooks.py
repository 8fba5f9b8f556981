"""Webhooks over HTTP: the twin of ``jobq.webhooks.Webhooks``."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from jobq.errors import NotFound
from jobq.models import Page
from jobq.remote.documents import document
from jobq.remote.wire import Wire, read
from jobq.store.webhooks import Delivery
from jobq.validation import parse
from jobq.webhooks import OVERLAP, Endpoint, SecretMade, WebhookChange, WebhookRequest

if TYPE_CHECKING:
    # mypy compares each method with the one of the same name there.
    from jobq.webhooks import Key, State
    from jobq.webhooks import Webhooks as _Webhooks
else:
    _Webhooks = object


class Webhooks(_Webhooks):
    """See ``jobq.webhooks.Webhooks``."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def create(self, **fields: Any) -> SecretMade:
        """See there."""
        return self.make(parse(WebhookRequest, fields))

    def make(self, asked: WebhookRequest) -> SecretMade:
        """See there. It is sent once: a secret whose answer was lost is nobody's."""
        return self._wire.post(SecretMade, "/v1/webhooks", body=document(asked), repeats=False)

    def list(self) -> list[Endpoint]:
        """See there."""
        return self._wire.items(Endpoint, "/v1/webhooks")

    def get(self, webhook: Key) -> Endpoint:
        """See there."""
        return self._wire.get(Endpoint, self._place(webhook))

    def update(self, webhook: Key, **changes: Any) -> Endpoint:
        """See there."""
        return self.change(webhook, parse(WebhookChange, changes))

    def change(self, webhook: Key, asked: WebhookChange) -> Endpoint:
        """See there."""
        return read(Endpoint, self._wire.ask("PATCH", self._place(webhook), body=document(asked)))

    def enable(self, webhook: Key) -> Endpoint:
        """See there."""
        return self._wire.post(Endpoint, f"{self._place(webhook)}/enable")

    def delete(self, webhook: Key) -> None:
        """See there."""
        self._wire.remove(self._place(webhook))

    def rotate(
        self, webhook: Key, *, overlap: timedelta | float | str = OVERLAP, secret: str | None = None
    ) -> SecretMade:
        """See there. It is sent once, as ``make`` is."""
        lasts = overlap.total_seconds() if isinstance(overlap, timedelta) else overlap
        body = {"overlap": lasts, "secret": secret}
        return self._wire.post(SecretMade, f"{self._place(webhook)}/rotate", body=body, repeats=False)

    def test(self, webhook: Key) -> Delivery:
        """See there. It is sent once: a repetition would be another test."""
        return self._wire.post(Delivery, f"{self._place(webhook)}/test", repeats=False)

    def delivery(self, webhook: Key, delivery: int) -> Delivery:
        """See there."""
        return self._wire.get(Delivery, f"{self._place(webhook)}/deliveries/{delivery}")

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
        """See there."""
        only = {"state": state, "type": type, "job_id": job_id}
        return self._wire.page(Delivery, f"{self._place(webhook)}/deliveries", limit=limit, cursor=cursor, **only)

    def replay(self, webhook: Key, delivery: int) -> Delivery:
        """See there."""
        endpoint = self.get(webhook)
        self._wire.ask("POST", f"{self._place(endpoint.id)}/replay", body={"delivery": delivery})
        return self.delivery(endpoint.id, delivery)

    def replay_failed(self, webhook: Key, since: datetime | str) -> int:
        """See there. It is sent once: a repetition would count what the first one left."""
        body = {"failed_since": since.isoformat() if isinstance(since, datetime) else since}
        place = self._place(webhook)
        return self._wire.post(dict[str, int], f"{place}/replay", body=body, repeats=False)["count"]

    def _place(self, webhook: Key) -> str:
        """The path of an endpoint; by a name, it is looked up."""
        return f"/v1/webhooks/{webhook if isinstance(webhook, UUID) else self._named(webhook)}"

    def _named(self, name: str) -> UUID:
        for endpoint in self.list():
            if endpoint.name == name:
                return endpoint.id
        raise NotFound(f"There is no webhook {name[:100]!r}.", hint="jobq webhook list shows them.")
