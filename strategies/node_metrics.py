"""Metrics of many nodes, each of its own model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from flwr.app import Message, MetricRecord


def numbers_in(message: Message) -> dict[str, float]:
    """Give the metrics of a reply that are single numbers."""
    return {
        key: float(value)
        for record in message.content.metric_records.values()
        for key, value in record.items()
        if not isinstance(value, list)
    }


def means(found: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Average each metric that most nodes give, over these."""
    return {key: _mean(_given(v)) for key, v in _columns(found).items()}


def spreads(found: Iterable[Mapping[str, float]]) -> MetricRecord:
    """Give mean, standard deviation and list of each metric that most nodes give.

    The list is by node, with NaN for one that does not give it; mean and deviation are
    of the others.
    """
    record = MetricRecord()
    for key, values in _columns(found).items():
        given = _given(values)
        mean = _mean(given)
        record[key] = mean
        # Squares of what a node may claim would overflow.
        norm = math.hypot(*(value - mean for value in given))
        record[f"{key}_deviation"] = norm / math.sqrt(len(given))
        record[f"{key}_agents"] = [math.nan if v is None else v for v in values]
    return record


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _given(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _columns(found: Iterable[Mapping[str, float]]) -> dict[str, list[float | None]]:
    rows = list(found)
    counts = Counter(key for row in rows for key in row)
    keys = [key for key, count in counts.items() if 2 * count > len(rows)]
    return {key: [row.get(key) for row in rows] for key in keys}
