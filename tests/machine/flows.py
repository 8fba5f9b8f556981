"""Rules: workflows and their schedules."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from tests.machine.fates import Fate, next_slot, over, slots
from tests.machine.people import People, afters, delays, keys, numbers, retry, tenants

intervals = st.sampled_from([None, 60, 60, 300, 3600])
concurrencies = st.sampled_from([None, None, 1, 2])
at_most = st.integers(0, 5)
_MANY = 4


class Flows(People):
    """Create, change, pause, resume, terminate and trigger workflows, and make the jobs of their slots."""

    def flows(self, **only: Any) -> list[Any]:
        return [
            flow
            for _, flow in sorted(self.last.flows.items())
            if all(getattr(flow, name) == value for name, value in only.items())
        ]

    @precondition(lambda self: len(self.last.flows) < _MANY)
    @rule(
        tenant=tenants, interval=intervals, concurrency=concurrencies, attempts=st.sampled_from([1, 1, 2]),
        misfire=st.sampled_from(["coalesce", "skip", "catch_up"]), grace=st.sampled_from([None, 1, 90]),
        overlap=st.sampled_from(["queue", "queue", "allow", "skip", "cancel_running"]),
        allowed=st.sampled_from([1, 2, 3]), keep=st.sampled_from([None, 3600]), catch_up=st.sampled_from([1, 3]),
    )  # fmt: skip
    def create_flow(  # noqa: PLR0917
        self, tenant: str, interval: int | None, concurrency: int | None, attempts: int, misfire: str,
        grace: int | None, overlap: str, allowed: int, keep: int | None, catch_up: int,
    ) -> None:  # fmt: skip
        flow = self.doors[tenant].create_workflow(
            {}, kind="NOOP", queue="noop", interval=interval, concurrency=concurrency, misfire=misfire,
            misfire_grace=grace, overlap=overlap, max_consecutive_job_failures_allowed=allowed, retention=keep,
            max_catch_up=catch_up, retry=retry(attempts),
        )  # fmt: skip
        first = None if flow.interval is None else self.clock.at + flow.interval
        self.expected.flows[flow.id] = {
            "status": "ACTIVE", "generation": 1, "consecutive_failures": 0, "anchor_at": self.clock.at,
            "next_fire_at": first,
        }  # fmt: skip

    @precondition(lambda self: self.last.flows)
    @rule(
        number=numbers, what=st.sampled_from(["update", "pause", "resume", "resume", "terminate"]),
        interval=intervals, concurrency=concurrencies,
    )  # fmt: skip
    def change_flow(self, number: int, what: str, interval: int | None, concurrency: int | None) -> None:
        flow = self.pick(self.flows(), number)
        if what == "update":
            self.update_flow(flow, interval, concurrency)
        else:
            getattr(self, f"{what}_flow")(flow)

    def update_flow(self, flow: Any, interval: int | None, concurrency: int | None) -> None:
        interval_us = None if interval is None else interval * 1_000_000
        self.doors[flow.tenant].update_workflow(flow.id, interval=interval, concurrency=concurrency)
        if (flow.interval_us, flow.concurrency) == (interval_us, concurrency):
            return  # equal to what there was
        fate: Fate = {"generation": flow.generation + 1, "consecutive_failures": 0}
        if flow.interval_us != interval_us:
            fate["anchor_at"] = self.clock.at
            if flow.status == "ACTIVE":
                fate["next_fire_at"] = next_slot(interval_us, self.clock.at, self.clock.at)
        self.expected.flows[flow.id] = fate
        if flow.concurrency != concurrency:
            lane = "" if concurrency is None else flow.id.hex
            for job in self.last.live():
                if job.workflow_id == flow.id:
                    self.expected.fates[job.id] = {**job._asdict(), "lane": lane}

    def pause_flow(self, flow: Any) -> None:
        if flow.status == "TERMINATED":
            self.conflict("already_finished", lambda: self.doors[flow.tenant].pause_workflow(flow.id))
            return
        self.doors[flow.tenant].pause_workflow(flow.id)
        self.expected.flows[flow.id] = {"status": "PAUSED", "next_fire_at": None}

    def resume_flow(self, flow: Any) -> None:
        self.doors[flow.tenant].resume_workflow(flow.id)
        if flow.status != "ACTIVE":
            self.expected.flows[flow.id] = {
                "status": "ACTIVE", "generation": flow.generation + 1, "consecutive_failures": 0,
                "next_fire_at": next_slot(flow.interval_us, flow.anchor_at, self.clock.at),
            }  # fmt: skip

    def terminate_flow(self, flow: Any) -> None:
        self.doors[flow.tenant].terminate_workflow(flow.id)
        self.expected.flows[flow.id] = {"status": "TERMINATED", "next_fire_at": None}
        for job in self.last.automatic(flow.id):
            if job.status != "RUNNING":
                self.expected.fates[job.id] = over("CANCELED", "workflow_terminated", self.clock.at)

    @precondition(lambda self: self.last.flows)
    @rule(number=numbers, key=keys, delay=delays, after=afters)
    def trigger(self, number: int, key: str | None, delay: float | None, after: list[int]) -> None:
        """By hand: whatever the workflow's status is."""
        flow = self.pick(self.flows(), number)
        ids = self.picked(flow.tenant, after)
        if self.upstreams(ids) is None:
            return
        job = self.doors[flow.tenant].trigger(flow.id, dedupe_key=key, scheduled_at=self.at(delay), after=ids)
        more = {"workflow_id": flow.id, "generation": flow.generation, "trigger": "MANUAL", "slot_at": None}
        self.accepted(job, flow.tenant, key, ids, more)

    # --- slots -------------------------------------------------------------------------------------------------------

    def due(self) -> list[Any]:
        found = [flow for flow in self.flows() if flow.next_fire_at is not None and flow.next_fire_at <= self.clock.at]
        return sorted(found, key=lambda flow: flow.next_fire_at)

    @precondition(lambda self: self.due())
    @rule()
    def materialize(self) -> None:
        for flow in self.due():
            found = slots(self.last, flow)
            self.expected.flows[flow.id] = {"next_fire_at": found.next_fire_at}
            self.expected.fates |= found.earlier
            for slot, fate in found.born.items():
                more = {"generation": flow.generation, "tenant": flow.tenant, "scheduled_at": slot}
                self.expected.slots[flow.id, slot] = {**fate, **more}
        self.store.materialize()
        assert self.store.materialize().jobs == 0, "another scheduler found something left to do"
        assert self.store.release_blocked() == 0, "a slot's job was forgotten"

    def held_by_a_person(self) -> set[UUID]:
        """Paused jobs, jobs of paused queues, and what waits for any of them."""
        held = {job.id for job in self.last.live() if job.reason == "paused" or self.last.paused(job.queue)}
        while more := {job_id for job_id, upstream in self.last.waits if upstream in held} - held:
            held |= more
        return held
