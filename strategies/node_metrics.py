"""Metrics of many nodes, each of its own model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

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
    """Average the metrics that all nodes give."""
    return {key: sum(v) / len(v) for key, v in _columns(found).items()}


def spreads(found: Iterable[Mapping[str, float]]) -> MetricRecord:
    """Give mean, standard deviation and list of what all nodes give, by node."""
    record = MetricRecord()
    for key, values in _columns(found).items():
        mean = sum(values) / len(values)
        record[key] = mean
        squares = sum((value - mean) ** 2 for value in values)
        record[f"{key}_deviation"] = math.sqrt(squares / len(values))
        record[f"{key}_agents"] = values
    return record


def _columns(found: Iterable[Mapping[str, float]]) -> dict[str, list[float]]:
    rows = list(found)
    keys = [key for key in rows[0] if all(key in row for row in rows)] if rows else []
    return {key: [row[key] for row in rows] for key in keys}
