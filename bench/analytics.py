"""Analytics over ten million ended jobs of a year: how long each kind of question takes.

The rollups are written as the scheduler would leave them: one row for each hour and each day of every workflow, and of
all. Some thousands of jobs are not rolled up yet.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg

from bench.listings import timed
from bench.stack import Servers
from jobq.client import JobQ
from jobq.histogram import Histogram
from jobq.settings import Settings
from jobq.store import migrations
from tests.crowd import TENANT, fill

LIVE = 20_000
TARGET_MS = 200

# A period of one workflow has some buckets, one of all workflows of a kind has many.
_ROLLUPS = """
INSERT INTO jobq_rollups
SELECT '{tenant}', {width}, CASE WHEN flow = 0 THEN {all}::uuid ELSE lpad(to_hex(flow), 32, '0')::uuid END,
    to_timestamp(at), kind, lower(kind), jobs,
    CASE WHEN jobs >= 10 THEN jsonb_build_object('succeeded', jobs - 2, 'timed_out', 1, 'by_user', 1)
        ELSE jsonb_build_object('succeeded', jobs) END,
    spread.run, spread.wait, jobs * 1.5, jobs * 0.01, jobs / 50, jobs * 2000
FROM (
    SELECT at, flow, (ARRAY['HEARTBEAT', 'CONTAINER', 'REPLICATION', 'SYNC'])[1 + which % 4] AS kind,
        greatest({jobs}::bigint * {width} / 31536000 / CASE WHEN flow = 0 THEN 4 ELSE {flows} END, 1) AS jobs
    FROM generate_series({first}, {last}, {width}) AS at,
        (SELECT flow, flow AS which FROM generate_series(1, {flows}) AS flow
         UNION ALL SELECT 0, which FROM generate_series(0, 3) AS which) AS flows
) AS each
CROSS JOIN LATERAL (
    SELECT least(60, 2 + sqrt(jobs)::int) AS buckets
) AS size
JOIN LATERAL (
    SELECT run, wait FROM histograms WHERE histograms.buckets = size.buckets
) AS spread ON true
"""


def _histogram(first: int, buckets: int) -> str:
    made = Histogram()
    for number in range(buckets):
        made.add(first + number, 1 + number % 5)
    return made.stored()


def measure(where: Servers, *, jobs: int, flows: int = 100) -> dict[str, Any]:
    name = where.postgres.create()
    now = datetime.now(UTC)
    with JobQ(settings=Settings(database_url=where.postgres.url(name), tenant=TENANT)) as jobq:
        migrations.upgrade(jobq.database)
        rows = _fill(where.postgres.url(name), jobs, flows, now)
        asked: dict[str, dict[str, Any]] = {
            "a day": {},
            "30 days": {"since": now - timedelta(days=30)},
            "a year": {"since": now - timedelta(days=365)},
            "a year by day": {"since": now - timedelta(days=365), "bucket": "day"},
            "a year by day, kind": {"since": now - timedelta(days=200), "bucket": "day", "group_by": "kind"},
            "40 days by hour": {"since": now - timedelta(days=40), "bucket": "hour"},
            "60 days of Berlin": {"since": now - timedelta(days=60), "bucket": "day", "timezone": "Europe/Berlin"},
            "a year by workflow": {"since": now - timedelta(days=365), "group_by": "workflow"},
            "a year of one workflow by day": {
                "since": now - timedelta(days=365), "bucket": "day", "workflow_id": UUID(int=3)
            },
        }  # fmt: skip
        counted = jobq.analytics(since=now - timedelta(days=365)).items[0].jobs
        found = {each: timed(lambda: jobq.analytics(**only)) for each, only in asked.items()}  # noqa: B023
    slow = [each for each, took in found.items() if took["p50"] > TARGET_MS]
    return {"jobs": counted, "rollups": rows, "ms": found, f"slower than {TARGET_MS} ms": slow}


def _fill(url: str, jobs: int, flows: int, now: datetime) -> int:
    hour = int(now.timestamp()) // 3600 * 3600
    fill(url, LIVE)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TEMPORARY TABLE histograms (buckets int, run text, wait text)")
        for buckets in range(1, 61):
            spread = (buckets, _histogram(60, buckets), _histogram(20, buckets))
            connection.execute("INSERT INTO histograms VALUES (%s, %s, %s)", spread)
        for width in (3600, 86_400):
            statement = _ROLLUPS.format(
                tenant=TENANT, width=width, flows=flows, jobs=jobs, all="'00000000-0000-0000-0000-000000000000'",
                first=(hour - 365 * 86_400) // width * width, last=hour - 1,
            )  # fmt: skip
            connection.execute(statement.encode())
        connection.execute("UPDATE jobq_rolled SET until = now() - interval '20 minutes'")
        connection.execute("VACUUM (ANALYZE)")
        (rows,) = connection.execute("SELECT count(*) FROM jobq_rollups").fetchone() or (0,)
    return int(rows)
