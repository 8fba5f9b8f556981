"""When a worker may be called deaf, and all that keeps it from it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from jobq.errors import Unavailable
from workers.hearing import LOOKS, Ear, Listening, Suspicion
from workers.slots import Slots


@dataclass
class Desk:
    """A worker as the listening sees it."""

    depths: dict[str, int] = field(default_factory=lambda: {"a": 3, "b": 0})
    away: bool = False
    renewed: bool = True
    asked: int = 0
    deaf: int = 0

    def __post_init__(self) -> None:
        self.ear, self.slots = Ear(), Slots({"a": 2, "b": 2})
        broker: Any = self
        self.listening = Listening(self.ear, broker, self.slots, broker, after=120.0, on_deaf=self._on_deaf)

    def _on_deaf(self) -> None:
        self.deaf += 1

    def depth(self, queue: str) -> int:
        self.asked += 1
        if self.away:
            raise Unavailable("away")
        return self.depths[queue]

    def is_renewed(self) -> bool:
        return self.renewed

    def looks(self, count: int, before_each: Callable[[], None] = lambda: None) -> int:
        """After so many looks: how often it was said to be deaf."""
        for _ in range(count):
            before_each()
            assert self.listening.tick() == 120.0 / LOOKS
        return self.deaf

    def hear(self) -> None:
        with self.ear.message():
            pass


def test_a_worker_is_deaf_after_four_silent_looks_that_found_messages_and_not_earlier() -> None:
    desk = Desk()
    assert desk.looks(1 + LOOKS - 1) == 0  # the first look has nothing to compare with
    assert desk.looks(1) == 1


@pytest.mark.parametrize("every", [1, 2, 3, 4])
def test_a_message_now_and_then_is_a_sign_of_life(every: int) -> None:
    desk, turn = Desk(), iter(range(1000))
    assert desk.looks(40, lambda: desk.hear() if next(turn) % every == 0 else None) == 0


def test_a_hint_in_hand_is_a_sign_of_life() -> None:
    desk = Desk()
    with desk.ear.message():
        assert desk.looks(20) == 0


def test_a_worker_without_room_need_not_hear() -> None:
    desk = Desk()
    desk.slots.take("a", 2)
    assert desk.looks(20) == 0


def test_a_queue_that_others_empty_now_and_then_proves_nothing() -> None:
    desk, turn = Desk(), iter(range(1000))
    assert desk.looks(40, lambda: desk.depths.update(a=next(turn) % LOOKS)) == 0


def test_the_messages_must_lie_in_the_same_queue() -> None:
    desk, turn = Desk(), iter(range(1000))

    def alternate() -> None:
        odd = next(turn) % 2
        desk.depths.update(a=odd, b=1 - odd)

    assert desk.looks(40, alternate) == 0


def test_a_broker_that_is_away_explains_the_silence() -> None:
    desk, turn = Desk(), iter(range(1000))
    desk.away = True
    assert desk.looks(20) == 0
    assert desk.looks(40, lambda: setattr(desk, "away", next(turn) % LOOKS == 0)) == 0


def test_a_lease_that_is_not_renewed_explains_the_silence() -> None:
    desk = Desk(renewed=False)
    assert desk.looks(20) == 0
    assert desk.asked == 0


def test_the_broker_is_asked_only_in_silence() -> None:
    desk = Desk()
    desk.looks(10, desk.hear)
    assert desk.asked == 0


def test_a_suspicion_begins_again_where_the_queues_changed() -> None:
    suspicion = Suspicion()
    found = [{"a"}, {"a"}, {"b"}, {"b"}, {"b"}, {"a", "b"}]
    assert [suspicion.look(0, 0, lambda: frozenset({"a"}))] == [False]
    assert [suspicion.look(0, 0, lambda one=one: frozenset(one)) for one in found] == [False] * 5 + [True]
