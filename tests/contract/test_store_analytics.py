"""Analytics: what a naive look at all jobs would add up, whether they are rolled up, in part, or not at all."""

import math
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa

from jobq.analytics import Point, Trend
from jobq.client import JobQ
from jobq.errors import InvalidInput
from jobq.settings import Settings
from jobq.states import REASONS, Status
from jobq.store import logs, rollup
from jobq.store.jobs import new_id
from jobq.store.logs import Chunk
from jobq.store.prune import Kept, prune
from jobq.store.tables import jobs as table
from jobq.store.tables import rolled
from tests.stores import Store, new_job

ENDS = [(status, reason) for status in (Status.COMPLETED, Status.FAILED, Status.CANCELED) for reason in REASONS[status]]
ENDS.sort()
NOW = datetime.now(UTC)
TODAY = NOW.replace(hour=0, minute=0, second=0, microsecond=0)
HOUR = timedelta(hours=1)


@dataclass
class Ended:
    """A job that ended, as the test knows it."""

    kind: str
    queue: str
    workflow_id: UUID | None
    status: str
    reason: str
    finished_at: datetime
    run: float | None
    wait: float | None
    retries: int
    log_bytes: int
    tenant: str = "acme"
    id: UUID = field(default_factory=new_id)


class History:
    """Jobs that ended at random in four days, many of them at borders of hours and days."""

    def __init__(self, store: Store, count: int = 120, seed: int = 5) -> None:
        self.store, self.chance = store, random.Random(seed)
        self.flows = [new_id() for _ in range(3)]
        self.jobs: list[Ended] = []
        self.add(count)

    def add(self, count: int, **fixed: Any) -> list[Ended]:
        made = [self._one(**fixed) for _ in range(count)]
        self.store.add(
            *(
                new_job(id=job.id, kind=job.kind, queue=job.queue, workflow_id=job.workflow_id, tenant=job.tenant)
                for job in made
            )
        )
        for job in made:
            started = None if job.run is None else job.finished_at - timedelta(seconds=job.run)
            ready = None if started is None or job.wait is None else started - timedelta(seconds=job.wait)
            self.store.pretend(
                job.id, status=job.status, reason=job.reason, finished_at=job.finished_at, started_at=started,
                ready_at=ready, attempt=job.retries + 1, created_at=job.finished_at - timedelta(days=1),
            )  # fmt: skip
            if job.log_bytes:
                self.store.do(logs.append, [Chunk(job.id, 1, 1, job.log_bytes, [(0, "stdout", "x")])])
        self.jobs += made
        return made

    def _one(self, **fixed: Any) -> Ended:
        chance = self.chance
        status, reason = chance.choice(ENDS)
        border = TODAY - timedelta(hours=chance.randint(-1 if TODAY + HOUR < NOW else 0, 90))
        at = chance.choice(
            [
                border,
                border - timedelta(microseconds=1000),
                border + timedelta(microseconds=1000),
                border - timedelta(seconds=chance.uniform(1, 3000)),
            ]
        )
        at = at.replace(microsecond=at.microsecond // 1000 * 1000)
        ran = chance.random() < 0.8
        fields: dict[str, Any] = {
            "kind": chance.choice(["NOOP", "HEARTBEAT", "REPLICATION"]), "queue": chance.choice(["one", "two"]),
            "workflow_id": chance.choice([None, *self.flows]), "status": status.value, "reason": reason.value,
            "finished_at": at, "run": round(chance.lognormvariate(0, 2), 3) if ran else None,
            "wait": round(chance.expovariate(10), 3) if ran else None, "retries": chance.choice([0, 0, 0, 2]),
            "log_bytes": chance.choice([0, 0, 1000]), "tenant": chance.choice(["acme"] * 9 + ["other"]),
        }  # fmt: skip
        return Ended(**{**fields, **fixed})

    def of(self, since: datetime, until: datetime, take: Callable[[Ended], bool] = lambda _: True) -> list[Ended]:
        return [
            job for job in self.jobs if job.tenant == "acme" and since <= job.finished_at < until and take(job)
        ]  # fmt: skip


@pytest.fixture
def history(store: Store) -> History:
    _forget(store)
    return History(store)


def _forget(store: Store) -> None:
    """Nothing is rolled up, as after the installation."""
    with store.database.begin() as conn:
        conn.execute(sa.update(rolled).values(until=datetime(1970, 1, 1, tzinfo=UTC)))


@pytest.fixture
def jobq(store: Store) -> Iterator[JobQ]:
    url = store.database.engine.url.render_as_string(hide_password=False)
    with JobQ(tenant="acme", settings=Settings(database_url=url)) as door:
        yield door


def rolled_up(store: Store, limit: int = 20_000, lag: float = 0.0) -> int:
    """All there is, in batches of so many; how many jobs they were."""
    total = 0
    while counted := store.do(rollup.roll_up, limit, lag):
        total += counted
    return total


def check(point: Point, expected: list[Ended]) -> None:
    """The point says of these jobs what they say themselves."""
    assert point.jobs == len(expected)
    assert {str(reason): count for reason, count in point.reasons.items()} == _counts(job.reason for job in expected)
    assert {str(status): n for status, n in point.statuses.items() if n} == _counts(job.status for job in expected)
    tried = [job for job in expected if job.status != "CANCELED"]
    succeeded = sum(job.status == "COMPLETED" for job in tried)
    assert point.success_rate == (pytest.approx(succeeded / len(tried)) if tried else None)
    assert point.retries == sum(job.retries for job in expected)
    assert point.log_bytes == sum(job.log_bytes for job in expected)
    for spread, values in (
        (point.run, [job.run for job in expected if job.run is not None]),
        (point.wait, [job.wait for job in expected if job.wait is not None]),
    ):
        assert spread.mean == (pytest.approx(sum(values) / len(values), abs=0.001) if values else None)
        for percent, found in ((50, spread.p50), (95, spread.p95), (99, spread.p99)):
            exact = sorted(values)[max(math.ceil(len(values) * percent / 100), 1) - 1] if values else None
            assert found == (None if exact is None else pytest.approx(exact, rel=0.05, abs=0.0011)), percent


def _counts(words: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for word in words:
        found[word] = found.get(word, 0) + 1
    return found


def not_at_all(store: Store, history: History) -> None:
    pass


def in_part(store: Store, history: History) -> None:
    store.do(rollup.roll_up, len(history.jobs) // 3, 0.0)
    store.do(rollup.roll_up, 20, 0.0)
    history.add(10, finished_at=NOW)


def altogether(store: Store, history: History) -> None:
    assert rolled_up(store, limit=17) == len(history.jobs)


@pytest.mark.parametrize("how", [not_at_all, in_part, altogether])
def test_sums_are_those_of_a_naive_look_however_far_jobs_are_rolled_up(
    store: Store, history: History, jobq: JobQ, how: Callable[[Store, History], None]
) -> None:
    how(store, history)
    since, until = TODAY - timedelta(days=2, hours=5), TODAY + timedelta(days=2)
    (whole,) = jobq.analytics(since=since, until=until).items
    check(whole, history.of(since, until))
    hourly = jobq.analytics(since=TODAY - timedelta(hours=30), until=until, bucket="hour")
    assert len(hourly.items) == 78
    for point in hourly.items:
        assert point.start is not None
        check(point, history.of(point.start, point.start + HOUR))
    daily = jobq.analytics(since=since, until=TODAY, bucket="day", timezone="Asia/Tokyo")
    for point in daily.items:
        assert point.start is not None
        assert point.start.astimezone(ZoneInfo("Asia/Tokyo")).hour == 0
        check(point, history.of(max(point.start, since), min(point.start + timedelta(days=1), TODAY)))
    kinds = jobq.analytics(since=since, until=until, group_by="kind", queues=["one"]).items
    assert {point.kind for point in kinds} == {"NOOP", "HEARTBEAT", "REPLICATION"}
    for point in kinds:
        check(point, history.of(since, until, lambda job, kind=point.kind: (job.kind, job.queue) == (kind, "one")))  # type: ignore[misc]
    flows = jobq.analytics(since=since, until=until, group_by="workflow").items
    assert {point.workflow_id for point in flows} == {None, *history.flows}
    for point in flows:
        check(point, history.of(since, until, lambda job, flow=point.workflow_id: job.workflow_id == flow))  # type: ignore[misc]
    (one,) = jobq.analytics(since=since, until=until, workflow_id=history.flows[0], kinds=["NOOP"]).items
    check(one, history.of(since, until, lambda job: (job.workflow_id, job.kind) == (history.flows[0], "NOOP")))


def test_days_and_hours_say_the_same(store: Store, history: History, jobq: JobQ) -> None:
    rolled_up(store)
    daily = jobq.analytics(since=TODAY - timedelta(days=4), until=TODAY, bucket="day").items
    assert [point.start for point in daily] == [TODAY - timedelta(days=days) for days in (4, 3, 2, 1)]
    for point in daily:
        assert point.start is not None
        check(point, history.of(point.start, point.start + timedelta(days=1)))


def test_minutes_come_from_the_jobs_themselves(store: Store, history: History, jobq: JobQ) -> None:
    rolled_up(store)
    trend: Trend = jobq.analytics(since=TODAY - 2 * HOUR, until=TODAY + 2 * HOUR, bucket="minute")
    assert len(trend.items) == 240
    for point in trend.items:
        assert point.start is not None
        check(point, history.of(point.start, point.start + timedelta(minutes=1)))


def test_each_job_counts_once_though_rolling_up_is_repeated_interrupted_and_done_by_many(
    store: Store, history: History, jobq: JobQ
) -> None:
    class Killed(Exception):
        pass

    def interrupted(conn: Any) -> None:
        assert rollup.roll_up(conn, 20, 0.0)
        raise Killed

    for _ in range(3):
        with pytest.raises(Killed):
            store.database.run(interrupted)
        assert store.do(rollup.roll_up, 20, 0.0) or True
    threads = [threading.Thread(target=rolled_up, args=(store, 7)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rolled_up(store)
    assert rolled_up(store) == 0
    since, until = TODAY - timedelta(days=5), TODAY + timedelta(days=1)
    (whole,) = jobq.analytics(since=since, until=until).items
    check(whole, history.of(since, until))


def test_jobs_that_ended_at_one_instant_are_rolled_up_together(store: Store, jobq: JobQ) -> None:
    _forget(store)
    history = History(store, count=0)
    history.add(30, finished_at=TODAY - HOUR, tenant="acme")
    history.add(1, finished_at=TODAY, tenant="acme")
    assert store.do(rollup.roll_up, 10, 0.0) == 30
    assert store.do(rollup.roll_up, 10, 0.0) == 1
    check(jobq.analytics(since=TODAY - HOUR, until=TODAY).items[0], history.jobs[:30])


def test_an_end_whose_transaction_goes_on_is_waited_for(postgres: Store) -> None:
    """A job that is recorded first and committed last."""
    _forget(postgres)
    history = History(postgres, count=0)
    late = postgres.enqueue_one()
    with postgres.database.begin() as conn:
        ended = {"status": "CANCELED", "reason": "by_user", "finished_at": sa.func.statement_timestamp()}
        conn.execute(sa.update(table).where(table.c.id == late).values(**ended))
        history.add(1, finished_at=datetime.now(UTC) - timedelta(days=1), tenant="acme")
        postgres.cancel(postgres.enqueue_one())  # ended later, committed earlier
        assert rolled_up(postgres) == 1
    assert rolled_up(postgres) == 2


def test_no_job_is_deleted_before_it_is_rolled_up(store: Store, history: History, jobq: JobQ) -> None:
    since, until = TODAY - timedelta(days=5), TODAY + timedelta(days=1)
    assert store.do(prune, Kept.alike(0.0)).jobs == 0
    store.do(rollup.roll_up, 40, 0.0)
    pruned = store.do(prune, Kept.alike(0.0)).jobs
    assert 40 <= pruned < len(history.jobs)
    check(jobq.analytics(since=since, until=until).items[0], history.of(since, until))
    rolled_up(store)
    assert store.do(prune, Kept.alike(0.0)).jobs == len(history.jobs) - pruned
    assert store.count("jobq_jobs") == 0
    check(jobq.analytics(since=since, until=until).items[0], history.of(since, until))


def test_wrong_questions_are_refused(jobq: JobQ) -> None:
    day = timedelta(days=1)
    wrong: list[dict[str, Any]] = [
        {"since": NOW, "until": NOW - day}, {"bucket": "week"}, {"group_by": "name"}, {"timezone": "Mars/Base"},
        {"limit": 0}, {"since": datetime(2026, 1, 1)}, {"since": NOW - 7 * HOUR, "bucket": "minute"},  # noqa: DTZ001
        {"since": NOW - 50 * day, "bucket": "hour"}, {"since": NOW - 500 * day, "bucket": "day", "timezone": "Asia/Tokyo"},
    ]  # fmt: skip
    for asked in wrong:
        with pytest.raises(InvalidInput) as refused:
            jobq.analytics(**asked)
        assert refused.value.pointer, asked
