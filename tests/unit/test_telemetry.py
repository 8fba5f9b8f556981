"""Traces with an exporter in memory: who is whose parent, what spans say, and what they never say."""

import asyncio
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler

from jobq import JobQ, Settings, telemetry
from jobq.embedded import Embedded
from jobq.errors import Misconfigured
from jobq.models import Job, Outcome
from jobq.plugins import Context, Kind
from jobq.specs import Spec
from jobq.states import Status, Trigger
from tests.services import wait_until
from tests.stores import Store

GIVEN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
CANARY = "canary-5e3d"


class Relay(Spec):
    """Enqueue another job, so many times deep, then end as ``then`` says."""

    deep: int = 0
    then: str = "succeed"


class RelayExecutor:
    """A job that enqueues jobs, as applications' own executors do."""

    kind = Kind("RELAY", Relay)

    async def open(self, settings: Settings) -> None:
        self._jobq = JobQ(settings=settings)

    async def close(self) -> None:
        self._jobq.close()

    async def execute(self, spec: Relay, ctx: Context) -> Outcome:
        if spec.deep:
            await asyncio.to_thread(self._jobq.enqueue, {"deep": spec.deep - 1}, kind="RELAY")
        if spec.then == "raise":
            raise ValueError(f"{CANARY} was refused")
        return Outcome.succeeded()


@dataclass
class Way:
    """Jobs that were executed once by an installation in this process, all of it traced; and the spans of all."""

    spans: list[ReadableSpan]
    jobs: dict[str, Job]
    order: trace.SpanContext
    """The application's own span, around a batch."""
    traceparents: list[str]
    """Of all MANUAL jobs."""

    def of(self, name: str) -> list[ReadableSpan]:
        """The spans of the trace of a job, in the order in which they began."""
        job_id = str(self.jobs[name].id)
        (traced,) = {span.context.trace_id for span in self.spans if said(span).get("messaging.message.id") == job_id}
        return [span for span in self.spans if span.context.trace_id == traced]


def in_memory(sampler: Sampler = ALWAYS_ON) -> InMemorySpanExporter:
    """This process is traced from now on, to a list."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=ParentBased(sampler))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    telemetry.use(provider)
    return exporter


def live(jobq: JobQ) -> int:
    return len(jobq.list(statuses=frozenset({Status.PENDING, Status.QUEUED, Status.RUNNING})).items)


@pytest.fixture(scope="module")
def way(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Way]:
    file = shutil.copy(sqlite_template, tmp_path_factory.mktemp("traced") / "jobq.sqlite3")
    settings = Settings(database_url=f"sqlite:///{file}", plugins=["tests.unit.test_telemetry:RelayExecutor"])
    exporter = in_memory()
    with JobQ(settings=settings) as jobq:
        retry = {"max_attempts": 3, "initial": 0.05}
        jobs = {
            "chain": jobq.enqueue({"deep": 2}, kind="RELAY"),
            "failing": jobq.enqueue({"then": "raise"}, kind="RELAY", retry={"max_attempts": 1}),
            "again": jobq.enqueue({"then": "raise"}, kind="RELAY", retry=retry),
        }
        with telemetry._tracer.start_as_current_span("order placed") as order:
            batch = jobq.enqueue_many([{"kind": "RELAY", "spec": {}}] * 3)
        jobs["batch"] = jobq.get(batch[0])
        jobq.create_workflow(name="tick", kind="RELAY", spec={}, interval=1)
        telemetry.use(None)
        exporter_of_unsampled = in_memory(ALWAYS_OFF)
        jobs["unsampled"] = jobq.enqueue({"deep": 1}, kind="RELAY")
        telemetry.use(None)
        with telemetry.continuing(GIVEN):
            jobs["given"] = jobq.enqueue({"deep": 1}, kind="RELAY")
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        telemetry.use(provider)
        with Embedded(settings, {"relay": 8}):
            done = {"trigger": Trigger.AUTOMATIC, "statuses": frozenset({Status.COMPLETED})}
            wait_until(lambda: len(jobq.list(**done).items) > 1, 60, what="slots")
            jobq.pause_workflow("tick")
            wait_until(lambda: live(jobq) == 0, 60, what="all jobs to end")
        telemetry.use(None)
        assert not exporter_of_unsampled.get_finished_spans()
        jobs |= {name: jobq.get(job.id) for name, job in jobs.items()}
        spans = sorted(exporter.get_finished_spans(), key=lambda span: span.start_time or 0)
        with jobq.database.read() as conn:
            rows = conn.exec_driver_sql("SELECT traceparent FROM jobq_jobs WHERE trigger = 'MANUAL'").scalars().all()
        yield Way(list(spans), jobs, order.get_span_context(), [str(row) for row in rows])


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    yield in_memory()
    telemetry.use(None)


def named(spans: list[ReadableSpan], name: str) -> list[ReadableSpan]:
    return [span for span in spans if span.name == name]


def parent_of(span: ReadableSpan) -> int | None:
    return span.parent.span_id if span.parent is not None else None


def said(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


# --- the way of a job ----------------------------------------------------------------------------------------------------


def test_one_trace_leads_from_the_enqueue_through_each_step_to_the_jobs_that_a_job_enqueues(way: Way) -> None:
    spans = way.of("chain")
    for name in ("enqueue relay", "promote relay", "process relay", "record relay"):
        assert len(named(spans, name)) == 3, [span.name for span in spans]
    by_id = {span.context.span_id: span for span in spans}
    assert [span.name for span in spans if span.parent is None] == ["enqueue relay"]
    for attempt in named(spans, "process relay"):
        parent = by_id[parent_of(attempt) or 0]
        assert parent.name == "enqueue relay"
        assert said(parent)["messaging.message.id"] == said(attempt)["messaging.message.id"], "of this very job"
    for name, above in (("promote relay", "enqueue relay"), ("record relay", "process relay")):
        assert {by_id[parent_of(span) or 0].name for span in named(spans, name)} == {above}
    inner = [span for span in named(spans, "enqueue relay") if span.parent is not None]
    assert {by_id[parent_of(span) or 0].name for span in inner} == {"process relay"}


def test_spans_follow_the_conventions_for_messaging(way: Way) -> None:
    operations = {
        "enqueue relay": ("enqueue", "send", trace.SpanKind.PRODUCER),
        "promote relay": ("promote", "send", trace.SpanKind.PRODUCER),
        "process relay": ("process", "process", trace.SpanKind.CONSUMER),
        "record relay": ("record", "settle", trace.SpanKind.CLIENT),
    }
    job_id = str(way.jobs["chain"].id)
    spans = [span for span in way.of("chain") if said(span).get("messaging.message.id") == job_id]
    for name, (operation, type_, kind) in operations.items():
        (span,) = named(spans, name)
        found = said(span)
        assert span.kind is kind
        assert (found["messaging.system"], found["messaging.destination.name"]) == ("jobq", "relay")
        assert (found["messaging.operation.name"], found["messaging.operation.type"]) == (operation, type_)
    (attempt,) = named(spans, "process relay")
    assert (said(attempt)["jobq.job.attempt"], said(attempt)["jobq.outcome.reason"]) == (1, "succeeded")
    assert said(attempt)["jobq.queue_wait_seconds"] >= 0


def test_a_failure_marks_its_span_by_its_class_and_quotes_nothing(way: Way) -> None:
    (attempt,) = named(way.of("failing"), "process relay")
    assert attempt.status.status_code is trace.StatusCode.ERROR
    assert said(attempt)["error.type"] == "ValueError"
    assert CANARY in str(way.jobs["failing"].message), "the job itself says it"
    assert CANARY not in "".join(span.to_json() for span in way.spans)


def test_each_attempt_is_a_span_of_the_same_trace(way: Way) -> None:
    assert [said(span)["jobq.job.attempt"] for span in named(way.of("again"), "process relay")] == [1, 2, 3]


def test_the_active_span_of_an_application_is_the_parent(way: Way) -> None:
    spans = [span for span in way.spans if span.context.trace_id == way.order.trace_id]
    (enqueue,) = named(spans, "enqueue relay")
    assert parent_of(enqueue) == way.order.span_id
    assert said(enqueue)["messaging.batch.message_count"] == 3
    attempts = named(spans, "process relay")
    assert [parent_of(span) for span in attempts] == [enqueue.context.span_id] * 3


def test_jobs_of_slots_begin_traces_of_their_own(way: Way) -> None:
    attempts = [span for span in way.spans if said(span).get("jobq.job.trigger") == "AUTOMATIC"]
    assert len(attempts) > 1
    assert all(span.parent is None for span in attempts)
    assert len({span.context.trace_id for span in attempts}) == len(attempts)


def test_what_is_not_sampled_makes_no_span_and_keeps_its_trace(way: Way) -> None:
    unsampled = [text for text in way.traceparents if not int(text[53:], 16) & 1]
    assert len(unsampled) == 2
    assert len({text[:35] for text in unsampled}) == 1
    assert int(unsampled[0][3:35], 16) not in {span.context.trace_id for span in way.spans}


def test_a_trace_that_others_began_is_gone_on_with(way: Way) -> None:
    spans = [span for span in way.spans if f"{span.context.trace_id:032x}" == GIVEN[3:35]]
    first, second = named(spans, "process relay")
    assert parent_of(first) == int(GIVEN[36:52], 16), "nobody traced the enqueue"
    (enqueue,) = named(spans, "enqueue relay")
    assert (parent_of(enqueue), parent_of(second)) == (first.context.span_id, enqueue.context.span_id)


# --- without traces --------------------------------------------------------------------------------------------------------


async def test_a_worker_that_is_not_traced_passes_on_what_the_job_has(sqlite_url: str) -> None:
    with JobQ(sqlite_url) as jobq:
        store = Store(jobq.database)
        with telemetry.continuing(GIVEN):
            store.enqueue_one()
        worker = store.worker()
        (job,) = store.claim(worker, store.promote()["noop"])
        assert job.traceparent == GIVEN

        async def execute() -> str | None:
            with telemetry.attempt(job, worker) as span:
                assert telemetry.ended(span, Outcome.succeeded()) is None
                return await asyncio.to_thread(lambda: store.row(store.enqueue_one()).traceparent)

        assert await asyncio.create_task(execute()) == GIVEN
        assert telemetry.traceparent() is None, "other tasks have nothing of it"


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "nonsense",
        GIVEN.upper(),
        GIVEN[:-1],
        "00-" + "0" * 32 + GIVEN[35:],
        "ff" + GIVEN[2:],
        GIVEN + "\n",
        GIVEN + "-x",
    ],
)
def test_what_is_no_traceparent_names_no_trace(header: str | None) -> None:
    with telemetry.continuing(header):
        assert telemetry.traceparent() is None
        assert telemetry.trace_id() is None


def test_a_job_outside_every_trace_has_none(sqlite_url: str) -> None:
    with JobQ(sqlite_url) as jobq:
        jobq.enqueue({"endpoint": "https://example.org/"}, kind="HEARTBEAT")
        with jobq.database.read() as conn:
            assert conn.exec_driver_sql("SELECT traceparent FROM jobq_jobs").scalar_one() is None


def test_where_nothing_asks_for_traces_opentelemetry_is_not_loaded(tmp_path: Path) -> None:
    code = (
        "import sys; from jobq import JobQ, Settings; from jobq.telemetry import configured\n"
        f"settings = Settings(database_url='sqlite:///{tmp_path}/jobq.db')\n"
        "import workers.runner, workers.recorder, scheduler.service\n"
        "with configured(settings, 'x'): pass\n"
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    clean = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parents[2])}
    assert subprocess.run([sys.executable, "-c", code], env=clean, check=False).returncode == 0


def test_traces_are_on_where_the_standard_variables_or_the_setting_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def wanted(traces: str = "", **env: str) -> bool:
        for name in ("SDK_DISABLED", "TRACES_EXPORTER", "EXPORTER_OTLP_ENDPOINT", "EXPORTER_OTLP_TRACES_ENDPOINT"):
            monkeypatch.delenv(f"OTEL_{name}", raising=False)
        for name, value in env.items():
            monkeypatch.setenv(f"OTEL_{name}", value)
        return telemetry._wanted(Settings(traces=traces))

    assert not wanted()
    assert wanted(EXPORTER_OTLP_ENDPOINT="http://collector:4318")
    assert wanted(EXPORTER_OTLP_TRACES_ENDPOINT="http://collector:4318/v1/traces")
    assert wanted(TRACES_EXPORTER="otlp")
    assert wanted("http://collector:4318")
    assert not wanted("off", EXPORTER_OTLP_ENDPOINT="http://collector:4318")
    assert not wanted(EXPORTER_OTLP_ENDPOINT="http://collector:4318", TRACES_EXPORTER="none")
    assert not wanted("http://collector:4318", SDK_DISABLED="true")


def test_traces_without_their_packages_are_refused_where_jobq_itself_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with (
        pytest.raises(Misconfigured, match=r"pip install 'jobq\[otel\]'"),
        telemetry.configured(Settings(traces="http://collector:4318"), "jobq-worker"),
    ):
        pass
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")
    with telemetry.configured(Settings(), "jobq-worker"):
        assert not telemetry.is_on()


# --- others ----------------------------------------------------------------------------------------------------------------


def test_a_webhook_carries_the_trace_of_its_job_and_is_a_span_of_it(exporter: InMemorySpanExporter) -> None:
    with telemetry.delivering(GIVEN, "job.completed", "hooks.example.org", 443) as (headers, span):
        telemetry.answered(span, 503)
    (found,) = exporter.get_finished_spans()
    assert headers["traceparent"][:35] == GIVEN[:35]
    assert headers["traceparent"][36:52] == f"{found.context.span_id:016x}"
    assert parent_of(found) == int(GIVEN[36:52], 16)
    assert (said(found)["jobq.event"], said(found)["http.response.status_code"]) == ("job.completed", 503)
    assert found.status.status_code is trace.StatusCode.ERROR


def test_a_webhook_carries_the_trace_of_its_job_also_where_nothing_is_traced() -> None:
    with telemetry.delivering(GIVEN, "job.completed", "hooks.example.org", 443) as (headers, span):
        telemetry.answered(span, 200)
        telemetry.failed(span, "timed_out")
    assert headers == {"traceparent": GIVEN}
    with telemetry.delivering(None, "job.completed", "hooks.example.org", 443) as (headers, _):
        assert headers == {}


def test_a_container_is_a_span_with_its_image_and_exit_code(exporter: InMemorySpanExporter) -> None:
    failed = Outcome.failed(f"exited with 3: {CANARY}", error_class="nonzero_exit", exit_code=3)
    with telemetry.container("alpine:3", "jobq-1-1") as span:
        telemetry.exited(span, failed)
    (found,) = exporter.get_finished_spans()
    attributes = {"container.image.name": "alpine:3", "container.name": "jobq-1-1", "process.exit.code": 3}
    assert attributes.items() <= said(found).items()
    assert said(found)["error.type"] == "nonzero_exit"
    assert CANARY not in found.to_json()


@pytest.mark.usefixtures("exporter")
def test_targets_learn_of_traces_only_where_the_operator_allows_it() -> None:
    with telemetry.continuing(GIVEN):
        assert telemetry.outgoing() == {}
        telemetry.use(TracerProvider(), for_targets=True)
        assert telemetry.outgoing() == {"traceparent": GIVEN}
    assert telemetry.outgoing() == {}
