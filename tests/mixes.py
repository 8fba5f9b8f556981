"""What is going on in a run with a failpoint: a few jobs of each kind, and how each of them must end.

One fault must not change how a job ends; where it may, the other end is named beside the expected one.
"""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID, uuid4

from jobq import Container, Every, JobQ, Status
from tests.crm import TOKEN, Crm
from tests.stores import Store

SOON = {"max_attempts": 4, "initial": 0.1, "maximum": 0.2, "retry_lost": True}
"""One fault and the failures that are planned leave attempts to spare."""


class Mix:
    """A nap, one that fails first and one that always does, two that wait for them, one that is canceled, a probe, a
    slot of a schedule, and a SYNC with its children."""

    queues: ClassVar[str] = "nap:2,slow:1,heartbeat:1,sync:1,replication:2"
    customers: ClassVar[int] = 3
    settings: ClassVar[dict[str, Any]] = {"policy": {"probe_networks": ["127.0.0.0/8"]}}

    def __init__(self, jobq: JobQ, folder: Path, crm: str) -> None:
        self._jobq, self._folder, self._crm = jobq, folder, crm
        self.expected: dict[UUID, set[str]] = {}
        self.syncs: dict[UUID, str] = {}
        """SYNC → its target."""
        self._to_cancel: set[UUID] = set()
        self.workflows: list[str] = []

    def prepare(self) -> None:
        """What is there before the first process starts."""
        self._jobq.secrets.set("crm-token", TOKEN)

    def enqueue(self, number: int) -> None:
        """The jobs of one round."""
        first = self._nap("COMPLETED·succeeded", say="hello")
        doomed = self._nap("FAILED·error", "FAILED·unresolved", then="fail", retry={**SOON, "max_attempts": 2})
        self._nap("COMPLETED·succeeded", fails=1)
        self._nap("COMPLETED·succeeded", after=(first,))
        self._nap("CANCELED·upstream_failed", after=(doomed,))
        self._to_cancel.add(self._nap("CANCELED·by_user", seconds=60, queue="slow"))
        probe = {"endpoint": f"{self._crm}/customers/1", "expected_status_code": 401}
        self._add("COMPLETED·succeeded", kind="HEARTBEAT", spec=probe)
        target = f"run-{uuid4().hex[:12]}"  # the receiver serves other runs as well
        self.syncs[self._add("COMPLETED·succeeded", kind="SYNC", spec=self._sync(target))] = target
        self.workflows.append(f"flow-{number}")
        flow = self._jobq.create_workflow(
            {"trace": str(self._folder / "trace")}, kind="NAP", name=self.workflows[-1], retry=SOON,
            schedule=Every(hours=1),
        )  # fmt: skip
        Store(self._jobq.database).due(flow, -0.5)

    def _nap(self, *ends: str, retry: Any = SOON, after: Any = (), queue: str | None = None, **spec: Any) -> UUID:
        spec["trace"] = str(self._folder / "trace")
        return self._add(*ends, kind="NAP", spec=spec, retry=retry, after=after, queue=queue)

    def _add(self, *ends: str, spec: Any, retry: Any = SOON, **request: Any) -> UUID:
        job = self._jobq.enqueue(spec, retry=retry, **request)
        self.expected[job.id] = set(ends)
        return job.id

    def _sync(self, target: str) -> dict[str, Any]:
        login = {"auth": {"type": "bearer", "secret": "token"}}
        secrets = {"token": "crm-token"}
        source = {
            "url": f"{self._crm}/customers", "records": "items", "pagination": {"type": "page", "more": "more"},
            "page_size": 2, "size_param": "size", **login,
        }  # fmt: skip
        to = {"url": f"{self._crm}/{target}/{{key}}", "external_id": "number", **login}
        return {
            "domain": target, "batch_size": 2, "mapping": {"id": {"path": "id", "type": "string"}, "name": "first"},
            "source": {"type": "http", "config": source, "secrets": secrets},
            "targets": [{"name": target, "type": "http", "config": to, "secrets": secrets}],
        }  # fmt: skip

    def act(self) -> None:
        """What people do meanwhile: a job is canceled once it runs."""
        for job_id in list(self._to_cancel):
            if self._jobq.get(job_id).status is Status.RUNNING:
                self._jobq.cancel(job_id)
                self._to_cancel.discard(job_id)

    def complaints(self) -> Iterator[str]:
        """What did not end as it should have, apart from the jobs themselves."""
        for name in self.workflows:
            flow = self._jobq.get_workflow(name)
            slots = self._jobq.list(workflow_id=flow.id).items
            if [(job.status, job.reason) for job in slots] != [("COMPLETED", "succeeded")]:
                yield f"the slot of {name} made {slots}"
            if flow.consecutive_failures:
                yield f"{name} counts {flow.consecutive_failures} failures"
        for job_id, target in self.syncs.items():
            yield from self._of_sync(job_id, target)

    def _of_sync(self, job_id: UUID, target: str) -> Iterator[str]:
        counts = self._jobq.fanout(job_id)
        summary = counts.targets[target]
        if (counts.total, counts.completed, counts.read, counts.new) != (self.customers,) * 4:
            yield f"the fan-out counts {counts}"
        if (summary.success, summary.updated, summary.existing) != (self.customers, 0, 0):
            yield f"the target's summary is {summary}"
        children = {one.key: str(one.job_id) for one in self._jobq.exports(job_id, limit=200).items}
        writes = Crm(self._crm).writes(target)
        sent = {(key, idempotency) for _, key, idempotency, status in writes if status < 300}
        if sent != set(children.items()) or len(children) != self.customers:
            yield f"the target was sent {sent} for {children}"


class Containers(Mix):
    """Containers that end well, badly, by their timeout and by a cancel; two of them may be run again."""

    queues: ClassVar[str] = "container:4"
    settings: ClassVar[dict[str, Any]] = {"stop_grace": 0.2, "prepare_timeout": 20}

    def prepare(self) -> None:
        """Nothing."""

    def enqueue(self, number: int) -> None:
        self._run("echo hello; echo file >/out/file", "COMPLETED·succeeded", output="/out")
        self._run("sleep 0.5; exit 3", "FAILED·nonzero_exit", retry={**SOON, "no_retry_exit_codes": [3]})
        self._run("exec sleep 60", "FAILED·timed_out", timeout=1, retry={**SOON, "give_up_on": ["timed_out"]})
        self._to_cancel.add(self._run("exec sleep 60", "CANCELED·by_user"))

    def _run(self, script: str, *ends: str, timeout: float = 30, retry: Any = SOON, **spec: Any) -> UUID:
        container = Container(image="jobq-test:busybox", command=["sh", "-c", script], pull="never", **spec)
        return self._add(*ends, kind="CONTAINER", spec=container, timeout=timedelta(seconds=timeout), retry=retry)

    def act(self) -> None:
        for job_id in list(self._to_cancel):
            if self._jobq.get(job_id).reason == "executing":
                self._jobq.cancel(job_id)
                self._to_cancel.discard(job_id)


MIXES: dict[str, type[Mix]] = {"mix": Mix, "containers": Containers}
