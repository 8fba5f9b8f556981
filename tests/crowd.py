"""A table of many jobs, made by one statement: mostly replications and probes that went well, and a few of all else."""

from __future__ import annotations

from uuid import UUID

import psycopg

TENANT = "acme"
PARENT = UUID(int=7)
"""Of every second job."""
FLOWS = 40

_FILL = """
INSERT INTO jobq_jobs (
    id, tenant, kind, name, queue, status, reason, trigger, priority, max_attempts, attempt, created_at, scheduled_at,
    ready_at, started_at, finished_at, workflow_id, parent_id, domain, target, entity_key,
    worker_id)
SELECT
    (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7' || substr(md5(n::text), 1, 3) || '8'
        || substr(md5(n::text), 4, 15))::uuid,
    tenant, kind, CASE WHEN n % 50000 = 7 THEN 'a needle ' ELSE 'job ' END || n,
    CASE WHEN n % 20000 = 3 THEN 'rare' ELSE lower(kind) END, status, reason,
    CASE WHEN n % 10000 = 13 THEN 'MANUAL' ELSE 'AUTOMATIC' END, 4, 1, 1, at,
    CASE WHEN n % 20000 = 17 THEN at END, at, CASE WHEN status <> 'PENDING' THEN at END,
    CASE WHEN status IN ('COMPLETED', 'FAILED') THEN at + (n % 7) * interval '1 second' END,
    CASE WHEN kind <> 'REPLICATION' THEN (lpad(to_hex(n % {flows}), 32, '0'))::uuid END,
    CASE WHEN kind = 'REPLICATION' THEN (lpad('7', 32, '0'))::uuid END,
    CASE WHEN kind = 'SYNC' AND n % 60000 = 5 THEN 'orders' WHEN kind IN ('SYNC', 'REPLICATION') THEN 'customers' END,
    CASE WHEN kind = 'REPLICATION' THEN 'crm' END, CASE WHEN kind = 'REPLICATION' THEN 'e' || n END,
    CASE WHEN status = 'RUNNING' THEN (lpad('1', 32, '0'))::uuid END
FROM (
    SELECT n, now() - ({count} - n) * interval '0.3 seconds' AS at,
        CASE WHEN n % 100 = 99 THEN 'other' ELSE '{tenant}' END AS tenant,
        CASE WHEN n % 30000 = 5 THEN 'SYNC' WHEN n % 2 = 0 THEN 'REPLICATION' WHEN n % 10 = 1 THEN 'CONTAINER'
            ELSE 'HEARTBEAT' END AS kind,
        CASE WHEN n % 25000 = 9 THEN 'RUNNING' WHEN n > {count} - 2000 THEN 'PENDING' WHEN n % 10007 = 0 THEN 'FAILED'
            ELSE 'COMPLETED' END AS status,
        CASE WHEN n % 25000 = 9 THEN 'executing' WHEN n > {count} - 2000 THEN 'ready'
            WHEN n % 10007 = 0 THEN CASE WHEN n % 3 = 0 THEN 'timed_out' ELSE 'error' END ELSE 'succeeded' END AS reason
    FROM generate_series(1, {count}) AS n) AS each
"""


def fill(url: str, count: int) -> None:
    """So many jobs, three a second up to now, and fresh statistics."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(_FILL.format(count=count, tenant=TENANT, flows=FLOWS).encode())
        connection.execute("VACUUM (ANALYZE) jobq_jobs")
