"""Random entries are sent, more often those that matter for the loss.

`MdStochastic`, the random one of the operators in `importance_operators`.

References
----------
F. Khafizov (2025), see there. D. Horvitz, D. Thompson, "A Generalization of Sampling
Without Replacement From a Finite Universe", JASA 1952: entries over their inclusion
probabilities. W. Madow, "On the Theory of Systematic Sampling, II", Annals of
Mathematical Statistics, 1949: samples of a fixed size with given probabilities.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import SettingError
from ..rng import Rng
from ..types import Exact, Guarantee, Shape, Unbiased
from .importance_operators import MEAN, PAPER, PAPER_GUARANTEE, ByImportance

#: Even share of all weights, so that entries of weight 0 share what is left of k.
_TRACE = 1e-9


@dataclass(frozen=True)
class MdStochastic(ByImportance):
    """Keep random entries, more often those of large weight.

    ``pi_i = (1 - uniform) min(1, c w_i) + uniform k / d``, with the sum k; systematic
    sampling in random order.

    Guarantee: ``Unbiased(d / (k uniform))`` for all weights, since ``pi_i >= uniform
    k / d``; with equal weights the second moment is ``d / k``, as of `RandK`. None with
    ``scale="paper"``: k draws without replacement, times d/k. Wire cost: as of `TopK`,
    always k entries.

    Parameters
    ----------
    fraction, k, scale, refresh, steps
        See `ByImportance`.
    uniform : float
        Even share, in (0, 1]. The second moment is at most ``1 / uniform`` times that
        of `RandK`, whatever the weights, and at most ``1 / (1 - uniform)`` times that
        of the pure weights.
    """

    name: ClassVar[str] = "md_stochastic"

    uniform: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.uniform <= 1.0:
            msg = f"{self.name}: expected uniform in (0, 1], found {self.uniform}"
            raise SettingError(msg)

    def guarantee(self, shape: Shape) -> Guarantee:
        """Horvitz, Thompson (1952): the variance is that of dividing by pi."""
        d = math.prod(shape)
        k = self.count(d)
        if k == d:
            return Exact()
        return (
            Unbiased(d / (k * self.uniform)) if self.scale == MEAN else PAPER_GUARANTEE
        )

    def _choose(
        self, x: Tensor, weights: Tensor, k: int, rng: Rng
    ) -> tuple[Tensor, Tensor]:
        d = x.numel()
        order = rng.child("order")
        if self.scale == PAPER:
            # The smallest of exponential times with rates w: successive sampling.
            times = -torch.log1p(-order.uniform(d, x.device).to(weights)) / weights
            indices = torch.topk(times, k, largest=False).indices.sort().values
            return indices, torch.full_like(indices, d / max(k, 1), dtype=weights.dtype)
        if k == d:
            return torch.arange(d, device=x.device), torch.ones_like(weights)
        chances = (1.0 - self.uniform) * inclusion(weights, k) + self.uniform * k / d
        shuffled = torch.argsort(order.bits32(d, x.device))
        ends = torch.cumsum(chances[shuffled], 0)
        ends = ends * (k / ends[-1])  # rounding must not add an entry
        start = (rng.child("start").key >> 11) * 2.0**-53
        ticks = torch.floor(ends + start)
        passed = torch.diff(ticks, prepend=ticks.new_zeros(1)) > 0
        indices = shuffled[passed].sort().values
        return indices, 1.0 / chances[indices]


def inclusion(weights: Tensor, k: int) -> Tensor:
    """Give ``min(1, c w)`` with c such that the sum is k.

    Parameters
    ----------
    weights : Tensor
        At least 0 and not all of them, (d,), in float64. If fewer than k are above 0,
        the others share the rest evenly.
    k : int
        Below d.
    """
    shares = weights / weights.sum() + _TRACE / weights.numel()
    top, where = torch.topk(shares, k)
    rest = shares.index_fill(0, where, 0.0).sum()
    # With the j largest at 1, the others share k - j in proportion.
    others = top.flip(0).cumsum(0).flip(0) + rest
    factor = torch.arange(k, 0, -1, device=top.device) / others
    capped = int((factor * top > 1.0).sum())
    return torch.clamp(factor[min(capped, k - 1)] * shares, max=1.0)
