"""Applications in tests: ``running`` gives a JobQ whose jobs really run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from jobq.client import JobQ
from jobq.embedded import Embedded
from jobq.settings import EMBEDDED, Settings


@contextmanager
def running(settings: Settings | None = None, *, queues: Mapping[str, int] | None = None) -> Iterator[JobQ]:
    """A ``JobQ`` whose jobs really run: scheduler and worker in this process, on a SQLite database that goes away.

    ``settings``: everything but the database and the broker counts. ``queues``: worker slots by queue; default: the
    queue of every kind that is installed. Jobs that still run at the end get two seconds.
    """
    from jobq.store.migrations import upgrade

    with tempfile.TemporaryDirectory(prefix="jobq-") as folder:
        given = settings or Settings.load()
        own = given.model_copy(
            update={
                "database_url": f"sqlite:///{Path(folder, 'jobq.db')}",
                "broker_url": EMBEDDED,
                "drain_timeout": min(given.drain_timeout, timedelta(seconds=2)),
            }
        )
        with JobQ(settings=own) as jobq:
            upgrade(jobq.database)
            with Embedded(own, queues):
                yield jobq
