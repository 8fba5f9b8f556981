"""Random histories of jobs, workers, schedulers, workflows and people, over the real store (``tests/machine``).

Each step is compared with what it had to lead to; at the end of each history everything is healthy again, and every
job ends. The same few histories with each run: the search for others is in ``tests/chaos``.
"""

from __future__ import annotations

import pytest

from tests.machine.search import search


@pytest.mark.timeout(300)
def test_in_some_random_histories_each_step_leads_to_what_it_must(sqlite_url: str) -> None:
    search(sqlite_url, examples=24, steps=40, derandomize=True)


@pytest.mark.timeout(300)
def test_in_some_random_histories_each_step_leads_to_what_it_must_on_postgresql(postgres_url: str) -> None:
    search(postgres_url, examples=10, steps=40, derandomize=True)
