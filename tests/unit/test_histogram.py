"""Histograms of durations: they add up, survive being stored, and are off by less than they say."""

import math
import random

import pytest

from jobq.histogram import Histogram, bucket_of, duration_of, percentile


def of(*seconds: float) -> Histogram:
    made = Histogram()
    for each in seconds:
        bucket = bucket_of(each)
        assert bucket is not None
        made.add(bucket, 1)
    return made


@pytest.mark.parametrize(
    "seconds", [0.001, 0.0011, 0.5, 1.0, 59.9, 3600.0, 86_400.0 * 365, *(1.1**n for n in range(-50, 90, 7))]
)
def test_what_stands_for_a_duration_is_off_by_less_than_5_percent(seconds: float) -> None:
    bucket = bucket_of(seconds)
    assert bucket is not None
    assert duration_of(bucket) == pytest.approx(seconds, rel=0.05)


def test_what_is_shorter_than_a_millisecond_counts_as_one() -> None:
    assert [bucket_of(seconds) for seconds in (-5.0, 0.0, 0.0004)] == [0, 0, 0]
    assert bucket_of(None) is None
    assert duration_of(0) == 0.001


def test_histograms_add_up_and_survive_being_stored() -> None:
    chance = random.Random(3)
    parts = [[chance.lognormvariate(0, 3) for _ in range(50)] for _ in range(20)]
    total = Histogram()
    for part in parts:
        total += Histogram(of(*part).stored())
    assert total.counts() == of(*(each for part in parts for each in part)).counts()
    assert Histogram(total.stored()).counts() == total.counts()
    assert (Histogram().stored(), Histogram("").counts()) == ("", {})


def test_counts_may_be_large() -> None:
    made = Histogram()
    for _ in range(1000):
        made.add(7, 10**11)
        made.add(8, 1)
    assert Histogram(made.stored()).counts() == {7: 10**14, 8: 1000}


def test_percentiles_are_those_of_the_nearest_rank() -> None:
    chance = random.Random(4)
    for count in (1, 2, 99, 100, 1000):
        values = sorted(chance.lognormvariate(0, 2) for _ in range(count))
        for percent in (1, 50, 95, 99, 100):
            exact = values[max(math.ceil(count * percent / 100), 1) - 1]
            assert percentile(of(*values).counts(), percent) == pytest.approx(exact, rel=0.05, abs=0.001)
    assert percentile({}, 50) is None
