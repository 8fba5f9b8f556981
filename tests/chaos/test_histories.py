"""Other random histories with each run: see ``tests/contract/test_store_machine.py``."""

from __future__ import annotations

import pytest

from tests.machine.search import search

pytestmark = pytest.mark.chaos


@pytest.mark.timeout(900)
def test_in_many_random_histories_each_step_leads_to_what_it_must(database_url: str) -> None:
    search(database_url, examples=150, steps=60, derandomize=False)
