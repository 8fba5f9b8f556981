"""What a container of ours is called, carries and may do: pure functions from a job to the engine's JSON.

The body of ``create`` is built from a whitelist, field by field: no part of a spec reaches the engine's
HostConfig except numbers that were checked. Whatever is not written here stays at the engine's safe default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from jobq.plugins import JobRef
from jobq.specs import Container, MiB

ENV_LABEL = "jobq.env"
JOB_LABEL = "jobq.job"
ATTEMPT_LABEL = "jobq.attempt"
WORKER_LABEL = "jobq.worker"
DEADLINE_LABEL = "jobq.deadline"

LOG_FILES = 2
_NO_NETWORK = "none"


@dataclass(frozen=True, slots=True, order=True)
class Claim:
    """One attempt of one job: what a container belongs to."""

    job_id: UUID
    attempt: int

    @property
    def name(self) -> str:
        """The container's name, and with it a fence: the engine refuses a second container of that name."""
        return f"jobq-{self.job_id}-{self.attempt}"

    @property
    def labels(self) -> dict[str, str]:
        """The labels that find its container, under whatever name."""
        return {JOB_LABEL: str(self.job_id), ATTEMPT_LABEL: str(self.attempt)}

    @classmethod
    def of(cls, labels: Mapping[str, str]) -> Claim | None:
        """The attempt that a container with these labels belongs to; None: the labels are not ours."""
        try:
            return cls(UUID(labels[JOB_LABEL]), int(labels[ATTEMPT_LABEL]))
        except (KeyError, ValueError):
            return None


def taken_over(claim: Claim) -> str:
    """A new name under which another worker holds the container of an attempt from now on.

    The former owner's calls go to the former name: from the takeover on they meet a 404. So a worker that was
    frozen, and wakes after another has reattached its container, can neither stop nor remove it.
    """
    return f"{claim.name}.{uuid4().hex[:8]}"


def create_body(
    spec: Container, job: JobRef, *, env_id: str, worker_id: str, now: datetime, max_log_bytes: int
) -> dict[str, Any]:
    """The body of ``POST /containers/create``."""
    offline = spec.network is None or spec.network == _NO_NETWORK
    body: dict[str, Any] = {
        "Image": spec.image,
        "User": spec.user,
        "Env": environment(spec, job),
        "Labels": labels(job, env_id=env_id, worker_id=worker_id, now=now),
        # Beside NetworkMode none: without it the engine prepares a sandbox for nothing, which doubles the start.
        "NetworkDisabled": offline,
        "Healthcheck": {"Test": ["NONE"]},  # an image's own would run processes that nobody asked for
        "HostConfig": _host_config(spec, _NO_NETWORK if offline else str(spec.network), max_log_bytes),
    }
    if spec.command is not None:
        body["Cmd"] = spec.command
    if spec.entrypoint is not None:
        body["Entrypoint"] = spec.entrypoint
    if spec.working_dir is not None:
        body["WorkingDir"] = spec.working_dir
    return body


def _host_config(spec: Container, network: str, max_log_bytes: int) -> dict[str, Any]:
    # The engine's own log is a buffer on disk for our follower: bounded, but larger than what the job log keeps.
    log_size = max(16 * MiB, 2 * max_log_bytes)
    return {
        "Memory": spec.memory,
        "MemorySwap": spec.memory,  # equal: no swap
        "NanoCpus": round(spec.cpus * 1e9),
        "PidsLimit": spec.pids,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges"],
        "Init": True,  # reaps children, and lets a default SIGTERM end PID 1's child
        "IpcMode": "private",
        "NetworkMode": network,
        "ReadonlyRootfs": False,
        "AutoRemove": False,  # it would lose the exit code
        "RestartPolicy": {"Name": "no"},
        "LogConfig": {
            "Type": "json-file",
            "Config": {"max-size": str(log_size), "max-file": str(LOG_FILES)},
        },
    }


def environment(spec: Container, job: JobRef) -> list[str]:
    """The user's variables, then ours, which nothing overrides."""
    ours = {
        "JOBQ_JOB_ID": str(job.id),
        "JOBQ_ATTEMPT": str(job.attempt),
        "JOBQ_TENANT": job.tenant,
        "JOBQ_JOB_NAME": job.name,
        "JOBQ_TRIGGER": job.trigger,
    }
    return [f"{name}={text}" for name, text in {**spec.env, **ours}.items()]


def labels(job: JobRef, *, env_id: str, worker_id: str, now: datetime) -> dict[str, str]:
    """Whose container this is, and when it must be over at the latest (``now``: aware, UTC)."""
    deadline = {}
    if job.timeout is not None:
        deadline = {DEADLINE_LABEL: (now + timedelta(seconds=job.timeout)).isoformat(timespec="seconds")}
    return {ENV_LABEL: env_id, **Claim(job.id, job.attempt).labels, WORKER_LABEL: worker_id, **deadline}
