"""Figures: every repetition, the median, and how far apart they lie. Only ratios within one run mean something."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any


def summary(values: Sequence[float], digits: int = 1) -> dict[str, Any]:
    """Every value in the order of the repetitions, their median, and the spread (extremes ÷ median)."""
    middle = statistics.median(values)
    spread = [round(min(values) / middle, 2), round(max(values) / middle, 2)] if middle else []
    return {"median": round(middle, digits), "spread": spread, "each": [round(value, digits) for value in values]}


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that so many percent do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(math.ceil(len(ordered) * percent / 100) - 1, 0)]


def distribution(values: Sequence[float], digits: int = 1) -> dict[str, Any]:
    """How values are distributed: p50, p99 and the extremes."""
    names = {"p50": 50, "p90": 90, "p99": 99}
    found: dict[str, Any] = {name: round(percentile(values, percent), digits) for name, percent in names.items()}
    return {"count": len(values), "min": round(min(values), digits), **found, "max": round(max(values), digits)}


def ratio(ours: float, theirs: float) -> float:
    return round(ours / theirs, 2)
