"""Levels for the normal law: known values, the fixed point, the least error."""

from __future__ import annotations

import math

import pytest
import torch

from fl_lowrank.lloyd_max import normal_levels


def distortion(levels: torch.Tensor) -> float:
    """Mean squared error on N(0, 1), by the midpoint rule on a fine grid."""
    u = (torch.arange(400_000, dtype=torch.float64) + 0.5) / 20_000 - 10
    density = torch.exp(-u * u / 2) / math.sqrt(2 * math.pi)
    bounds = (levels[1:] + levels[:-1]) / 2
    off = u - levels[torch.bucketize(u, bounds)]
    return float((off.square() * density).sum() / 20_000)


#: J. Max (1960), table I: outermost level, mean squared error.
KNOWN = {
    1: (0.0, 1.0),
    2: (0.7980, 0.3634),
    3: (1.224, 0.1902),
    4: (1.510, 0.1175),
    5: (1.724, 0.07994),
    8: (2.152, 0.03454),
    16: (2.733, 0.009497),
}


@pytest.mark.parametrize("count", KNOWN)
def test_known_values(count: int) -> None:
    levels = normal_levels(count)
    outermost, error = KNOWN[count]
    assert float(levels[-1]) == pytest.approx(outermost, abs=2e-3)
    assert distortion(levels) == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize("count", [2, 3, 5, 16, 63, 64, 255, 256, 257])
def test_levels_are_the_means_of_their_cells(count: int) -> None:
    """By integration on a grid, up to its width."""
    levels = normal_levels(count)
    assert levels.shape == (count,)
    assert bool((levels.diff() > 0).all())
    assert torch.equal(levels, -levels.flip(0))
    u = (torch.arange(400_000, dtype=torch.float64) + 0.5) / 20_000 - 10
    density = torch.exp(-u * u / 2)
    cell = torch.bucketize(u, (levels[1:] + levels[:-1]) / 2)
    zero = torch.zeros(count, dtype=torch.float64)
    mass = zero.index_add(0, cell, density)
    mean = zero.index_add(0, cell, density * u) / mass
    assert float((levels - mean).abs().max()) < 1e-4


def test_no_shift_of_a_level_is_better() -> None:
    levels = normal_levels(6)
    best = distortion(levels)
    for i in range(6):
        for step in (-0.02, 0.02):
            moved = levels.clone()
            moved[i] += step
            assert distortion(moved) > best
