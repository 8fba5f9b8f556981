"""Receivers of webhooks that are away for long, with many events waiting for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hooked import Hooked
from tests.integration.test_webhooks import away_for_an_hour
from tests.receiver import Receiver

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400), pytest.mark.needs_postgres]


def test_a_receiver_that_is_away_for_an_hour_gets_everything_once_it_is_back(tmp_path: Path, postgres_url: str) -> None:
    """An hour in a few minutes: with each look a minute passes for what waits. Three schedulers send."""
    with Receiver(tmp_path / "receiver") as receiver, Hooked(postgres_url, receiver) as hooked:
        hooked.senders = 3
        away_for_an_hour(hooked, jobs=500)
