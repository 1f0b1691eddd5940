"""The levels that quantise normal numbers with the least mean squared error.

Each level is the mean of the numbers that are nearest to it (S. Lloyd, "Least squares
quantization in PCM", 1957, IEEE Trans. Inf. Theory 1982; J. Max, "Quantizing for
minimum distortion", IRE Trans. Inf. Theory 1960). For a logarithmically concave density
there is exactly one such set (P. Fleischer, 1964).
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

#: Newton's method is at the rounding error after five steps, for 2 to 1024 levels.
_STEPS = 8


@lru_cache(maxsize=512)
def normal_levels(count: int) -> Tensor:
    """Give ``count`` increasing levels for the standard normal law, in float64.

    Lloyd's fixed point ``c = centroids(c)`` by Newton's method. It starts from equal
    shares of N(0, 3), to which the density of the best levels tends (P. Panter,
    W. Dite, 1951). The levels add up to zero pairwise, exactly.

    Parameters
    ----------
    count : int
        At least 1. The cost of the first call grows with its cube: 30 ms for 256.

    Returns
    -------
    Tensor
        Shape (count,), on the CPU; shared by all callers, not to be changed.
    """
    shares = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    levels: Tensor = math.sqrt(3.0) * torch.special.ndtri(shares)
    for _ in range(_STEPS):
        miss, slope = _miss(levels)
        levels = levels - torch.linalg.solve(slope, miss)
        levels = (levels - levels.flip(0)) / 2.0
    return levels


def _miss(levels: Tensor) -> tuple[Tensor, Tensor]:
    """Levels minus the means of their cells, (n,), and its derivative, (n, n)."""
    ends = torch.tensor([math.inf], dtype=levels.dtype)
    bounds = torch.cat((-ends, (levels[1:] + levels[:-1]) / 2.0, ends))  # (n + 1,)
    density = torch.exp(-bounds.square() / 2.0) / math.sqrt(2.0 * math.pi)
    mass = torch.special.ndtr(bounds).diff()
    mean = -density.diff() / mass
    # A mean moves with a bound by (density / mass) times their distance; the outer
    # bounds do not move.
    inner = bounds[1:-1]
    left = density[1:-1] * (mean[1:] - inner) / mass[1:]
    right = density[1:-1] * (inner - mean[:-1]) / mass[:-1]
    zero = torch.zeros(1, dtype=levels.dtype)
    own = torch.cat((zero, left)) + torch.cat((right, zero))
    slope = torch.diag(1.0 - own / 2.0)
    slope -= torch.diag(left / 2.0, -1) + torch.diag(right / 2.0, 1)
    return levels - mean, slope
