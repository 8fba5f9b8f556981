"""Metrics as Prometheus reads them: the one door to prometheus_client.

What a process counted of its own work (``jobq.metrics``), what the operating system says of it, and, from the API
alone, what the database holds (``jobq.store.gauges``).
"""

from __future__ import annotations

import ipaddress
import logging
import threading
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Self

from jobq import metrics
from jobq.errors import Misconfigured, Unavailable

try:
    from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, start_http_server
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
    from prometheus_client.exposition import choose_encoder
    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import Collector
except ImportError as error:
    raise Misconfigured(
        f"Metrics cannot be served: {error}.", code="extra_missing", hint="Run: pip install 'jobq[worker]'"
    ) from error

if TYPE_CHECKING:
    from jobq.settings import Settings
    from jobq.store.database import Database
    from jobq.store.gauges import Gauges

log = logging.getLogger(__name__)

FRESH = 5.0
"""Seconds for which a reading of the database is shown to whoever asks."""


class Counted(Collector):
    """What this process counted."""

    def collect(self) -> Iterable[Metric]:
        """See prometheus_client."""
        for family in metrics.FAMILIES:
            if isinstance(family, metrics.Counter):
                counter = CounterMetricFamily(family.name, family.text, labels=family.labels)
                for values, total in family.totals().items():
                    counter.add_metric(values, total)
                yield counter
            elif isinstance(family, metrics.Histogram):
                histogram = HistogramMetricFamily(family.name, family.text, labels=family.labels)
                for values, (counts, total) in family.series().items():
                    histogram.add_metric(values, list(_cumulative(family.bounds, counts)), total)
                yield histogram


def _cumulative(bounds: Iterable[float], counts: Iterable[int]) -> Iterable[tuple[str, float]]:
    below = 0
    for bound, count in zip([*map(str, bounds), "+Inf"], counts, strict=True):
        below += count
        yield bound, below


class Held(Collector):
    """What the database holds: read at most every ``FRESH`` seconds, however many ask. While it is away, only that."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._until = 0.0
        self._known: Gauges | None = None

    def _read(self) -> Gauges | None:
        from jobq.store.gauges import read_gauges

        with self._lock:
            if time.monotonic() >= self._until:
                try:
                    with self._database.read() as conn:
                        self._known = read_gauges(conn)
                except Unavailable as error:
                    log.warning("the database's metrics are missing: %s", error)
                    self._known = None
                self._until = time.monotonic() + FRESH
            return self._known

    def collect(self) -> Iterable[Metric]:
        """See prometheus_client."""
        known = self._read()
        yield _gauge("jobq_database_up", "1: the database answers.", (), {(): float(known is not None)})
        if known is None:
            return
        place = ("queue", "state")
        yield _gauge("jobq_queue_depth", "Jobs that are ready (estimated where they are many), queued or running.",
                     place, known.depth)  # fmt: skip
        yield _gauge("jobq_queue_oldest_seconds", "For how long the oldest job that is ready or queued has been ready.",
                     ("queue",), {(queue,): age for queue, age in known.oldest.items()})  # fmt: skip
        yield _gauge("jobq_worker_slots", "Worker slots of the live workers that take jobs.", place, known.slots)
        yield _gauge("jobq_workers", "Live workers.", ("state",), {(state,): n for state, n in known.workers.items()})
        yield _gauge("jobq_schedulers", "Schedulers that worked within the last 15 s.", (), {(): known.schedulers})
        yield _gauge("jobq_schedule_lag_seconds", "How late the slot is that has been due for the longest.", (),
                     {(): known.schedule_lag})  # fmt: skip
        yield _gauge("jobq_wake_lag_seconds", "How late the job is that has waited for its time for the longest.", (),
                     {(): known.wake_lag})  # fmt: skip


def _gauge(name: str, text: str, labels: tuple[str, ...], values: Any) -> Metric:
    found = GaugeMetricFamily(name, text, labels=labels)
    for place, value in sorted(values.items()):
        found.add_metric(place, value)
    return found


class Metrics:
    """All metrics of this process; with a database those of the installation, too."""

    def __init__(self, database: Database | None = None) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        if database is not None:
            self.registry.register(Held(database))  # it describes nothing, so that nothing is read yet
        self.registry.register(Counted())  # behind it: an error of that reading is counted in this very scrape

    def shown(self, accept: str = "") -> tuple[bytes, str]:
        """The text, and its media type: OpenMetrics where the reader accepts it."""
        encode, media_type = choose_encoder(accept)
        text: bytes = encode(self.registry)
        return text, media_type


class MetricsServer(AbstractContextManager["MetricsServer"]):
    """``/metrics`` of a worker or scheduler, on a thread of its own. Nobody is asked who they are."""

    def __init__(self, address: str) -> None:
        host, port = parse_address(address)
        try:
            self._server, self._thread = start_http_server(port, host, Metrics().registry)
        except OSError as error:
            raise Misconfigured(
                f"Metrics cannot be served on {address}: {error.strerror or error}.", code="bad_address",
                hint="Name another address with --metrics or JOBQ_METRICS.",
            ) from None  # fmt: skip
        self.port: int = self._server.server_port
        log.info("metrics are served on http://%s:%d/metrics", f"[{host}]" if ":" in host else host, self.port)
        if not ipaddress.ip_address(host).is_loopback:
            log.warning("whoever reaches %s:%d can read them: let only Prometheus in", host, self.port)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(2.0)


def parse_address(text: str) -> tuple[str, int]:
    """``127.0.0.1:9100``, ``[::1]:9100``, or a port alone: on loopback. Raises Misconfigured."""
    host, _, port = text.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    try:
        ipaddress.ip_address(host := "127.0.0.1" if host == "localhost" else host)
        if (number := int(port)) not in range(65536):
            raise ValueError
    except ValueError:
        raise Misconfigured(
            f"{text[:100]!r} is no address for metrics.", code="bad_setting", hint="Write 127.0.0.1:9100"
        ) from None
    return host, number


def served(settings: Settings) -> AbstractContextManager[Any]:
    """The metrics of this process, where the settings name an address for them; from now on."""
    return MetricsServer(settings.metrics) if settings.metrics else nullcontext()
