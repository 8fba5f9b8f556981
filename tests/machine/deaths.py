"""A rule that tells a whole story: random steps hardly ever come to its end by themselves."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from tests.machine.hands import LEASE, Machine, words
from tests.machine.people import numbers


class Deaths(Machine):
    """A worker dies at work; what it had is released or taken over in time, and it reports when it is too late."""

    @precondition(lambda self: any(hand.held for hand in self.live_hands()))
    @rule(number=numbers, seen=st.booleans(), helped=st.booleans(), patience=st.sampled_from([1, 299, 301]), word=words)
    def die_at_work(self, number: int, seen: bool, helped: bool, patience: int, word: str) -> None:
        hand = self.pick([hand for hand in self.live_hands() if hand.held], number)
        held = list(hand.held.values())
        self.leave(self.hands[::-1].index(hand), "crashes")
        if seen:
            self.leave(self.hands[::-1].index(hand), "was seen to be gone")
        else:
            self.pass_in_good_health(int(LEASE) + 1)
            self.declare_dead()
        self.check()
        self.knock()
        self.release_what_is_lost()  # not yet what lives on a host
        neighbours = [other for other in self.live_hands() if hand.host is not None and other.host == hand.host]
        if helped and neighbours:
            self.take_over(neighbours[0])
            self.check()
        self.pass_in_good_health(patience)
        self.release_what_is_lost()
        self.keep_notes({job.id for job in held})
        self.check()
        self.report(hand.id, [(job, word) for job in held])

    def release_what_is_lost(self) -> None:
        if self.left_by_the_dead():
            self.release_lost()
            self.check()
