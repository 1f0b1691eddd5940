"""Some singular triples at random, so that the mean is the matrix: `Atomo`.

References
----------
H. Wang, S. Sievert, S. Liu, Z. Charles, D. Papailiopoulos, S. Wright, "ATOMO:
Communication-efficient Learning via Atomic Sparsification", NeurIPS 2018, arXiv
1806.04090: algorithm 1 for the spectral decomposition.

Differences: one draw of systematic sampling (W. G. Madow, "On the theory of systematic
sampling, II", Annals of Mathematical Statistics 1949) with the same probabilities,
instead of independent ones, so that never more than r triples are sent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..rng import Rng
from ..shapes import matrix_shape
from ..types import Exact, Guarantee, Shape, State, Unbiased
from .lowrank import LowRank


def probabilities(values: Tensor, count: int) -> Tensor:
    """Give ``min(1, c v)`` with sum ``count``, for ``v >= 0`` in falling order.

    Where fewer than ``count`` are positive, these get 1 and the others 0.
    """
    count = min(count, values.numel())
    tails = values.flip(0).cumsum(0).flip(0)[:count]
    left = count - torch.arange(count, device=values.device)
    # With the k largest at 1, c = (count - k) / tails[k]; the first k that fits.
    certain = int((values[:count] * left <= tails).to(torch.int8).argmax())
    chances = torch.ones_like(values)
    tail = float(tails[certain])
    factor = (count - certain) / tail if tail > 0.0 else 0.0
    chances[certain:] = (values[certain:] * factor).clamp(max=1.0)
    return chances


def systematic_sample(chances: Tensor, start: float) -> Tensor:
    """Give the positions over whose stretch a point ``start + j`` lies, j = 0, 1, ...

    The stretches are as long as the chances, which add to an integer or less.
    """
    ends = chances.cumsum(0).clamp(max=round(float(chances.sum())))
    points = torch.ceil(ends - start)  # up to each end, without it
    before = torch.cat((points.new_tensor([math.ceil(-start)]), points[:-1]))
    return (points > before).nonzero().reshape(-1)


@dataclass(frozen=True)
class Atomo(LowRank):
    """Keep r singular triples at random, each over its probability.

    Triple i is kept with probability ``p_i = min(1, c s_i)``, with c such that these
    add to r, and then counts ``s_i / p_i``.

    Guarantee: ``Unbiased(min(m, n) / r)``, attained for a flat spectrum; for a message
    ``zeta = sum s_i^2 / p_i / sum s_i^2``, no more than that of equal probabilities,
    and ``(sum s_i)^2 / (r sum s_i^2)`` where no p_i is 1. With an unbiased compressor
    of the factors see `chained`. Wire cost: r (m + n) numbers. Time: O(m n min(m, n)).

    Parameters
    ----------
    rank, ratio, floats
        Triples that are sent, see `Ranked`.
    """

    name: ClassVar[str] = "atomo"

    def guarantee(self, shape: Shape) -> Guarantee:
        """Wang et al. (2018), with the probabilities of least variance."""
        rank = self.columns(shape)
        if not self.pays(shape, rank):
            return Exact()
        return Unbiased(min(matrix_shape(shape)) / rank)

    def chained(self, shape: Shape, error: float, unbiased: bool) -> Guarantee | None:
        """Multiply by the growth of products of factors with independent errors.

        The errors A and B of the factors have mean zero, so with w their relative
        variance the second moment grows by ``E|A R^T|^2 + E|L B^T|^2 + E|A B^T|^2``,
        which is at most ``w (1 + sqrt r) + w^2 r``: see `Svd.chained`.
        """
        first = self.guarantee(shape)
        if not unbiased or not isinstance(first, Unbiased):
            return None
        rank = self.columns(shape)
        growth = 1.0 + error * (1.0 + math.sqrt(rank)) + error**2 * rank
        return Unbiased(first.zeta * growth)

    def factorise(
        self, matrix: Tensor, rank: int, state: State, rng: Rng
    ) -> tuple[Tensor, Tensor, State]:
        """Draw triples, and split each scale evenly."""
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        chances = probabilities(s.to(torch.float64), rank)
        start = float(rng.child("atomo").uniform(1)[0])
        kept = systematic_sample(chances, start)
        root = (s[kept] / chances[kept]).sqrt().to(matrix.dtype)
        return u[:, kept] * root, vh[kept].T * root, state
