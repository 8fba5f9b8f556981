"""The policy that makes the jobs of slots also releases what nobody else can release, however busy it is."""

from datetime import timedelta

from scheduler.materialize import Materializer
from tests.stores import QUEUE, Store

MINUTE = timedelta(minutes=1)


def test_a_blocked_job_is_released_although_slots_never_pause(store: Store) -> None:
    """Its predecessor ended in the very moment of its creation: the one saw no end, the other no successor."""
    worker = store.worker()
    flow, busy = (store.workflow(interval=MINUTE, overlap="queue") for _ in range(2))
    for _ in range(2):
        store.due(store.flow(flow), 0)
        store.materialize()
        if ids := store.promote().get(QUEUE):
            store.claim(worker, ids)
    earlier, blocked = store.jobs_of(flow)
    # the end, with nobody who releases
    store.pretend(earlier.id, status="CANCELED", reason="by_user", finished_at=0, worker_id=None)
    assert store.state(blocked.id) == "PENDING·blocked"

    made = []
    materializer = Materializer(store.database, lambda: made.append(1))
    store.due(store.flow(busy), 0)
    materializer.tick()
    assert (store.state(blocked.id), len(made)) == ("PENDING·ready", 1)
