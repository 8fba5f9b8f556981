"""Metrics as Prometheus would read them: parsed by the official parser, asked for by sums."""

from __future__ import annotations

import urllib.request
from collections import Counter
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parse(text: str) -> Samples:
    """Every sample of a text: (name, labels) → value. A sample that comes twice is a defect."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation, f"{family.name} has no help"
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, f"{key} comes twice"
            found[key] = sample.value
    return found


def scrape(port: int) -> Samples:
    """What a process serves on loopback."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return parse(answer.read().decode())


def total(samples: Samples, name: str, **labels: str) -> float:
    """The sum over all samples of this name with these labels."""
    wanted = set(labels.items())
    return sum(value for (its, place), value in samples.items() if its == name and wanted <= place)


def by(samples: Samples, name: str, *labels: str) -> Counter[tuple[str, ...]]:
    """The sums of a name, by some of its labels."""
    sums: Counter[Any] = Counter()
    for (its, place), value in samples.items():
        if its == name:
            values = dict(place)
            sums[tuple(values[label] for label in labels)] += int(value)
    return +sums


def added(*several: Samples) -> Samples:
    """What Prometheus' sum() over the scraped processes would see."""
    sums: Samples = {}
    for samples in several:
        for key, value in samples.items():
            sums[key] = sums.get(key, 0.0) + value
    return sums
