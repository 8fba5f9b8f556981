"""What a process counts, and how it is written for Prometheus."""

import threading
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open_metrics

from jobq import metrics
from jobq.errors import Misconfigured
from jobq.exposition import Metrics, MetricsServer, parse_address
from tests.metrics import parse, scrape, total


@pytest.fixture(autouse=True)
def own_families() -> Iterator[None]:
    """Families that a test makes are nobody else's."""
    before = list(metrics.FAMILIES)
    yield
    metrics.FAMILIES[:] = before


def shown() -> str:
    return Metrics().shown()[0].decode()


def test_whatever_a_queue_is_called_the_text_can_be_read() -> None:
    counter = metrics.Counter("jobq_odd", "Odd names.", "queue")
    odd = ['say "hi"', "back\\slash", "two\nlines", "{curly=}", "ünï", ""]
    for queue in odd:
        counter.add(2, queue)
    found = parse(shown())
    assert [total(found, "jobq_odd_total", queue=queue) for queue in odd] == [2.0] * len(odd)


def test_a_histogram_counts_each_value_in_every_bound_that_it_is_within() -> None:
    histogram = metrics.Histogram("jobq_took_seconds", "Took.", "kind", bounds=(0.1, 1.0))
    histogram.observe_all([0.05, 0.1, 0.5, 7.0], "A")
    found = parse(shown())
    assert [total(found, "jobq_took_seconds_bucket", le=bound) for bound in ("0.1", "1.0", "+Inf")] == [2, 3, 4]
    assert total(found, "jobq_took_seconds_sum", kind="A") == pytest.approx(7.65)
    assert total(found, "jobq_took_seconds_count", kind="A") == 4


def test_the_names_of_the_contract_are_there_and_say_what_they_are_from_the_start() -> None:
    text = shown()
    for name in ("jobq_jobs", "jobq_leases_expired", "jobq_job_duration_seconds", "jobq_job_queue_wait_seconds"):
        assert f"# HELP {name}" in text
    assert total(parse(text), "process_cpu_seconds_total") > 0
    counters = [family for family in metrics.FAMILIES if isinstance(family, metrics.Counter) and not family.labels]
    assert len(counters) >= 8
    assert all(f"\n{family.name}_total " in text for family in counters), "a counter without labels begins at 0"


def test_who_asks_for_openmetrics_gets_it() -> None:
    metrics.JOBS.add(1, "NOOP", "noop", "COMPLETED", "succeeded")
    text, media_type = Metrics().shown("application/openmetrics-text; version=1.0.0")
    assert media_type.startswith("application/openmetrics-text")
    assert "jobq_jobs" in {family.name for family in parse_open_metrics(text.decode())}


def test_queues_without_end_are_counted_together() -> None:
    counter = metrics.Counter("jobq_many", "Many.", "kind", "queue", "status")
    for number in range(metrics.MOST_SERIES + 50):
        counter.add(1, "NOOP", f"queue {number}", "COMPLETED")
    counter.add(5, "NOOP", "queue 7", "COMPLETED")
    assert len(counter.totals()) == metrics.MOST_SERIES + 1
    assert counter.totals()["NOOP", metrics.OTHER, "COMPLETED"] == 50
    assert counter.totals()["NOOP", "queue 7", "COMPLETED"] == 6, "what is known goes on"


def test_threads_that_count_at_once_lose_nothing() -> None:
    counter = metrics.Counter("jobq_together", "Together.", "queue")
    histogram = metrics.Histogram("jobq_together_seconds", "Together.", "queue", bounds=(1.0,))

    def count() -> None:
        for _ in range(2000):
            counter.add(1, "a")
            histogram.observe(0.5, "a")

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter.totals() == {("a",): 16_000}
    assert histogram.series()["a",] == ([16_000, 0], 8_000.0)


# --- where it is served ------------------------------------------------------------------------------------------------


def test_a_server_of_metrics_serves_them_until_it_ends() -> None:
    metrics.LEASES_EXPIRED.add(0)
    with MetricsServer("0") as server:
        assert ("jobq_leases_expired_total", frozenset()) in scrape(server.port)
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=2)


def test_an_address_is_on_loopback_unless_it_names_another() -> None:
    assert parse_address("9100") == ("127.0.0.1", 9100)
    assert parse_address(":9100") == ("127.0.0.1", 9100)
    assert parse_address("localhost:9100") == ("127.0.0.1", 9100)
    assert parse_address("0.0.0.0:9100") == ("0.0.0.0", 9100)
    assert parse_address("[::1]:9100") == ("::1", 9100)


@pytest.mark.parametrize("text", ["", "here", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:70000", "example.org:9100"])
def test_what_is_no_address_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(Misconfigured, match=r"127\.0\.0\.1:9100"):
        parse_address(text)


def test_an_address_that_is_taken_is_refused_in_words() -> None:
    with MetricsServer("0") as server, pytest.raises(Misconfigured, match="--metrics"):
        MetricsServer(str(server.port))
