"""What is said of a job that a command just made, and the wait for its end."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING
from uuid import UUID

import typer

from jobq.cli.output import console, note, plain, say, state, took, write, write_json
from jobq.cli.problems import FAILED
from jobq.states import Status

if TYPE_CHECKING:
    from jobq.cli.options import WaitOptions
    from jobq.client import JobQ
    from jobq.models import Job


def report(jobq: JobQ, job: Job, after: WaitOptions) -> None:
    """Print the id (scripts read it), wait if that was asked for, and exit 1 unless the job completed."""
    if not after.as_json:
        write(f"{job.id}\n")
    if not after.wait:
        if after.as_json:
            write_json(job)
        elif job.duplicate_of is not None:
            note(f"Recorded as a duplicate: job {job.duplicate_of} holds the dedupe key.")
        else:
            note(f"{job.name} is {job.status}·{job.reason} in queue {job.queue}. jobq job why {job.id}")
        return
    tell_end(wait_for(jobq, job.id, after.wait_timeout), as_json=after.as_json, asked=job.id)


def wait_for(jobq: JobQ, job_id: UUID, timeout: float | None) -> Job:
    """The job once it has ended; a spinner says so to a person who watches."""
    try:
        if not sys.stderr.isatty():
            return jobq.wait(job_id, timeout)
        with console(stderr=True).status(f"waiting for {job_id}"):
            return jobq.wait(job_id, timeout)
    except KeyboardInterrupt:
        note(f"The job goes on. jobq job wait {job_id}")
        raise


def tell_end(job: Job, *, as_json: bool, asked: UUID) -> None:
    """How the job ended; exit 1 unless it completed. A duplicate's end is that of the job it duplicates."""
    from rich.text import Text

    if as_json:
        write_json(job)
    else:
        lasted = took(job.started_at, job.finished_at)
        text = Text.assemble(state(job.status, job.reason), f" in {lasted}" if lasted else "")
        if job.message:
            text.append(f": {plain(job.message)}")
        if job.id != asked:
            text.append(f" (job {job.id}, which it duplicates)")
        say(text)
    if job.status is not Status.COMPLETED:
        raise typer.Exit(FAILED)
