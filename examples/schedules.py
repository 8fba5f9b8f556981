"""Workflows: by an interval, by the clock of a time zone, and by hand.

Run it: python examples/schedules.py
"""

import time
from zoneinfo import ZoneInfo

from shop import PLUGINS, Confirm, Pack

from jobq import Cron, Definition, Every, JobQ, Settings
from jobq.testing import running


def first_job(jobq: JobQ, workflow: str) -> str:
    """Wait for the first slot's job, and for its end."""
    found = jobq.get_workflow(workflow)
    while not (jobs := jobq.list(workflow_id=found.id).items):
        time.sleep(0.05)
    job = jobq.wait(jobs[-1].id, timeout=10)
    assert job.slot_at is not None
    return f"{job.trigger}, {job.slot_at - found.anchor_at} after the workflow was made: {job.status}"


def main() -> None:
    with running(Settings(plugins=PLUGINS)) as jobq:
        # Slots are counted from the creation (or start_at), never from when a job ended: no drift.
        jobq.create_workflow(Confirm(order=1), kind="CONFIRM", name="every-second", schedule=Every(seconds=1))
        print("every-second:", first_job(jobq, "every-second"))

        # At 02:30 by the clock on the wall. In March that time is skipped once: the job runs at 03:00 that day.
        jobq.create_workflow(
            Pack(order=1, items=3), kind="PACK", name="nightly",
            schedule=Cron("30 2 * * *", "Europe/Berlin", start_at="2027-03-27T00:00:00+01:00"),
        )  # fmt: skip
        berlin = ZoneInfo("Europe/Berlin")
        for slot in jobq.preview("nightly", count=3):
            print("nightly:", f"{slot.astimezone(berlin):%d %B %H:%M %Z}")

        # Definitions in version control: applying them again changes nothing.
        asked = Definition(kind="PACK", spec=Pack(order=7, items=2), name="by-hand")
        print("apply:", *(jobq.apply([asked])[0].what for _ in range(2)))
        job = jobq.trigger("by-hand", state={"asked_by": "Ada"})
        print("by-hand:", f"{job.trigger}:", jobq.wait(job.id, timeout=10).status)

        # Slots that pass while a workflow is paused are dropped.
        paused = jobq.pause_workflow("every-second")
        print("paused:", paused.status, paused.next_fire_at)


if __name__ == "__main__":
    main()

# Prints:
# every-second: AUTOMATIC, 0:00:01 after the workflow was made: COMPLETED
# nightly: 27 March 02:30 CET
# nightly: 28 March 03:00 CEST
# nightly: 29 March 02:30 CEST
# apply: created unchanged
# by-hand: MANUAL: COMPLETED
# paused: PAUSED None
