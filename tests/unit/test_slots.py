"""Worker slots: never more are taken than there are, and who waits for one is woken."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from jobq.errors import InvalidInput
from tests.services import wait_until
from workers.slots import DEFAULT_SLOTS, MAX_SLOTS, Slots, parse_queues

# --- what an operator writes -----------------------------------------------------------------------------------------


def test_queues_are_given_with_their_slots() -> None:
    assert parse_queues("container:8,heartbeat:2000") == {"container": 8, "heartbeat": 2000}
    assert parse_queues(" a : 1 , b.c-d_e:2 ".replace(" :", ":").replace(": ", ":")) == {"a": 1, "b.c-d_e": 2}


def test_a_queue_without_a_number_gets_a_default() -> None:
    assert parse_queues("container,heartbeat,sync,replication,other") == {**DEFAULT_SLOTS, "other": 16}


@pytest.mark.parametrize(
    "text",
    ["", ",", " ", "Container:8", "a b:1", "-a", ":8", "a:0", "a:-1", "a:1.5", "a:x", "a:1:2", f"a:{MAX_SLOTS + 1}",
     "a:²", "a/b", "x" * 64],
)  # fmt: skip
def test_what_is_no_list_of_queues_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        parse_queues(text)
    assert refused.value.hint == "Write -Q container:8,heartbeat:2000"


def test_as_many_slots_as_allowed_are_allowed() -> None:
    assert parse_queues(f"a:{MAX_SLOTS}") == {"a": MAX_SLOTS}


# --- take and give ---------------------------------------------------------------------------------------------------


def test_as_many_are_taken_as_are_free() -> None:
    slots = Slots({"a": 3})
    assert slots.take("a", 2) == 2
    assert slots.take("a", 2) == 1
    assert slots.take("a", 2) == 0
    slots.give("a", 2)
    assert (slots.free("a"), slots.take("a", 5)) == (2, 2)


def test_each_queue_has_its_own() -> None:
    slots = Slots({"a": 1, "b": 1})
    assert slots.take("a", 9) == 1
    assert slots.free("b") == 1


def test_a_queue_that_is_not_served_has_none() -> None:
    slots = Slots({"a": 1})
    assert slots.take("b", 1) == slots.free("b") == 0


def test_taking_nothing_takes_nothing() -> None:
    slots = Slots({"a": 1})
    assert slots.take("a", 0) == 0
    assert slots.free("a") == 1


def test_a_queue_that_rests_gives_none_until_it_is_resumed_which_wakes_who_waits() -> None:
    slots = Slots({"a": 2, "b": 1})
    slots.take("a", 1)
    slots.rest("a")
    assert (slots.free("a"), slots.take("a", 1), slots.take("b", 1)) == (0, 0, 1)
    slots.give("a", 1)
    thread, got = in_a_thread(lambda: slots.take("a", 5, 30))
    slots.resume("a")
    thread.join(5)
    assert got == [2]


def in_a_thread(work: Callable[[], int]) -> tuple[threading.Thread, list[int]]:
    got: list[int] = []
    thread = threading.Thread(target=lambda: got.append(work()))
    thread.start()
    return thread, got


def test_who_waits_is_woken_when_slots_come_back() -> None:
    slots = Slots({"a": 2})
    slots.take("a", 2)
    thread, got = in_a_thread(lambda: slots.take("a", 5, 30))
    slots.give("a", 2)
    thread.join(5)
    assert got == [2]


def test_who_waits_in_vain_gets_none_in_the_end() -> None:
    slots = Slots({"a": 1})
    slots.take("a", 1)
    began = time.monotonic()
    assert slots.take("a", 1, 0.05) == 0
    assert 0.04 < time.monotonic() - began < 5


def test_a_closed_worker_gives_none_and_wakes_who_waits() -> None:
    slots = Slots({"a": 1, "b": 1})
    slots.take("a", 1)
    thread, got = in_a_thread(lambda: slots.take("a", 1, 30))
    wait_until(thread.is_alive)
    slots.close()
    thread.join(5)
    assert got == [0]
    slots.give("a", 1)
    assert slots.take("a", 1) == slots.take("b", 1, 30) == 0


def test_many_threads_never_hold_more_than_there_are() -> None:
    slots, held, worst, lock = Slots({"a": 5}), [0], [0], threading.Lock()

    def work() -> int:
        for _ in range(300):
            taken = slots.take("a", 2, 5)
            with lock:
                held[0] += taken
                worst[0] = max(worst[0], held[0])
            with lock:
                held[0] -= taken
            slots.give("a", taken)
        return 0

    threads = [in_a_thread(work)[0] for _ in range(8)]
    for thread in threads:
        thread.join(30)
    assert 0 < worst[0] <= 5
    assert slots.free("a") == 5
