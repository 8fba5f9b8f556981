"""How many requests each endpoint may have under way."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID, uuid4

from scheduler.deliver import ALL_AT_ONCE, EACH_AT_ONCE, FAILING_AT_ONCE, rooms_of


@dataclass
class Endpoint:
    failing_since: datetime | None = None
    id: UUID = field(default_factory=uuid4)


def test_an_endpoint_has_a_few_and_one_that_fails_has_fewer() -> None:
    well, ill, busy = Endpoint(), Endpoint(datetime.now(UTC)), Endpoint()
    rooms = rooms_of([well, ill, busy], Counter({busy.id: EACH_AT_ONCE}))
    assert rooms == {well.id: EACH_AT_ONCE, ill.id: FAILING_AT_ONCE, busy.id: 0}


def test_what_is_short_is_shared_and_nothing_is_given_twice() -> None:
    many = [Endpoint() for _ in range(1000)]
    rooms = rooms_of(many, Counter())
    assert sum(rooms.values()) == ALL_AT_ONCE
    assert max(rooms.values()) == 1
    few = [Endpoint() for _ in range(40)]
    assert sum(rooms_of(few, Counter()).values()) == ALL_AT_ONCE
    assert min(rooms_of(few, Counter()).values()) > 0


def test_no_request_is_begun_beyond_the_whole() -> None:
    hanging = Counter({uuid4(): EACH_AT_ONCE for _ in range(ALL_AT_ONCE // EACH_AT_ONCE)})
    assert sum(rooms_of([Endpoint()], hanging).values()) == 0
