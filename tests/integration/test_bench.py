"""The benchmarks run and say what they promise to say. Their figures are judged by people, not here."""

import pytest

from bench.figures import distribution, percentile, summary
from bench.stack import Servers, Stack
from tests import services


def test_figures_show_every_repetition_and_their_spread() -> None:
    assert summary([10.0, 20.0, 40.0]) == {"median": 20.0, "spread": [0.5, 2.0], "each": [10.0, 20.0, 40.0]}


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(value) for value in range(1, 101)]
    assert (percentile(values, 50), percentile(values, 99), percentile([7.0], 99)) == (50.0, 99.0, 7.0)
    assert distribution(values)["max"] == 100.0


@pytest.mark.bench
@pytest.mark.timeout(300)
def test_each_benchmark_runs_with_tiny_numbers(
    postgres_server: services.Postgres, redis_session: services.Redis
) -> None:
    from bench import fanout, latency, lateness, schedules, throughput, web, webhooks

    where = Servers(postgres_server, redis_session)
    rates = throughput.measure(where, jobs=500, peer_jobs=50, rounds=1)
    assert rates["jobs_per_second"]["jobq"]["median"] > 0
    assert latency.measure(where, jobs=3)["ms"]["jobq"]["count"] == 3
    late = lateness.measure(where, workflows=20, interval=1.0, slots=2, beat_interval=1.0)
    assert (late["jobq"]["until_the_row_ms"]["count"], late["jobq"]["not_started"]) == (40, 0)
    assert schedules.measure(where, workflows=50, interval=1.0, seconds=2.0)["slots_per_second"] == 50
    fanned = fanout.measure(where, children=200, peer_tasks=20, rounds=1, sizes=[100])
    assert fanned["inserted_per_s"]["median"] > 0
    assert fanned["replicated_per_s"]["median"] > 0
    asked = web.measure(where, seconds=0.3, clients=2, readers=3)
    assert asked["plain_2"]["per_second"] > 0
    assert asked["events"]["readers"] == 3
    told = webhooks.measure(where, events=50, rounds=1, latencies=2)
    assert told["deliveries_per_second"]["median"] > 0
    assert told["from the end of a job to its delivery, ms"]["count"] == 2


@pytest.mark.bench
def test_every_job_of_a_drain_ends_in_good_order(
    postgres_server: services.Postgres, redis_session: services.Redis
) -> None:
    with Stack(Servers(postgres_server, redis_session), workers=1) as stack:
        stack.drain(300)
        ends = stack.query("SELECT status, reason, attempt, count(*) FROM jobq_jobs GROUP BY 1, 2, 3")
    assert ends == [("COMPLETED", "succeeded", 1, 300)]
