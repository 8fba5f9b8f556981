"""Follow a job: its log while it runs, how it ended, what it returned, and why a job is where it is.

Run it: python examples/wait_and_logs.py
"""

from datetime import UTC, datetime, timedelta

from shop import PLUGINS, Pack

from jobq import Conflict, Settings
from jobq.testing import running


def main() -> None:
    with running(Settings(plugins=PLUGINS)) as jobq:
        job = jobq.enqueue(Pack(order=17, items=3), kind="PACK")
        for line in jobq.logs(job.id, follow=True):  # ends with the job
            print(f"{line.number}: {line.text}")
        job = jobq.wait(job.id, timeout=10)
        attempt = jobq.attempts(job.id)[-1]
        print(f"{job.status} in attempt {attempt.attempt}: {attempt.result}")

        empty = jobq.wait(jobq.enqueue(Pack(order=18, items=0), kind="PACK").id, timeout=10)
        print(f"{empty.status}·{empty.reason}: {empty.message} ({empty.error_class})")

        tomorrow = datetime.now(UTC) + timedelta(days=1)
        later = jobq.enqueue(Pack(order=19, items=1), kind="PACK", scheduled_at=tomorrow)
        print(jobq.why(later.id))
        print(f"{jobq.cancel(later.id).status}: {jobq.why(later.id)}")
        try:
            jobq.cancel(later.id)
        except Conflict as error:
            print(f"{error.code}: {error.message}")


if __name__ == "__main__":
    main()

# Prints:
# 1: item 1 of 3 is in the box
# 2: item 2 of 3 is in the box
# 3: item 3 of 3 is in the box
# COMPLETED in attempt 1: {'parcels': 1}
# FAILED·error: there is nothing to pack (empty)
# Not due until ... (in 86400 s).
# CANCELED: Ended CANCELED·by_user at ... UTC: canceled by python.
# already_finished: Job ... has ended as CANCELED.
