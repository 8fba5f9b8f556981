"""The tables. ``jobq_jobs`` is narrow: what promote, claim and record touch; all else of a job lies beside it.

No row is written per ordinary transition: the instants on the job and one row per ended attempt tell its story.
Each index is named after the query that it serves. None leads on ``status``: a job would pay for it four times.
The predicates of the partial indexes name columns other than ``status``, so that a planner with stale statistics
cannot mistake one of them for a way to find a job by its id.
That a finished job never changes its status is enforced by a trigger as well (``migrations``, version 0001).
There are no foreign keys between these tables: on the hot path they cost a fifth of an insert, and only
``jobq.store.prune`` deletes jobs, with all that belongs to them.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Column, Index, Table

from jobq.states import EDGES
from jobq.store.sql import Instant, Json

metadata = sa.MetaData()

HELD = "reason IN ('scheduled', 'retrying', 'requeued', 'blocked', 'paused')"
"""Jobs that wait for something else than room, and paused SYNCs."""
_TERMINAL = ", ".join(f"'{status}'" for status in sorted(status for status, edges in EDGES.items() if not edges))

_ODD = "finished_at IS NOT NULL AND reason <> 'succeeded'"
"""Ends that are looked for among many that went well, which pay nothing for these indexes."""


def _index(name: str, *columns: object, where: str | None = None, unique: bool = False) -> Index:
    predicate = sa.text(where) if where else None
    return Index(name, *columns, unique=unique, postgresql_where=predicate, sqlite_where=predicate)  # type: ignore[arg-type]


jobs = Table(
    "jobq_jobs",
    metadata,
    Column("id", sa.Uuid, primary_key=True),
    Column("tenant", sa.Text, nullable=False),
    Column("kind", sa.Text, nullable=False),
    Column("name", sa.Text, nullable=False),
    Column("queue", sa.Text, nullable=False),
    # Jobs that share a limit of their own (a workflow's concurrency) wait in a lane of their own, so that a full
    # lane is passed over in one step, however long it is. Empty: no such limit.
    Column("lane", sa.Text, nullable=False, server_default=""),
    Column("status", sa.Text, nullable=False),
    Column("reason", sa.Text, nullable=False),
    Column("desired", sa.Text, nullable=False, server_default="RUN"),
    Column("cancel_reason", sa.Text),  # with desired = CANCEL: the reason that the end will have
    Column("trigger", sa.Text, nullable=False),
    Column("priority", sa.SmallInteger, nullable=False),
    Column("attempt", sa.Integer, nullable=False, server_default="0"),
    Column("failures", sa.Integer, nullable=False, server_default="0"),
    Column("max_attempts", sa.Integer, nullable=False),
    Column("requeues", sa.Integer, nullable=False, server_default="0"),
    Column("timeout", sa.Float),
    Column("stale_after", sa.Float),
    Column("created_at", Instant, nullable=False),
    Column("scheduled_at", Instant),
    Column("due_at", Instant),  # PENDING and waking by itself: when
    Column("ready_at", Instant),
    Column("queued_at", Instant),
    Column("started_at", Instant),
    Column("finished_at", Instant),
    Column("next_send_at", Instant),  # QUEUED, and only then: when its hint is sent again
    Column("sends", sa.SmallInteger, nullable=False, server_default="0"),
    Column("worker_id", sa.Uuid),  # RUNNING under a worker, and only then
    Column("host", sa.Text),  # RUNNING work that can be recovered there
    Column("workflow_id", sa.Uuid),
    Column("generation", sa.Integer),
    Column("slot_at", Instant),
    Column("parent_id", sa.Uuid),
    Column("retry_of", sa.Uuid),
    Column("duplicate_of", sa.Uuid),
    Column("dedupe_key", sa.Text),
    Column("domain", sa.Text),  # SYNC and its children: what is synced, and which end of it the job works for
    Column("domain_end", sa.Text),  # "source" or "target"
    Column("target", sa.Text),  # a child: where to, and which entity; its spec is its parent's
    Column("entity_key", sa.Text),
    Column("message", sa.Text),
    Column("error_class", sa.Text),
    Column("traceparent", sa.Text),  # the trace that it belongs to, if any: see jobq.telemetry
    # NULL: no webhook listens, and no transition looks any further. Else how many events of the job were numbered.
    Column("hooked", sa.Integer),
    # Live jobs by tenant; ended ones, which never change, by all that they are told apart by: there are few sorts, and
    # a listing steps from one to the next (jobq.store.listing). Together they cost what one index of all jobs would.
    _index("jobq_jobs_list_live", "tenant", "id", where="finished_at IS NULL"),
    _index(
        "jobq_jobs_list_ended", "tenant", "queue", "kind", "trigger", "reason", "id", where="finished_at IS NOT NULL",
    ),
    _index("jobq_jobs_list_by_workflow", "workflow_id", "id", where="workflow_id IS NOT NULL"),
    _index("jobq_jobs_list_by_parent", "parent_id", "id", where="parent_id IS NOT NULL"),
    _index(
        "jobq_jobs_odd_of_workflow", "workflow_id", "reason", "id", where=f"workflow_id IS NOT NULL AND {_ODD}",
    ),
    _index("jobq_jobs_odd_of_parent", "parent_id", "reason", "id", where=f"parent_id IS NOT NULL AND {_ODD}"),
    _index("jobq_jobs_list_by_domain", "tenant", "domain", "id", where="domain IS NOT NULL"),
    _index("jobq_jobs_list_by_schedule", "tenant", "scheduled_at", where="scheduled_at IS NOT NULL"),
    _index("jobq_jobs_finished", "finished_at", where="finished_at IS NOT NULL"),
    _index(
        "jobq_jobs_promote", "queue", "tenant", "lane", sa.text("priority DESC"), "ready_at", "id",
        where="reason = 'ready'",
    ),
    _index("jobq_jobs_held_of_tenant", "tenant", where=HELD),
    _index("jobq_jobs_wake", "due_at", where="due_at IS NOT NULL"),
    _index("jobq_jobs_claim_and_resend", "queue", "next_send_at", where="next_send_at IS NOT NULL"),
    _index("jobq_jobs_of_worker", "worker_id", where="worker_id IS NOT NULL"),
    _index("jobq_jobs_slot", "workflow_id", "slot_at", where="slot_at IS NOT NULL", unique=True),
    _index(
        "jobq_jobs_live_of_workflow", "workflow_id", where="workflow_id IS NOT NULL AND finished_at IS NULL",
    ),
    _index("jobq_jobs_blocked_of_workflow", "workflow_id", "slot_at", where="reason = 'blocked'"),
    _index(
        "jobq_jobs_dedupe", "tenant", "dedupe_key", where="dedupe_key IS NOT NULL AND finished_at IS NULL",
        unique=True,
    ),
    _index("jobq_jobs_child", "parent_id", "target", "entity_key", where="entity_key IS NOT NULL", unique=True),
    _index("jobq_jobs_stood_in_for", "parent_id", "id", where="duplicate_of IS NOT NULL AND parent_id IS NOT NULL"),
    _index(
        "jobq_jobs_live_of_entity", "tenant", "domain", "target", "entity_key",
        where="entity_key IS NOT NULL AND finished_at IS NULL",
    ),
    sa.CheckConstraint(f"(finished_at IS NOT NULL) = (status IN ({_TERMINAL}))", name="jobq_jobs_finished"),
    sa.CheckConstraint("(next_send_at IS NOT NULL) = (status = 'QUEUED')", name="jobq_jobs_queued"),
    # Rows of the hot path change their indexed columns at each step: room on the page keeps the table dense.
    postgresql_with={"fillfactor": 80, "autovacuum_vacuum_scale_factor": 0.02, "autovacuum_analyze_scale_factor": 0.02},
)  # fmt: skip

job_data = Table(
    "jobq_job_data",
    metadata,
    Column("job_id", sa.Uuid, primary_key=True),
    Column("spec", Json, nullable=False),
    Column("state", Json),
    Column("retry", Json),
    Column("checkpoint", Json),
    Column("started_by", sa.Text),  # of MANUAL jobs: who made it, unless that is an application that says no name
)

attempts = Table(
    "jobq_attempts",
    metadata,
    Column("job_id", sa.Uuid, primary_key=True),
    Column("attempt", sa.Integer, primary_key=True),
    Column("worker_id", sa.Uuid),
    Column("outcome", sa.Text, nullable=False),
    Column("reason", sa.Text, nullable=False),
    Column("charged", sa.Boolean, nullable=False),
    Column("started_at", Instant, nullable=False),
    Column("finished_at", Instant, nullable=False),
    Column("message", sa.Text),
    Column("error_class", sa.Text),
    Column("exit_code", sa.Integer),
    Column("result", Json),
    Column("steps", Json),
    Column("usage", Json),
)

job_logs = Table(
    "jobq_job_logs",
    metadata,
    Column("job_id", sa.Uuid, primary_key=True),
    Column("first_line", sa.BigInteger, primary_key=True),
    Column("attempt", sa.Integer, nullable=False),
    Column("lines", sa.Integer, nullable=False),
    Column("bytes", sa.Integer, nullable=False),
    Column("body", Json, nullable=False),  # [[microseconds since 1970, stream, text], …]
)

artifacts = Table(
    "jobq_artifacts",
    metadata,
    Column("job_id", sa.Uuid, primary_key=True),
    Column("name", sa.Text, primary_key=True),
    Column("attempt", sa.Integer, nullable=False),
    Column("size", sa.Integer, nullable=False),
    Column("sha256", sa.Text, nullable=False),
    Column("content", sa.LargeBinary, nullable=False),
)

events = Table(
    "jobq_events",
    metadata,
    Column("id", sa.Uuid, primary_key=True),
    Column("at", Instant, nullable=False),
    Column("tenant", sa.Text, nullable=False),
    Column("subject", sa.Text, nullable=False),  # "job:<id>", "workflow:<id>", "queue:<name>", "tenant:<name>"
    Column("action", sa.Text, nullable=False),
    Column("actor", sa.Text, nullable=False),
    Column("key_id", sa.Uuid),  # the API key that was used
    Column("detail", Json),
    _index("jobq_events_of_subject", "subject", "id"),
    _index("jobq_events_of_tenant", "tenant", "id"),
    _index("jobq_events_prune", "at"),
)

requests = Table(
    "jobq_requests",
    metadata,
    Column("tenant", sa.Text, primary_key=True),
    Column("key", sa.Text, primary_key=True),
    Column("body_hash", sa.Text, nullable=False),
    Column("job_id", sa.Uuid, nullable=False),
    Column("created_at", Instant, nullable=False),
    _index("jobq_requests_prune", "created_at"),
    _index("jobq_requests_of_job", "job_id"),
)

workflows = Table(
    "jobq_workflows",
    metadata,
    Column("id", sa.Uuid, primary_key=True),
    Column("tenant", sa.Text, nullable=False),
    Column("name", sa.Text, nullable=False),
    Column("kind", sa.Text, nullable=False),
    Column("spec", Json, nullable=False),
    Column("queue", sa.Text, nullable=False),
    Column("priority", sa.SmallInteger, nullable=False),
    Column("concurrency", sa.Integer),
    Column("interval_us", sa.BigInteger),
    Column("cron", sa.Text),
    Column("timezone", sa.Text),
    Column("start_at", Instant),
    Column("anchor_at", Instant, nullable=False),
    Column("next_fire_at", Instant),  # ACTIVE with a schedule, and only then
    Column("misfire", sa.Text, nullable=False),
    Column("misfire_grace", sa.Float),
    Column("max_catch_up", sa.Integer, nullable=False),
    Column("overlap", sa.Text, nullable=False),
    Column("timeout", sa.Float),
    Column("retry", Json),
    Column("max_attempts", sa.Integer, nullable=False),
    Column("stale_after", sa.Float),
    Column("retention", sa.Float),
    Column("max_consecutive_job_failures_allowed", sa.Integer, nullable=False),
    Column("consecutive_failures", sa.Integer, nullable=False, server_default="0"),
    Column("status", sa.Text, nullable=False),
    Column("generation", sa.Integer, nullable=False, server_default="1"),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
    Column("message", sa.Text),
    _index("jobq_workflows_name", "tenant", "name", unique=True),
    _index("jobq_workflows_changed", "updated_at"),
    _index("jobq_workflows_due", "next_fire_at", where="next_fire_at IS NOT NULL"),
    sa.CheckConstraint("next_fire_at IS NULL OR status = 'ACTIVE'", name="jobq_workflows_firing"),
)

workers = Table(
    "jobq_workers",
    metadata,
    Column("id", sa.Uuid, primary_key=True),
    Column("name", sa.Text, nullable=False),
    Column("hostname", sa.Text, nullable=False),
    Column("pid", sa.Integer, nullable=False),
    Column("boot_id", sa.Text, nullable=False),  # with pid_namespace and process_start: a process, for certain
    Column("pid_namespace", sa.Text, nullable=False),
    Column("process_start", sa.Text, nullable=False),
    Column("host", sa.Text),
    Column("queues", Json, nullable=False),  # {queue: worker slots}
    Column("version", sa.Text, nullable=False),
    Column("started_at", Instant, nullable=False),
    Column("renewed_at", Instant, nullable=False),
    Column("lease_until", Instant, nullable=False),
    Column("draining_at", Instant),
    Column("dead_at", Instant),
    Column("stopped_at", Instant),
    _index("jobq_workers_live", "lease_until", where="dead_at IS NULL"),
)

queues = Table(
    "jobq_queues",
    metadata,
    Column("name", sa.Text, primary_key=True),
    Column("paused_at", Instant),
    Column("limit", sa.Integer),
)

tenants = Table(
    "jobq_tenants",
    metadata,
    Column("name", sa.Text, primary_key=True),
    Column("weight", sa.Float, nullable=False, server_default="1"),
    Column("limit", sa.Integer),
    Column("quota", Json),  # what differs from the installation's default; null in it: no limit
)

installation = Table("jobq_installation", metadata, Column("id", sa.Uuid, primary_key=True))

secrets = Table(
    "jobq_secrets",
    metadata,
    Column("tenant", sa.Text, primary_key=True),
    Column("name", sa.Text, primary_key=True),
    Column("sealed", sa.Text, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
)

keys = Table(
    "jobq_keys",
    metadata,
    Column("id", sa.Uuid, primary_key=True),
    Column("tenant", sa.Text),  # NULL: an operator's
    Column("name", sa.Text, nullable=False),
    Column("start", sa.Text, nullable=False),
    Column("digest", sa.Text, nullable=False),
    Column("scope", sa.Text, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("created_by", sa.Text, nullable=False),
    Column("expires_at", Instant),
    Column("revoked_at", Instant),
    Column("last_used_at", Instant),
    _index("jobq_keys_digest", "digest", unique=True),
)

hooks = Table(
    "jobq_hooks",
    metadata,
    # Inbound triggers: who has the token may start jobs of the workflow.
    Column("id", sa.Uuid, primary_key=True),
    Column("tenant", sa.Text, nullable=False),
    Column("workflow_id", sa.Uuid, nullable=False),
    Column("name", sa.Text, nullable=False),
    Column("start", sa.Text, nullable=False),
    Column("digest", sa.Text, nullable=False),
    Column("signature", sa.Text, nullable=False),
    Column("sealed", sa.Text),  # the secret of its signatures
    Column("replay_window", sa.Float),
    Column("rate_limit", sa.Integer),
    Column("busy_until", Instant),  # the bucket of its rate: full if that is past, empty a minute before it
    Column("envelope", sa.Boolean, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("created_by", sa.Text, nullable=False),
    Column("revoked_at", Instant),
    Column("last_used_at", Instant),
    _index("jobq_hooks_digest", "digest", unique=True),
    _index("jobq_hooks_of_workflow", "workflow_id", "id"),
)

schedulers = Table(
    "jobq_schedulers",
    metadata,
    Column("id", sa.Uuid, primary_key=True),
    Column("name", sa.Text, nullable=False),
    Column("version", sa.Text, nullable=False),
    Column("started_at", Instant, nullable=False),
    Column("renewed_at", Instant, nullable=False),
)

# --- analytics -----------------------------------------------------------------------------------------------

rollups = Table(
    "jobq_rollups",
    metadata,
    # What ended in an hour, or in a day (UTC): see jobq.store.rollup.
    Column("tenant", sa.Text, primary_key=True),
    Column("width", sa.Integer, primary_key=True),  # of the period, in seconds
    Column("workflow_id", sa.Uuid, primary_key=True),  # or rollup.ALL, or rollup.NONE
    Column("start", Instant, primary_key=True),
    Column("kind", sa.Text, primary_key=True),
    Column("queue", sa.Text, primary_key=True),
    Column("jobs", sa.BigInteger, nullable=False),
    Column("ends", Json, nullable=False),  # {reason: jobs}
    Column("run", sa.Text, nullable=False),  # jobq.histogram.Histogram, as the next
    Column("wait", sa.Text, nullable=False),
    Column("run_seconds", sa.Float, nullable=False),
    Column("wait_seconds", sa.Float, nullable=False),
    Column("retries", sa.BigInteger, nullable=False),
    Column("log_bytes", sa.BigInteger, nullable=False),
    _index("jobq_rollups_of_workflows", "tenant", "width", "start", "workflow_id", "jobs"),
    _index("jobq_rollups_prune", "start"),
)

rolled = Table(
    "jobq_rolled",
    metadata,
    # One row: jobs that ended until then are in the rollups, later ones are not.
    Column("id", sa.SmallInteger, primary_key=True),
    Column("until", Instant, nullable=False),
)

# --- jobs that wait for jobs ---------------------------------------------------------------------------------

after = Table(
    "jobq_after",
    metadata,
    # One row for each job that a PENDING·blocked job still waits for; the end of that job deletes it.
    Column("upstream_id", sa.Uuid, primary_key=True),
    Column("job_id", sa.Uuid, primary_key=True),
    Column("any_end", sa.Boolean, nullable=False),  # True: only the order matters, not how the upstream ends
    _index("jobq_after_of_job", "job_id"),
)

# --- webhooks --------------------------------------------------------------------------------------------------

webhook_endpoints = Table(
    "jobq_webhook_endpoints",
    metadata,
    Column("id", sa.Uuid, primary_key=True),
    Column("tenant", sa.Text, nullable=False),
    Column("name", sa.Text, nullable=False),
    Column("url", sa.Text, nullable=False),
    Column("patterns", Json, nullable=False),  # as they were given: ["job.*"]
    Column("types", sa.Text, nullable=False),  # what they mean: " job.created job.queued … ", with a space around each
    Column("children", sa.Boolean, nullable=False),
    Column("hub_signature", Json, nullable=False),  # which X-Hub-Signature headers: ["sha256", "sha1"]
    Column("secrets", Json, nullable=False),  # the newest first: [{"sealed": …, "until": an instant or null}, …]
    Column("enabled", sa.Boolean, nullable=False),
    Column("listens", sa.Boolean, nullable=False),  # enabled, and not only for jobs that name it
    Column("disabled_reason", sa.Text),
    Column("failing_since", Instant),  # the first failure behind the last success
    Column("succeeded_at", Instant),
    Column("hooking", sa.Boolean, nullable=False),  # jobs that were live when it came are still being hooked,
    Column("hooked_from", sa.Uuid),  # and have been, down to this one
    Column("hooked_behind", sa.BigInteger),  # see jobq.store.webhook_live
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
    _index("jobq_webhook_endpoints_name", "tenant", "name", unique=True),
    _index("jobq_webhook_endpoints_hooking", "id", where="hooking"),
)

webhook_overrides = Table(
    "jobq_webhook_overrides",
    metadata,
    # The jobs that name an endpoint of their own.
    Column("job_id", sa.Uuid, primary_key=True),
    Column("endpoint_id", sa.Uuid, nullable=False),
    Column("types", sa.Text),  # as those of an endpoint; NULL: the endpoint's own, all if it has none
)

webhook_events = Table(
    "jobq_webhook_events",
    metadata,
    # What happened to a job (or a workflow), as it was then. Nothing else is ever written here than INSERT and DELETE.
    Column("subject_id", sa.Uuid, primary_key=True),
    Column("number", sa.Integer, primary_key=True),  # of a workflow's end: its generation
    Column("tenant", sa.Text, nullable=False),
    Column("type", sa.Text, nullable=False),
    Column("at", Instant, nullable=False),
    Column("child", sa.Boolean, nullable=False),
    Column("attempt", sa.Integer, nullable=False),
    Column("status", sa.Text, nullable=False),
    Column("reason", sa.Text, nullable=False),
    Column("message", sa.Text),
    Column("error_class", sa.Text),
)

webhook_deliveries = Table(
    "jobq_webhook_deliveries",
    metadata,
    Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("endpoint_id", sa.Uuid, nullable=False),
    Column("subject_id", sa.Uuid, nullable=False),
    Column("number", sa.Integer, nullable=False),
    Column("type", sa.Text, nullable=False),
    Column("state", sa.Text, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("next_at", Instant),  # PENDING, and only then: when it is sent; while it is sent, when it is sent again
    Column("sender", sa.Uuid),  # who sends it: another round of the same sender has another id
    Column("tries", sa.Integer, nullable=False),  # since it was made, and of the present round, which a replay begins
    Column("round", sa.Integer, nullable=False),
    Column("tried_at", Instant),
    Column("ended_at", Instant),
    Column("status_code", sa.Integer),  # of the last try, as all that follows
    Column("error_class", sa.Text),
    Column("message", sa.Text),
    Column("answer", sa.Text),
    Column("seconds", sa.Float),
    _index("jobq_webhook_deliveries_due", "endpoint_id", "next_at", where="next_at IS NOT NULL"),
    _index("jobq_webhook_deliveries_list", "endpoint_id", "id"),
    _index("jobq_webhook_deliveries_of_subject", "subject_id"),
)

# --- sync and replication ------------------------------------------------------------------------------------

connectors = Table(
    "jobq_connectors",
    metadata,
    Column("tenant", sa.Text, primary_key=True),
    Column("name", sa.Text, primary_key=True),
    Column("type", sa.Text, nullable=False),
    Column("config", Json, nullable=False),
    Column("secrets", Json, nullable=False),  # the connector's name of a secret -> the tenant's name of it
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
)

entities = Table(
    "jobq_entities",
    metadata,
    Column("tenant", sa.Text, primary_key=True),
    Column("domain", sa.Text, primary_key=True),
    Column("key", sa.Text, primary_key=True),
    Column("version", sa.Integer, nullable=False),  # grows with each change of the content
    Column("hash", sa.Text, nullable=False),
    Column("body", Json, nullable=False),
    Column("job_id", sa.Uuid, nullable=False),  # the SYNC that wrote this version
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
)

watermarks = Table(
    "jobq_watermarks",
    metadata,
    # What each target has of each entity. Moves forward only, in the transaction that records the child.
    Column("tenant", sa.Text, primary_key=True),
    Column("domain", sa.Text, primary_key=True),
    Column("key", sa.Text, primary_key=True),  # before the target: each is looked up by its entity
    Column("target", sa.Text, primary_key=True),
    Column("version", sa.Integer, nullable=False),
    Column("rules", sa.Text, nullable=False),  # fingerprint of the target's mapping and conditions
    Column("skipped", sa.Boolean, nullable=False),  # the target's conditions kept this version from it
    Column("external_id", sa.Text),
    Column("job_id", sa.Uuid, nullable=False),
    Column("written_at", Instant, nullable=False),
)

sync_states = Table(
    "jobq_sync_states",
    metadata,
    Column("tenant", sa.Text, primary_key=True),
    Column("domain", sa.Text, primary_key=True),
    Column("state", Json),
    Column("job_id", sa.Uuid, nullable=False),
    Column("updated_at", Instant, nullable=False),
)

targets = Table(
    "jobq_targets",
    metadata,
    # A target that asked for patience: promotion holds its jobs until then, and lets a few through afterwards.
    Column("tenant", sa.Text, primary_key=True),
    Column("name", sa.Text, primary_key=True),
    Column("not_before", Instant, nullable=False),
    Column("allowed", sa.Integer, nullable=False),  # from then on: how many of its jobs may be in flight
    Column("message", sa.Text),
)

fanouts = Table(
    "jobq_fanouts",
    metadata,
    # A SYNC beyond its row in jobq_jobs: how far it has read. Its worker writes it, batch by batch.
    Column("job_id", sa.Uuid, primary_key=True),
    Column("tenant", sa.Text, nullable=False),
    Column("domain", sa.Text, nullable=False),
    Column("reading", sa.Boolean, nullable=False),  # False: there will be no more children
    Column("cursor", Json),
    Column("state", Json),  # of the source, stored as the domain's when all is read
    Column("read", sa.BigInteger, nullable=False),
    Column("filtered", sa.BigInteger, nullable=False),
    Column("new", sa.BigInteger, nullable=False),
    Column("updated", sa.BigInteger, nullable=False),
    Column("existing", sa.BigInteger, nullable=False),
    Column("invalid", sa.BigInteger, nullable=False),
    Column("verdict", Json),  # the end that the SYNC itself came to, kept until its children have ended
    Column("settled_at", Instant),
    _index("jobq_fanouts_unsettled", "job_id", where="settled_at IS NULL"),
)

fanout_targets = Table(
    "jobq_fanout_targets",
    metadata,
    # Children per target: the worker adds to total, the scheduler folds the ends.
    Column("parent_id", sa.Uuid, primary_key=True),
    Column("target", sa.Text, primary_key=True),
    Column("concurrency", sa.Integer),
    Column("total", sa.BigInteger, nullable=False),
    Column("completed", sa.BigInteger, nullable=False),
    Column("skipped", sa.BigInteger, nullable=False),
    Column("failed", sa.BigInteger, nullable=False),
    Column("canceled", sa.BigInteger, nullable=False),
    Column("duplicate", sa.BigInteger, nullable=False),  # of the canceled: another child brings the same entity
    Column("success", sa.BigInteger, nullable=False),  # written there for the first time
    Column("updated", sa.BigInteger, nullable=False),
    Column("existing", sa.BigInteger, nullable=False),  # the target had it as it is
)

fanout_deltas = Table(
    "jobq_fanout_deltas",
    metadata,
    # Ends of children that are not folded yet: only inserted and deleted, so that recording workers never wait here.
    Column("id", sa.Uuid, primary_key=True),
    Column("parent_id", sa.Uuid, nullable=False),
    Column("target", sa.Text, nullable=False),
    Column("completed", sa.Integer, nullable=False),
    Column("skipped", sa.Integer, nullable=False),
    Column("failed", sa.Integer, nullable=False),
    Column("canceled", sa.Integer, nullable=False),
    Column("duplicate", sa.Integer, nullable=False),
    Column("success", sa.Integer, nullable=False),
    Column("updated", sa.Integer, nullable=False),
    Column("existing", sa.Integer, nullable=False),
)

sync_problems = Table(
    "jobq_sync_problems",
    metadata,
    # Entities that failed before they had children: not readable, not mappable.
    Column("job_id", sa.Uuid, primary_key=True),
    Column("number", sa.BigInteger, primary_key=True),
    Column("entity_key", sa.Text, nullable=False),  # or where the record is, if it has no key
    Column("error_class", sa.Text, nullable=False),
    Column("message", sa.Text, nullable=False),
)
