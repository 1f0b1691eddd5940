"""How far vertices are from each other, and the mean of their models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .rows import Rows

Model = Mapping[str, Tensor]


def average(models: Sequence[Model]) -> dict[str, Tensor]:
    """Give the mean of models, in their dtypes; integers are rounded."""
    out = {}
    for name, first in models[0].items():
        total = torch.zeros(first.shape, dtype=torch.float64)
        for model in models:
            total += model[name]
        mean = total / len(models)
        out[name] = (mean if first.dtype.is_floating_point else mean.round()).to(
            first.dtype
        )
    return out


def consensus_distance(rows: Rows, models: Sequence[Model], mean: Model) -> float:
    """Give the root mean square of the distances to the mean, over its norm.

    Of parameters alone; 0 for a mean that is 0.
    """
    names = list(rows.parameters)
    norm = math.hypot(*(_norm(mean[name]) for name in names))
    distances = (
        math.hypot(*(_norm(m[n].double() - mean[n].double()) for n in names))
        for m in models
    )
    square = sum(distance**2 for distance in distances) / len(models)
    return math.sqrt(square) / norm if norm else 0.0


def _norm(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x, dtype=torch.float64))
