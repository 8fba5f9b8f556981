"""For tests: of applications that use jobq (``running``), of executors, and of connectors.

    def test_the_order_is_confirmed():
        with running(Settings(plugins=["shop.jobs:ConfirmExecutor"])) as jobq:
            job = jobq.enqueue({"order": 17}, kind="CONFIRM")
            assert jobq.wait(job.id, timeout=10).status is Status.COMPLETED

``ExecutorContract``, ``SourceContract`` and ``TargetContract`` are what every plugin must hold: authors subclass them.
"""

from jobq.testing.application import running
from jobq.testing.connectors import Seen, read_all
from jobq.testing.executors import ExecutorContract, Ran, assert_recordable, run_executor
from jobq.testing.sources import SourceContract
from jobq.testing.targets import TargetContract

__all__ = [
    "ExecutorContract",
    "Ran",
    "Seen",
    "SourceContract",
    "TargetContract",
    "assert_recordable",
    "read_all",
    "run_executor",
    "running",
]
