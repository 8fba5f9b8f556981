"""Traces: the one door to OpenTelemetry, which is loaded only where traces are configured.

One trace leads from the enqueue through promotion and attempts to child jobs and webhooks. What carries it is the job's
``traceparent`` (W3C Trace Context): of the span that was active where the job was made, or as a request to the API
named it. It goes on to child jobs and to jobs that a job enqueues also where nothing here is traced. A job without one
(of a schedule's slot) begins a trace of its own with each attempt.

Services export where ``OTEL_*`` variables or ``JOBQ_TRACES`` say so (``configure``). An application that enqueues uses
whatever tracer provider it has set up itself. Everywhere else each function here is a look at a variable.

Spans hold no message of an error, no command, header or query: these may quote secrets.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from jobq.errors import Misconfigured

if TYPE_CHECKING:
    from uuid import UUID

    from jobq.models import Job, Outcome
    from jobq.net import Target
    from jobq.settings import Settings
    from jobq.store.claim import Claimed
    from jobq.store.record import Report

log = logging.getLogger(__name__)

SYSTEM = "jobq"
_W3C = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_SAMPLED = 1
_given: ContextVar[str | None] = ContextVar("jobq_traceparent", default=None)
_NOTHING: AbstractContextManager[Any] = nullcontext()
_tracer: Any = None
_for_targets = False


# --- set up ------------------------------------------------------------------------------------------------------------


@contextmanager
def configured(settings: Settings, service: str) -> Iterator[None]:
    """Trace this process from now on, if that is wanted; at the end, what is left is sent. ``service``: its name.

    Raises Misconfigured where ``JOBQ_TRACES`` asks for it and the packages are missing; where only ``OTEL_*`` do, which
    may be meant for others, it is said in the log.
    """
    if not _wanted(settings):
        yield
        return
    try:
        provider = _provider(settings, service)
    except ImportError as error:
        if settings.traces:
            raise Misconfigured(
                f"Traces cannot be sent: {error}.", code="extra_missing", hint="Run: pip install 'jobq[otel]'"
            ) from error
        log.warning("OTEL_* ask for traces, which need: pip install 'jobq[otel]'")
        yield
        return
    use(provider, for_targets=settings.trace_targets)
    try:
        yield
    finally:
        use(None)
        provider.shutdown()


def _wanted(settings: Settings) -> bool:
    if settings.traces == "off" or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "")
    named = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    return bool(settings.traces) or (exporter in {"", "otlp"} and bool(named or exporter))


def _provider(settings: Settings, service: str) -> Any:
    """Sampler, limits, batches and headers are the SDK's to read from ``OTEL_*``."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    known = {"service.namespace": settings.env_id}
    if not os.environ.get("OTEL_SERVICE_NAME"):
        known["service.name"] = service
    provider = TracerProvider(resource=Resource.create(known))
    endpoint = f"{settings.traces.rstrip('/')}/v1/traces" if settings.traces else None
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return provider


def use(provider: Any, *, for_targets: bool = False) -> None:
    """Trace this process with a tracer provider of one's own; None: do not. ``for_targets``: see ``outgoing``."""
    global _tracer, _for_targets  # noqa: PLW0603 - a process has one tracer
    _tracer = None if provider is None else provider.get_tracer("jobq")
    _for_targets = for_targets


def _active() -> Any:
    """The tracer: ours, else the application's, if it has set one up."""
    if _tracer is not None:
        return _tracer
    api = sys.modules.get("opentelemetry.trace")
    if api is None or not hasattr(api, "ProxyTracerProvider"):
        return None
    provider = api.get_tracer_provider()
    return None if isinstance(provider, api.ProxyTracerProvider) else provider.get_tracer("jobq")


def is_on() -> bool:
    """Is this process traced?"""
    return _active() is not None


# --- the context ---------------------------------------------------------------------------------------------------------


def traceparent() -> str | None:
    """Of what happens here: of the active span, else as ``continuing`` was told; None: it belongs to no trace."""
    api = sys.modules.get("opentelemetry.trace")
    if api is not None and hasattr(api, "get_current_span"):
        context = api.get_current_span().get_span_context()
        if context.is_valid:
            return _written(context)
    return _given.get()


def _written(context: Any) -> str:
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


def trace_id() -> str | None:
    """The 32 hex digits that a log line shows."""
    found = traceparent()
    return None if found is None else found[3:35]


@contextmanager
def continuing(header: str | None) -> Iterator[None]:
    """What happens within belongs to the trace that this ``traceparent`` names; what is none names none."""
    if header is None or not _W3C.fullmatch(header):
        yield
        return
    token = _given.set(header)
    try:
        yield
    finally:
        _given.reset(token)


def _parent(text: str | None) -> Any:
    """A context of OpenTelemetry: below the active span, else below the one that ``text`` names, else a new trace."""
    from opentelemetry import context, trace

    if trace.get_current_span().get_span_context().is_valid:
        return context.get_current()
    return _remote(text)


def _remote(text: str | None) -> Any:
    from opentelemetry import trace
    from opentelemetry.context import Context

    if text is None or not _W3C.fullmatch(text):
        return Context()
    span = trace.SpanContext(
        int(text[3:35], 16), int(text[36:52], 16), is_remote=True, trace_flags=trace.TraceFlags(int(text[53:], 16))
    )
    return trace.set_span_in_context(trace.NonRecordingSpan(span), Context())


@contextmanager
def _span(tracer: Any, name: str, kind: str, parent: Any, attributes: Mapping[str, Any]) -> Iterator[_Span]:
    """An active span. An error marks it by its class alone."""
    from opentelemetry import trace

    span = tracer.start_span(name, context=parent, kind=trace.SpanKind[kind], attributes=attributes)
    with trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
        try:
            yield _Span(span)
        except Exception as error:
            _Span(span).failed(type(error).__name__)
            raise


class _Span:
    """What callers may say of a span."""

    def __init__(self, span: Any) -> None:
        self.raw = span

    def say(self, **attributes: Any) -> None:
        """More attributes; ``__`` stands for a dot."""
        for name, value in attributes.items():
            if value is not None:
                self.raw.set_attribute(name.replace("__", "."), value)

    def failed(self, error_type: str) -> None:
        """It is marked as an error of this class."""
        from opentelemetry import trace

        self.raw.set_attribute("error.type", error_type)
        self.raw.set_status(trace.StatusCode.ERROR)


def _message(operation: str, type_: str, queue: str, **more: Any) -> dict[str, Any]:
    """The attributes of messaging spans."""
    known = {
        "messaging.system": SYSTEM, "messaging.operation.name": operation, "messaging.operation.type": type_,
        "messaging.destination.name": queue, **more,
    }  # fmt: skip
    return {name: value for name, value in known.items() if value is not None}


# --- the API -------------------------------------------------------------------------------------------------------------


@contextmanager
def serving(method: str, traceparent: str | None) -> Iterator[_Span | None]:
    """A request to us is answered, below the span that its header names; ``served`` says how.

    It names the route's pattern: the path itself may hold the token of a hook.
    """
    tracer = _active()
    if tracer is None:
        with continuing(traceparent):
            yield None
        return
    with _span(tracer, method, "SERVER", _parent(traceparent), {"http.request.method": method}) as span:
        yield span


def served(span: _Span | None, method: str, route: str | None, status: int) -> None:
    """It was: by this route (None: by none), with this status; from 500 on it is an error of ours."""
    if span is not None:
        span.say(http__route=route, http__response__status_code=status)
        if route is not None:
            span.raw.update_name(f"{method} {route}")
        if status >= 500:
            span.failed(str(status))


# --- a job's way -----------------------------------------------------------------------------------------------------------


def enqueuing(queue: str, number: int = 1) -> AbstractContextManager[_Span | None]:
    """Jobs are enqueued: those that are made within belong to this span."""
    tracer = _active()
    if tracer is None:
        return _NOTHING
    count = {"messaging.batch.message_count": number} if number != 1 else {}
    attributes = _message("enqueue", "send", queue, **count)
    return _span(tracer, f"enqueue {queue}", "PRODUCER", _parent(_given.get()), attributes)


def enqueued(span: _Span | None, job: Job) -> None:
    """This job was."""
    if span is not None:
        span.raw.update_name(f"enqueue {job.queue}")
        span.raw.set_attribute("messaging.destination.name", job.queue)
        span.say(messaging__message__id=str(job.id), jobq__job__kind=job.kind, jobq__tenant=job.tenant)


def attempt(job: Claimed, worker_id: UUID) -> AbstractContextManager[_Span | None]:
    """One attempt is executed; it is the parent of what happens within, on its task and its threads."""
    if job.traceparent is not None:
        _given.set(job.traceparent)  # to the end of its task
    tracer = _active()
    if tracer is None:
        return _NOTHING
    more = {
        "messaging.message.id": str(job.id), "messaging.client.id": str(worker_id), "jobq.job.kind": job.kind,
        "jobq.job.attempt": job.attempt, "jobq.job.trigger": str(job.trigger), "jobq.tenant": job.tenant,
        "jobq.workflow.id": job.workflow_id and str(job.workflow_id),
        "jobq.job.parent_id": job.parent_id and str(job.parent_id),
        "jobq.queue_wait_seconds": job.ready_at and max((job.started_at - job.ready_at).total_seconds(), 0.0),
    }  # fmt: skip
    attributes = _message("process", "process", job.queue, **more)
    return _span(tracer, f"process {job.queue}", "CONSUMER", _remote(job.traceparent), attributes)


def ended(span: _Span | None, outcome: Outcome) -> Any:
    """What an attempt came to; returns what ``recorded`` needs to know of it, None: nothing is traced."""
    if span is None:
        return None
    span.say(jobq__outcome__status=outcome.status.value, jobq__outcome__reason=outcome.reason.value)
    if outcome.status == "FAILED":
        span.failed(outcome.error_class or outcome.reason.value)
    context = span.raw.get_span_context()
    return context if context.trace_flags & _SAMPLED else None


def promoted(batches: Mapping[str, Sequence[UUID]], traces: Mapping[UUID, str], began_ns: int) -> None:
    """A round of promotion has ended: a span for each job whose trace is sampled."""
    tracer = _active()
    if tracer is None or not traces:
        return
    for queue, ids in batches.items():
        for job_id in ids:
            text = traces.get(job_id)
            if text is not None and int(text[53:], 16) & _SAMPLED:
                more = {"messaging.message.id": str(job_id), "messaging.batch.message_count": len(ids)}
                attributes = _message("promote", "send", queue, **more)
                _done(tracer, f"promote {queue}", "PRODUCER", _remote(text), attributes=attributes, began_ns=began_ns)


def recorded(reports: Sequence[Report], written: Collection[UUID], began_ns: int) -> None:
    """Outcomes are committed: a span for each whose attempt is sampled."""
    tracer = _active()
    if tracer is None:
        return
    for report in reports:
        if report.trace is not None and report.id in written:
            more = {"messaging.message.id": str(report.id), "messaging.batch.message_count": len(reports)}
            attributes = _message("record", "settle", report.queue, **more)
            _done(
                tracer,
                f"record {report.queue}",
                "CLIENT",
                _remote(_written(report.trace)),
                attributes=attributes,
                began_ns=began_ns,
            )


def _done(tracer: Any, name: str, kind: str, parent: Any, *, attributes: Mapping[str, Any], began_ns: int) -> None:
    from opentelemetry import trace

    span = tracer.start_span(
        name, context=parent, kind=trace.SpanKind[kind], attributes=attributes, start_time=began_ns
    )
    span.end(time.time_ns())


# --- within an attempt -----------------------------------------------------------------------------------------------------


def request(method: str, target: Target) -> AbstractContextManager[_Span | None]:
    """A request of ours. Its path and query may hold secrets: the span names the origin."""
    return _http(method, target.origin, target.host, target.port)


def _http(method: str, url: str, host: str, port: int) -> AbstractContextManager[_Span | None]:
    tracer = _active()
    if tracer is None:
        return _NOTHING
    attributes = {"http.request.method": method, "url.full": url, "server.address": host, "server.port": port}
    return _span(tracer, method, "CLIENT", _parent(_given.get()), attributes)


def answered(span: _Span | None, status: int) -> None:
    """The answer's status; from 400 on it is an error."""
    if span is not None:
        span.say(http__response__status_code=status)
        if status >= 400:
            span.failed(str(status))


def failed(span: _Span | None, error_type: str) -> None:
    """It failed, with this class of error."""
    if span is not None:
        span.failed(error_type)


def container(image: str, name: str) -> AbstractContextManager[_Span | None]:
    """A container runs, from its creation to its removal."""
    tracer = _active()
    if tracer is None:
        return _NOTHING
    attributes = {"container.image.name": image, "container.name": name}
    return _span(tracer, "container run", "INTERNAL", _parent(_given.get()), attributes)


def exited(span: _Span | None, outcome: Outcome) -> None:
    """How a container ended."""
    if span is not None:
        span.say(process__exit__code=outcome.exit_code)
        if outcome.status == "FAILED":
            span.failed(outcome.error_class or outcome.reason.value)


def outgoing() -> dict[str, str]:
    """The header for requests to targets: others learn of our traces only where ``JOBQ_TRACE_TARGETS`` allows it."""
    found = traceparent() if _for_targets else None
    return {} if found is None else {"traceparent": found}


@contextmanager
def delivering(job_traceparent: str | None, event: str, host: str, port: int) -> Iterator[tuple[dict[str, str], Any]]:
    """A webhook is delivered. Gives the headers to send with it, and a span for ``answered`` and ``failed``.

    Receivers are the operator's and tenants' own: they get the ``traceparent`` of the job, traced here or not.
    """
    with continuing(job_traceparent), _http("POST", f"//{host}:{port}", host, port) as span:
        if span is not None:
            span.say(jobq__event=event)
        found = traceparent()
        yield ({} if found is None else {"traceparent": found}), span
