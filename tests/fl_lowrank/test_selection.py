"""Finding the largest entries among candidates, against sorting all of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fl_lowrank as fll
from fl_lowrank.compressors.selection import candidates
from fl_lowrank.compressors.sparse import largest


def oracle(x: Tensor, k: int) -> Tensor:
    """A stable sort: ties keep their order."""
    order = torch.sort(x.to(torch.float64).abs(), descending=True, stable=True).indices
    chosen = order[:k].sort().values
    return chosen[x[chosen] != 0]


def inputs(d: int) -> dict[str, Tensor]:
    normal = fll.rng.stream(50).normal(d)
    position = torch.arange(d)
    return {
        "normal": normal,
        "heavy": normal**5,
        "equal": normal.sign(),
        "three sizes": (2 * normal).round().clamp(-3, 3),
        "sparse": torch.where(normal > 2.5, normal, 0.0),
        "zero": torch.zeros(d),
        "the sample sees little": torch.where(position % 6 == 1, normal, 1e-3 * normal),
        "the sample sees too much": torch.where(position % 6 == 0, normal, 0.0),
        "not contiguous": fll.rng.stream(51).normal(2 * d)[::2],
        "subnormal": normal * 1e-40,
    }


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("d", [5, 1000, 100_003])
def test_the_largest_with_ties_to_the_smaller_position(
    dtype: torch.dtype, d: int
) -> None:
    for name, x in inputs(d).items():
        x = x.to(dtype)
        for k in {1, 3, d // 100 + 1, d // 4 + 1, d - 1, d}:
            assert torch.equal(largest(x, k), oracle(x, k)), (name, k)


def test_float64_is_compared_in_full() -> None:
    x = 1.0 + torch.arange(100_000, dtype=torch.float64) * 1e-15
    assert torch.equal(largest(-x, 100), torch.arange(99_900, 100_000))


def test_candidates_are_few() -> None:
    d = 1 << 20
    for name in ("normal", "heavy"):
        for k in (100, 10_000, 100_000):
            found = candidates(inputs(d)[name], k)
            assert k <= found.numel() <= 1.35 * k + 1000
