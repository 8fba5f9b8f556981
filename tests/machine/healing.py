"""The end of each history: everything is well again, and every job comes to its end within a few rounds."""

from __future__ import annotations

from jobq.models import WorkflowStatus
from jobq.store import claim as claims
from jobq.store import promote
from tests.machine.deaths import Deaths
from tests.machine.ground import QUEUES, Hand

PLENTY = dict.fromkeys(QUEUES, 100)


class Healing(Deaths):
    """The machine, with the proof that nothing was stuck."""

    def teardown(self) -> None:
        try:
            if self.last.jobs:
                self.heal()
        finally:
            super().teardown()

    def heal(self) -> None:
        """First what no person holds ends; then they let go of the rest, and that ends as well."""
        self.hints.clear()
        for hand in self.live_hands():
            hand.gone = True
        for flow in self.flows(status=WorkflowStatus.ACTIVE):
            self.pause_flow(flow)
            self.check()
        hands = [self.start(PLENTY, host) for host in (None, "h1", "h2")]
        self.check()
        self.work_off(hands)
        self.resume_queues()
        self.check()
        while paused := self.jobs(reason="paused"):
            self.resume(paused[0])
            self.check()
        self.work_off(hands)
        assert not list(self.last.live())

    def work_off(self, hands: list[Hand]) -> None:
        """Rounds of healthy processes until only what a person holds is left."""
        rounds = 2 * sum(1 for _ in self.last.live()) + 10
        while {job.id for job in self.last.live()} - self.held_by_a_person():
            rounds -= 1
            assert rounds >= 0, f"stuck: {[job for job in self.last.live() if job.id not in self.held_by_a_person()]}"
            self.round(hands)

    def round(self, hands: list[Hand]) -> None:
        """What happens by itself within the time until something is due, or a lease has run out."""
        due = self.store.look(promote.seconds_to_next_due)
        self.let_pass(31.0 if due is None else max(due, 31.0))
        self.last = self.look()
        for hand in hands:
            self.renew_lease(hand)
        self.check()
        self.declare_dead()
        self.check()
        for hand in hands[1:]:
            self.take_over(hand)
            self.check()
        if self.left_by_the_dead():
            self.release_lost()
            self.check()
        if any(job.due_at is not None for job in self.last.live()):
            self.wake()
            self.check()
        if self.jobs(reason="ready"):
            self.promote(published=False)
            self.check()
        for hand in hands:
            self.work(hand)

    def work(self, hand: Hand) -> None:
        """It claims and executes what there is, and all goes well."""
        for queue in QUEUES:
            self.taken(hand, self.store.do(claims.claim_waiting, self.claimant(hand), queue, 100), heard=True)
        self.check()
        if hand.held:
            stops = {job_id for job_id in hand.held if self.last.jobs[job_id].desired == "CANCEL"}
            self.report(hand.id, [(job, "stop" if job.id in stops else "success") for job in hand.held.values()])
            hand.held.clear()
            self.check()
