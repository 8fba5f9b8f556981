"""What the tests of container jobs share: an executor on a private engine, and a job whose traces can be read."""

import asyncio
import json
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from jobq.models import Outcome
from jobq.plugins import Context, JobRef, Stop
from jobq.settings import Settings
from jobq.specs import Container
from tests import services
from workers.container import ContainerExecutor
from workers.container.config import create_body
from workers.container.engine import DockerEngine

IMAGE = "jobq-test:busybox"


def settings(url: str, **more: Any) -> Settings:
    """Settings for an engine; ``env_id`` test."""
    return Settings(docker_host=url, env_id="test", **more)


@asynccontextmanager
async def executor_at(
    url: str, *, worker_id: str = "", patience: float = 60, **more: Any
) -> AsyncIterator[ContainerExecutor]:
    """An open executor on the engine at that address."""
    executor = ContainerExecutor(patience=patience)
    await executor.open(settings(url, **more), worker_id or uuid.uuid4().hex)
    try:
        yield executor
    finally:
        await executor.close()


def shell(script: str, **more: Any) -> Container:
    """A job that runs a line of shell."""
    return Container(image=IMAGE, command=["sh", "-c", script], **more)


class Job:
    """A job as its executor meets it, and what it left behind."""

    def __init__(
        self, *, timeout: float | None = 30, attempt: int = 1, after: "Job | None" = None, **more: Any
    ) -> None:
        ref = JobRef(after.ctx.job.id if after else uuid.uuid4(), attempt, "acme", "CONTAINER", "nightly", "container",
                     "MANUAL", timeout)  # fmt: skip
        self.output: dict[str, bytearray] = defaultdict(bytearray)
        self.artifacts: dict[str, bytes] = {}
        self.saved: dict[str, Any] = {}
        self.executing = 0
        self.ctx: Context = Context(
            ref,
            write_log=self._log,
            on_executing=self._executing,
            save=lambda document: self.saved.update(json.loads(json.dumps(document))),
            save_artifact=self.artifacts.__setitem__,
            checkpoint=dict(after.saved) if after else {},
            **more,
        )

    def _log(self, text: str | bytes, stream: str) -> None:
        self.output[stream] += text if isinstance(text, bytes) else text.encode()

    def _executing(self) -> None:
        self.executing += 1

    @property
    def name(self) -> str:
        """The container's name."""
        return f"jobq-{self.ctx.job.id}-{self.ctx.job.attempt}"

    @property
    def stdout(self) -> str:
        return self.output["stdout"].decode()

    @property
    def stderr(self) -> str:
        return self.output["stderr"].decode()

    @property
    def system(self) -> str:
        return self.output["system"].decode()

    @property
    def steps(self) -> list[str]:
        return [step.name for step in self.ctx.steps]


async def eventually(predicate: Callable[[], Any], seconds: float = 15) -> None:
    """``services.wait_until`` beside a running event loop."""
    await asyncio.to_thread(services.wait_until, predicate, seconds)


async def until(
    executor: ContainerExecutor, spec: Container, job: Job, condition: Callable[[], Any], stop: Stop
) -> Outcome:
    """Execute, and tell the job to stop as soon as the condition holds."""
    running = asyncio.create_task(executor.execute(spec, job.ctx))
    await eventually(condition)
    job.ctx.request_stop(stop)
    return await running


def containers(engine: services.Docker) -> list[str]:
    """The names of all containers, whatever their state."""
    found = json.loads(engine.request("GET", "/containers/json?all=1")[1])
    return sorted(row["Names"][0].removeprefix("/") for row in found)


def inspect(engine: services.Docker, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(engine.request("GET", f"/containers/{name}/json")[1])
    return found


@asynccontextmanager
async def engine_at(docker: services.Docker, *, patience: float = 60) -> AsyncIterator[DockerEngine]:
    """The door to an engine, without an executor."""
    engine = DockerEngine(docker.url, patience=patience)
    try:
        yield engine
    finally:
        await engine.close()


async def create(
    engine: DockerEngine, job: Job, spec: Container, *, env_id: str = "test", now: datetime | None = None
) -> None:
    """Create a job's container and stop there, as a worker that dies at that point does."""
    body = create_body(
        spec, job.ctx.job, env_id=env_id, worker_id="dead", now=now or datetime.now(UTC), max_log_bytes=1 << 20
    )
    await engine.create(job.name, body)
