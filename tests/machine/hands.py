"""Rules: what workers do, when they are told, when they are not, when they die, and when they wake up too late."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule
from sqlalchemy.engine import Connection

from jobq.retry import stored_policy
from jobq.states import Desired
from jobq.store import claim as claims
from jobq.store import held, workers
from jobq.store import record as records
from jobq.store.claim import Claimant, Claimed
from jobq.store.held import Held
from jobq.store.record import Report
from tests.machine.fates import OUTCOMES, reported
from tests.machine.ground import Hand
from tests.machine.people import numbers
from tests.machine.schedulers import Schedulers
from tests.stores import identity

LEASE = 30.0
HOSTED = ("HOSTED",)
NEAR = (-1, 0, 1)
PLENTY = {"noop": 3, "slow": 2}
offers = st.sampled_from([{"noop": 2}, PLENTY, {"slow": 1}])
hosts = st.sampled_from(["h1", "h2", None])
rooms = st.integers(1, 4)
words = st.sampled_from(["success", "success", "fail", "fail", *sorted(OUTCOMES)])

Turn = tuple[int, int, list[str]]
turns = st.tuples(numbers, rooms, st.lists(words, max_size=3))


class Machine(Schedulers):
    """Workers: register, claim, renew, record, drain, sign off; die, forget, and come back late."""

    def __init__(self, stage: Any) -> None:
        super().__init__(stage)
        self.notes: dict[UUID, Any] = {}

    # --- coming and going --------------------------------------------------------------------------------------------

    def alive(self, hand: Hand) -> bool:
        """In the eyes of the database."""
        worker = self.last.workers.get(hand.id)  # the dead are forgotten after a while
        return worker is not None and worker.dead_at is None

    @initialize(offer=offers, host=hosts)
    def begin(self, offer: dict[str, int], host: str | None) -> None:
        """Something to do, and somebody who does it."""
        self.start(PLENTY, host)
        self.start(offer, None)
        self.enqueue_many("acme", "noop", 2, None)
        for lost in (True, False):
            self.enqueue("acme", "noop", None, None, [], 3, 9, True, lost, None)

    @precondition(lambda self: len(self.live_hands()) < 4)
    @rule(offer=offers, host=hosts)
    def start_worker(self, offer: dict[str, int], host: str | None) -> None:
        self.start(offer, host)

    def start(self, offer: dict[str, int], host: str | None) -> Hand:
        me = identity(queues=offer, host=host)
        self.store.do(workers.register, me, LEASE)
        hand = Hand(me.id, offer, host)
        self.hands.append(hand)
        return hand

    @precondition(lambda self: self.hands)
    @rule(number=numbers, how=st.sampled_from(["crashes", "drains", "signs off", "was seen to be gone"]))
    def leave(self, number: int, how: str) -> None:
        """One that crashes forgets everything, and nobody knows yet; a neighbour may see that its process is gone."""
        hand = self.pick(self.hands, number)
        if how == "was seen to be gone":
            if hand.gone:
                assert self.store.do(workers.declare_dead, [hand.id]) == ([hand.id] if self.alive(hand) else [])
        elif how == "drains":
            assert self.store.do(workers.set_draining, hand.id) == self.alive(hand)
        elif not hand.gone:
            if how == "signs off":
                self.store.do(workers.sign_off, hand.id)
            hand.gone = True
            hand.held.clear()

    # --- claim -------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.hints and self.live_hands())
    @rule(
        number=numbers, hint=numbers, room=rooms, again=st.booleans(), heard=st.sampled_from([True, True, True, False])
    )
    def deliver(self, number: int, hint: int, room: int, again: bool, heard: bool) -> None:
        """A hint arrives, or arrives once more (``again``); the reply to the claim may be lost (not ``heard``)."""
        hand = self.pick(self.live_hands(), number)
        place = hint % len(self.hints)
        queue, ids = self.hints[place] if again else self.hints.pop(place)
        jobs = [self.last.jobs.get(job_id) for job_id in ids[:room]]
        open_ = [job for job in jobs if job is not None and (job.status, job.queue) == ("QUEUED", queue)]
        taken = self.store.do(claims.claim, self.claimant(hand), queue, list(ids[:room]))
        self.taken(hand, taken, heard=heard)
        assert [job.id for job in taken] == (sorted({job.id for job in open_}) if self.alive(hand) else [])

    @precondition(lambda self: self.hints)
    @rule(hint=numbers)
    def lose_hint(self, hint: int) -> None:
        self.hints.pop(hint % len(self.hints))

    @precondition(lambda self: self.live_hands() and self.jobs(status="QUEUED"))
    @rule(number=numbers, room=rooms, heard=st.sampled_from([True, True, True, False]))
    def claim_waiting(self, number: int, room: int, heard: bool) -> None:
        hand = self.pick(self.live_hands(), number)
        for queue in hand.queues:
            open_ = self.jobs(status="QUEUED", queue=queue)
            taken = self.store.do(claims.claim_waiting, self.claimant(hand), queue, room)
            assert len(taken) == (min(room, len(open_)) if self.alive(hand) else 0)
            left = {job.id for job in open_} - {job.id for job in taken}
            worst = min((self.last.jobs[job.id].priority for job in taken), default=9)
            assert all(self.last.jobs[job_id].priority <= worst for job_id in left)
            self.taken(hand, taken, heard=heard)

    def knock(self) -> None:
        """Everybody asks for what is not to be had: jobs that are not queued, and, being dead, any at all."""
        closed = [job.id for job in self.jobs() if job.status != "QUEUED"]
        for hand in self.hands:
            dead = not self.alive(hand)
            for queue in hand.queues:
                ids = [job.id for job in self.jobs()] if dead else closed
                assert not self.store.do(claims.claim, self.claimant(hand), queue, ids)
                assert not dead or not self.store.do(claims.claim_waiting, self.claimant(hand), queue, 5)
            assert not dead or hand.host is None or not self.store.do(workers.adopt, hand.id, hand.host, 50)

    @staticmethod
    def claimant(hand: Hand) -> Claimant:
        return Claimant(hand.id, hand.host, HOSTED if hand.host else ())

    def taken(self, hand: Hand, taken: list[Claimed], *, heard: bool) -> None:
        for job in taken:
            was = self.last.jobs[job.id]
            hosted = job.kind in HOSTED and hand.host is not None
            assert job.attempt == was.attempt + 1
            assert job.checkpoint == self.notes.get(job.id)
            self.expected.fates[job.id] = {
                "status": "RUNNING", "reason": "preparing" if hosted else "executing", "worker_id": hand.id,
                "attempt": was.attempt + 1, "host": hand.host if hosted else None, "started_at": self.clock.at,
            }  # fmt: skip
            assert not any(its.id == job.id and its.attempt == job.attempt for _, its in self.claims), (
                "handed out twice"
            )
            self.claims.append((hand.id, job))
            if heard:
                hand.held[job.id] = job

    # --- renew -------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.live_hands())
    @rule(number=numbers)
    def renew(self, number: int) -> None:
        self.renew_lease(self.pick(self.live_hands(), number))

    def renew_lease(self, hand: Hand) -> None:
        """As ``workers.lease`` does: what is not listed is let go, what is listed twice but not held is given back."""
        renewal = self.store.do(workers.renew, hand.id, LEASE, hand.host)
        assert renewal.alive == self.alive(hand)
        mine = {job.id: (job.attempt, Desired(job.desired)) for job in self.jobs(worker_id=hand.id)}
        if not renewal.alive:
            hand.gone = True  # this identity; the process goes on under a new one, with empty hands
            hand.held.clear()
            self.start(hand.queues, hand.host)
            return
        assert renewal.running == mine
        hand.held = {job_id: job for job_id, job in hand.held.items() if mine.get(job_id, (0,))[0] == job.attempt}
        unheld = {job_id: attempt for job_id, (attempt, _) in mine.items() if job_id not in hand.held}
        again = [job_id for job_id, attempt in unheld.items() if hand.unheld.get(job_id) == attempt]
        hand.unheld = unheld
        if again and hand.host is not None:
            again = self.begin_again(hand, again)
        if again:
            for job_id in again:
                self.expect_death(self.last.jobs[job_id])
            held = {job_id: job.attempt for job_id, job in hand.held.items()}
            assert self.store.do(workers.release_unheld, hand.id, held, again) == len(again)

    def begin_again(self, hand: Hand, unheld: list[UUID]) -> list[UUID]:
        """What lives on this host goes on under the same attempt; returns the rest."""
        mine = [job_id for job_id in unheld if self.last.jobs[job_id].host == hand.host]
        found = self.store.do(workers.resume, hand.id, hand.host, unheld)
        assert [job.id for job in found] == sorted(mine)
        for job in found:
            assert (job.attempt, job.checkpoint) == (self.last.jobs[job.id].attempt, self.notes.get(job.id))
            hand.held[job.id] = job
        return [job_id for job_id in unheld if job_id not in mine]

    @precondition(lambda self: any(hand.host for hand in self.live_hands()))
    @rule(number=numbers)
    def adopt(self, number: int) -> None:
        """What the dead left on this host goes on here: the same attempt, another owner."""
        hand = self.pick([hand for hand in self.live_hands() if hand.host], number)
        self.take_over(hand)

    def take_over(self, hand: Hand) -> None:
        left = [job for job in self.left_by_the_dead() if job.host == hand.host]
        if not self.alive(hand):
            left = []
        adopted = self.store.do(workers.adopt, hand.id, hand.host, 50)
        assert [job.id for job in adopted] == [job.id for job in left]
        for was, job in zip(left, adopted, strict=True):
            assert job.attempt == was.attempt
            assert job.checkpoint == self.notes.get(job.id)
            self.expected.fates[job.id] = {**was._asdict(), "worker_id": hand.id}
            self.claims.append((hand.id, job))
            hand.held[job.id] = job

    @precondition(lambda self: self.claims and self.last.jobs)
    @rule(number=st.integers(0, 20), other=numbers)
    def note(self, number: int, other: int) -> None:
        """All who ever had two jobs keep a checkpoint of them, or try to: only their present owners can."""
        self.keep_notes({self.pick(self.of_running() or self.claims, number)[1].id, self.pick(self.jobs(), other).id})

    def keep_notes(self, chosen: set[UUID]) -> None:
        """By all who ever had one of these jobs, by others, and under attempts that are over or never were."""
        asked = {Held(job.id, job.attempt + shift, by) for by, job in self.claims if job.id in chosen for shift in NEAR}
        asked |= {Held(held.job_id, held.attempt, hand.id) for held in list(asked) for hand in self.hands[-2:]}
        ours = asked & {Held(job.id, job.attempt, job.worker_id) for job in self.jobs(status="RUNNING")}

        def write(conn: Connection) -> tuple[set[Held], set[Held]]:
            locked, others = held.lock_held(conn, asked)
            held.save_checkpoints(conn, {held.job_id: {"note": self.stage.steps} for held in locked})
            return locked, others

        assert self.store.do(write) == (ours, asked - ours)
        self.notes |= {held.job_id: {"note": self.stage.steps} for held in ours}

    @precondition(lambda self: any(hand.held for hand in self.live_hands()))
    @rule(number=numbers)
    def executing(self, number: int) -> None:
        """The preparation is over."""
        hand = self.pick([hand for hand in self.live_hands() if hand.held], number)
        self.store.do(held.mark_executing, hand.id, [(job.id, job.attempt) for job in hand.held.values()])
        for job_id in hand.held:
            job = self.last.jobs.get(job_id)
            if job is not None and (job.reason, job.worker_id) == ("preparing", hand.id):
                self.expected.fates[job_id] = {**job._asdict(), "reason": "executing"}

    # --- record ------------------------------------------------------------------------------------------------------

    @precondition(lambda self: any(hand.held for hand in self.live_hands()))
    @rule(number=numbers, said=st.lists(words, min_size=1, max_size=3))
    def record(self, number: int, said: list[str]) -> None:
        """Outcomes of up to three jobs in one transaction."""
        self.record_of(self.pick([hand for hand in self.live_hands() if hand.held], number), said)

    def record_of(self, hand: Hand, said: list[str]) -> None:
        reports = list(zip(hand.held.values(), said, strict=False))
        for job, word in reports:  # those who may not write come first
            for other in self.hands:
                for shift in NEAR:
                    self.report_falsely(other.id, job, shift, word)
        self.keep_notes({job.id for job, _ in reports})
        self.report(hand.id, reports)
        for job, _ in reports:
            del hand.held[job.id]

    def report(self, by: UUID, said: list[tuple[Claimed, str]]) -> None:
        """Written is what the worker owns at that attempt, and nothing else."""
        owned = set()
        for job, word in said:
            row = self.last.jobs.get(job.id)
            if row is None or (row.status, row.worker_id, row.attempt) != ("RUNNING", by, job.attempt):
                continue
            owned.add(job.id)
            fate, ending = reported(
                row, word, stored_policy(job.kind, job.retry), by, self.clock.at, self.last.first_requeue(job.id)
            )
            self.expected.fates[job.id] = {**fate, "worker_id": None, "host": None}
            self.expected.endings[job.id, job.attempt] = ending
        self.expected.order = [job.id for job, _ in said]
        reports = [
            Report(
                job.id,
                job.attempt,
                OUTCOMES[word],
                job.started_at,
                stored_policy(job.kind, job.retry),
                [],
                word == "drain",
            )
            for job, word in said
        ]
        assert self.store.do(records.record, by, reports) == owned

    @precondition(lambda self: self.claims)
    @rule(number=st.integers(0, 20), word=words)
    def report_late(self, number: int, word: str) -> None:
        """Somebody who once had the job reports on it, be it his or not: a repeated commit, a worker that was frozen."""
        by, job = self.pick(self.claims, number)
        self.report(by, [(job, word)])
        for hand in self.hands:
            if hand.id == by:
                hand.held.pop(job.id, None)

    @precondition(lambda self: self.claims)
    @rule(number=st.integers(0, 20), other=numbers, shift=st.sampled_from([-1, 0, 1]), word=words)
    def forge(self, number: int, other: int, shift: int, word: str) -> None:
        """A report under a wrong identity, or on another attempt, is refused."""
        owner, job = self.pick(self.of_running() or self.claims, number)
        self.report_falsely(owner if shift else self.pick(self.hands, other).id, job, shift, word)

    def report_falsely(self, by: UUID, job: Claimed, shift: int, word: str) -> None:
        row = self.last.jobs.get(job.id)
        if row is not None and (row.worker_id, row.attempt) == (by, job.attempt + shift):
            return  # it would be no forgery
        job = Claimed(**{name: getattr(job, name) for name in Claimed.__slots__} | {"attempt": job.attempt + shift})
        self.report(by, [(job, word)])

    def of_running(self) -> list[tuple[UUID, Claimed]]:
        """All claims, also former ones, of jobs that run."""
        running = {job.id for job in self.jobs(status="RUNNING")}
        return [(by, job) for by, job in self.claims if job.id in running]

    @precondition(lambda self: self.live_hands())
    @rule(rounds=st.lists(turns, min_size=1, max_size=3))
    def go_on(self, rounds: list[Turn]) -> None:
        """What is ready is promoted, a worker takes some of it, and says how some of that ended; and once more."""
        self.pass_in_good_health(1)
        for number, room, said in rounds:
            if self.live_hands():
                self.take_turn(number, room, said)
                self.check()

    def take_turn(self, number: int, room: int, said: list[str]) -> None:
        if self.jobs(reason="ready"):
            self.promote(published=True)
            self.check()
        self.knock()
        if self.jobs(status="QUEUED"):
            self.claim_waiting(number, room, heard=True)
            self.check()
        hand = self.pick(self.live_hands(), number)
        if hand.held and said:
            self.record_of(hand, said)

    @precondition(lambda self: self.live_hands())
    @rule(turn=turns)
    def go_on_in_time(self, turn: Turn) -> None:
        """The same, after what waits has come to its time."""
        self.pass_in_good_health(20)
        if any(job.due_at is not None for job in self.last.live()):
            self.wake()
            self.check()
        if self.due():
            self.materialize()
            self.check()
        if self.live_hands():
            self.take_turn(*turn)

    # --- time --------------------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([1, 3, 12, 31, 61, 301, 1800, 5 * 3600, 26 * 3600]))
    def pass_time(self, seconds: int) -> None:
        self.let_pass(seconds)

    @precondition(lambda self: self.live_hands())
    @rule(seconds=st.sampled_from([5, 20, 90, 3 * 3600, 26 * 3600]))
    def pass_in_good_health(self, seconds: int) -> None:
        """Every worker that lives renews its lease meanwhile."""
        self.let_pass(seconds)
        self.last = self.look()
        for hand in self.live_hands():
            self.renew_lease(hand)
            self.check()
