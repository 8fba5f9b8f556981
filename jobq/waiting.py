"""Waiting for the end of a job, by looking again and again: the same for a database and for an HTTP API."""

from __future__ import annotations

import time
from collections.abc import Callable
from uuid import UUID

from jobq.errors import Unavailable
from jobq.models import Job

_LONGEST_PAUSE = 0.5


def wait_for_end(get: Callable[[UUID], Job], job_id: UUID, timeout: float | None, pause: float = 0.005) -> Job:
    """See ``JobQ.wait``. ``pause``: seconds between the first two looks; it grows to half a second."""
    ends = None if timeout is None else time.monotonic() + timeout
    while True:
        job = get(job_id)
        if job.finished and job.duplicate_of is not None:
            job_id = job.duplicate_of
            continue
        if job.finished:
            return job
        left = pause if ends is None else min(pause, ends - time.monotonic())
        if left <= 0:
            raise Unavailable(
                f"Job {job_id} has not ended within {timeout:g} s: it is {job.status}·{job.reason}.",
                code="wait_timeout", hint=f"jobq job why {job_id} says why.",
            )  # fmt: skip
        time.sleep(left)
        pause = min(pause * 1.5, _LONGEST_PAUSE)
