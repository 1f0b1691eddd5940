"""A logarithmic grid of scales: powers of ``2^(1/L)``, the same on every device.

A level is an integer l and stands for ``2^(l / L)``. Roots are taken by repeated
square roots and exponents looked up, so that nothing depends on a library's ``pow``.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

#: Steps an octave that there are.
STEPS = (1, 2, 4, 8, 16)
#: Exponents of float64, and so many below that zero stands for them.
_LOWEST, _HIGHEST = -1100, 1023
_EXPONENTS = torch.tensor(
    [math.ldexp(1.0, e) for e in range(_LOWEST, _HIGHEST + 1)], dtype=torch.float64
)


@lru_cache
def _mantissas(steps: int) -> Tensor:
    """Powers of ``2^(1/steps)`` in [1, 2)."""
    root = 2.0
    for _ in range(steps.bit_length() - 1):
        root = math.sqrt(root)
    out = [1.0]
    while len(out) < steps:
        out.append(out[-1] * root)
    return torch.tensor(out, dtype=torch.float64)


def spread(steps: int) -> float:
    """How far from 1 the nearest scale may be, as a ratio."""
    root = math.exp2(1.0 / steps)
    return (root - 1.0) / (root + 1.0)


def relative_variance(steps: int) -> float:
    """Largest relative variance of a scale rounded at random: ``(g - 1)^2 / (4 g)``."""
    root = math.exp2(1.0 / steps)
    return (root - 1.0) ** 2 / (4.0 * root)


def highest_level(steps: int) -> int:
    """Give the largest level that float64 holds."""
    return (_HIGHEST + 1) * steps - 1


def power(levels: Tensor, steps: int) -> Tensor:
    """Scales of int64 levels, float64; zero for those that float64 cannot hold.

    Levels are at most `highest_level`.
    """
    octave = torch.div(levels, steps, rounding_mode="floor")
    low = _mantissas(steps).to(levels.device)[levels - octave * steps]
    row = (octave - _LOWEST).clamp(min=0)
    return low * _EXPONENTS.to(levels.device)[row]


def nearest(scales: Tensor, steps: int) -> Tensor:
    """Levels of the nearest powers to positive float64 numbers; int64."""
    lower, low, high = _neighbours(scales, steps)
    return lower + (scales >= 0.5 * (low + high)).to(torch.int64)


def at_random(scales: Tensor, steps: int, draws: Tensor) -> Tensor:
    """Levels of one of the two neighbours each, so that the mean is kept.

    ``draws`` are uniform in [0, 1).
    """
    lower, low, high = _neighbours(scales, steps)
    return lower + (draws * (high - low) < scales - low).to(torch.int64)


def _neighbours(scales: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Level of the power below or equal, that power, and the next one."""
    mantissa, exponent = torch.frexp(scales)
    table = _mantissas(steps).to(scales.device)
    part = torch.searchsorted(table, 2.0 * mantissa, right=True) - 1
    lower = (exponent.to(torch.int64) - 1) * steps + part
    return lower, power(lower, steps), power(lower + 1, steps)
