"""A thousand jobs in a few statements, the urgent ones first, none of them twice.

Run it: python examples/bulk_enqueue.py
"""

import time

from shop import PLUGINS, Confirm

from jobq import JobRequest, Settings, Status
from jobq.testing import running

MANY = 1_000


def main() -> None:
    with running(Settings(plugins=PLUGINS)) as jobq:
        jobq.queues.pause("confirm")  # so that all of them wait, and priority decides
        began = time.monotonic()
        ids = jobq.enqueue_many(
            JobRequest(
                kind="CONFIRM",
                spec=Confirm(order=order),
                priority=9 if order % 100 == 0 else 4,
                dedupe_key=f"confirm-{order}",
            )
            for order in range(MANY)
        )
        print(f"enqueued {len(ids)} jobs in {time.monotonic() - began:.1f} s")

        twice = jobq.enqueue(Confirm(order=5), kind="CONFIRM", dedupe_key="confirm-5")
        print(f"the second job for order 5 is {twice.status}·{twice.reason} of {twice.duplicate_of == ids[5]}")

        jobq.queues.resume("confirm")
        ended = [jobq.wait(job_id, timeout=60) for job_id in ids]
        print(f"{sum(job.status is Status.COMPLETED for job in ended)} completed, all of them once")

        def first(jobs: list) -> float:
            return min(job.queued_at.timestamp() for job in jobs)

        urgent = [job for job in ended if job.priority == 9]
        print("the urgent ones went first:", first(urgent) <= first([job for job in ended if job.priority == 4]))


if __name__ == "__main__":
    main()

# Prints:
# enqueued 1000 jobs in ... s
# the second job for order 5 is CANCELED·duplicate of True
# 1000 completed, all of them once
# the urgent ones went first: True
