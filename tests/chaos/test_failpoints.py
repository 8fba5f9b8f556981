"""Every call of a scheduler and of a worker fails once: the process is killed at it, or it raises. The ledger is right.

A few of them are tried in each run of the suite, all of them by `make chaos`. `ONLY=text make chaos` tries those faults
whose description contains the text.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import pytest

from tests import services
from tests.crm import Crm
from tests.failpoints import AFTER, BEFORE, KILL, RAISE, Fault
from tests.sweep import Bench, Faults, Place, Point, golden, sweep, wrong

PROCESSES = 2 + (os.cpu_count() or 1)
ONLY = os.environ.get("ONLY", "")

# role, door, when, how: of each the first point whose name begins so. Side by side: one run.
SAMPLE = [
    ("scheduler", "COMMIT of UPDATE jobs by scheduler.service", AFTER, KILL, "worker", "UPDATE jobs by workers.app", AFTER),
]


@pytest.fixture(scope="module")
def crm() -> Iterator[Crm]:
    with Crm() as crm:
        crm.reset([{"id": number, "first": f"Ada{number}"} for number in range(3)])
        yield crm
