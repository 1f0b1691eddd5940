"""Few entries are sent: those that matter for the loss, by weights from outside.

With importance weights ``w >= 0``, one for each entry of x, S the k chosen entries
and m the mean of w over S::

    md_stochastic        S at random, i with probability pi_i    C_i = x_i / pi_i
    md_greedy            S = k largest w_i                       C_i = x_i
    md_greedy_weighted   S = k largest w_i                       C_i = f_i x_i
    md_weighted_greedy   S = k largest |w_i x_i|                 C_i = f_i x_i

with factors ``f_i = w_i / m``, clipped to ``[2 - limit, limit]``.

The weights are state, under the name ``weights``: ones at the start, and then whatever
was put there. They minimise the loss after the step, ``w = argmin f(x + w * u)``, see
`fl_lowrank.importance`; ``CompressionMod(gradient=...)`` solves for them on a client.
They never travel.

References
----------
F. Khafizov, "Adaptive compression in distributed optimization", bachelor thesis, MIPT,
2025, and its slides of 2024 (supervisor A. Beznosikov; repository
intsystems/Khafizov-BS-Thesis): the four operators, MD for mirror descent.

Differences: the slides multiply all four by d/k, which ``scale="paper"`` does, with
weights of sum 1. That is not unbiased unless the weights are equal, and takes the
weighted ones far from the scale of x; here weights have mean 1 on the support, as in
the code of the thesis, and the sampled entries are divided by their probabilities.
The code has no limit: a factor above 2 leaves an error longer than the entry, and error
feedback then sends it back and forth, growing (accuracy 0.10 instead of 0.93 in 25
rounds on the digits).
Equal weights are told apart by ``|x_i|``, so that with all equal the three greedy ones
are ``topk``.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import InputError, SettingError
from ..rng import Rng
from ..types import (
    Exact,
    Guarantee,
    Importance,
    NoGuarantee,
    Payload,
    Shape,
    State,
    all_finite,
    check_input,
)
from .sparse import Keep, largest, sparse_payload

MEAN, PAPER = "mean", "paper"
#: Texts come from the network: none may keep a client busy for ever.
MAX_REFRESH, MAX_STEPS = 1 << 20, 1000
#: Of every operator in the form of the slides.
PAPER_GUARANTEE = NoGuarantee(
    "the factor d/k of the slides makes the step too long wherever the kept entries "
    "are large",
    expands=True,
)


@dataclass(frozen=True)
class ByImportance(Keep):
    """What the four operators share: weights as state, and the form of a message.

    Wire cost: as of `TopK`.

    Parameters
    ----------
    fraction : float, optional
        Share of the entries to keep, in (0, 1]; rounded up to at least one.
    k : int, optional
        Their number, instead of ``fraction``.
    scale : str
        ``"mean"``, or ``"paper"`` for the factor d/k of the slides.
    refresh : int
        Messages that share one solution for the weights; each renewal takes
        ``steps`` gradients.
    steps : int
        Gradients for a renewal, 2 to 1000.
    """

    scale: str = MEAN
    refresh: int = 5
    steps: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale not in (MEAN, PAPER):
            msg = f"{self.name}: expected scale mean or paper, found {self.scale!r}"
            raise SettingError(msg)
        if not (1 <= self.refresh <= MAX_REFRESH and 2 <= self.steps <= MAX_STEPS):
            msg = (
                f"{self.name}: expected refresh of 1 to {MAX_REFRESH} and steps of 2 "
                f"to {MAX_STEPS}, found {self.refresh} and {self.steps}"
            )
            raise SettingError(msg)

    def init(self, shape: Shape) -> State:
        """Weights of one, flat: the plain step; and due to be solved for."""
        return {"weights": torch.ones(math.prod(shape)), "age": torch.zeros(1)}

    def importance(self, shape: Shape) -> Importance | None:
        """Give the names in `init`."""
        del shape
        return Importance(steps=self.steps)

    def encode(self, x: Tensor, state: State, rng: Rng) -> tuple[Payload, State]:
        """Choose entries, and send them times their factors."""
        flat = check_input(self.name, x).reshape(-1)
        before = self._fitting(state, tuple(x.shape))
        weights = before["weights"].to(flat.device, torch.float64)
        if not bool(weights.any()):  # says nothing of any entry
            weights = torch.ones_like(weights)
        indices, factors = self._choose(flat, weights, self.count(flat.numel()), rng)
        values = (flat[indices].to(torch.float64) * factors).to(flat.dtype)
        if not all_finite(values):
            msg = (
                f"{self.name}: entries of {float(flat.abs().max()):.3g} times factors "
                f"of up to {float(factors.max()):.3g} do not fit {x.dtype}; scale the "
                "tensor down or use a wider dtype"
            )
            raise InputError(msg)
        age = (before["age"] + 1.0) % self.refresh
        after = {"weights": before["weights"], "age": age}
        return sparse_payload(x, indices, values), after

    def _fitting(self, state: State, shape: Shape) -> State:
        """Give the state if it is of this shape, or a fresh one."""
        start = self.init(shape)
        if any(k not in state or state[k].shape != v.shape for k, v in start.items()):
            return start
        weights = state["weights"]
        if not (all_finite(weights) and bool((weights >= 0.0).all())):
            msg = (
                f"{self.name}: expected weights of at least 0, found {weights.min():g} "
                f"to {weights.max():g}; solve for them with fl_lowrank.importance"
            )
            raise InputError(msg)
        return state

    @abstractmethod
    def _choose(
        self, x: Tensor, weights: Tensor, k: int, rng: Rng
    ) -> tuple[Tensor, Tensor]:
        """Give increasing positions and their factors, both of at most k entries.

        ``weights`` are in float64, at least 0 and not all of them 0.
        """


@dataclass(frozen=True)
class MdGreedy(ByImportance):
    """Keep the entries of largest weight as they are.

    Guarantee: none; the support does not depend on ``|x|``, so that all that is large
    may be dropped. ``|C(x) - x| <= |x|`` and ``|C(x)| <= |x|`` with ``scale="mean"``.
    Wire cost: as of `TopK`.

    Parameters
    ----------
    fraction, k, scale, refresh, steps
        See `ByImportance`.
    """

    name: ClassVar[str] = "md_greedy"

    def guarantee(self, shape: Shape) -> Guarantee:
        """Nothing holds but at k = d."""
        d = math.prod(shape)
        if self.count(d) == d:
            return Exact()
        if self.scale == PAPER:
            return PAPER_GUARANTEE
        return NoGuarantee(
            "the weights choose the entries whatever their size, so all that is large "
            "may be dropped"
        )

    def _choose(
        self, x: Tensor, weights: Tensor, k: int, rng: Rng
    ) -> tuple[Tensor, Tensor]:
        del rng
        indices = _nonzero(x, heaviest(weights, x.abs(), k))
        factor = x.numel() / max(k, 1) if self.scale == PAPER else 1.0
        return indices, torch.full_like(indices, factor, dtype=weights.dtype)


def heaviest(weights: Tensor, magnitude: Tensor, k: int) -> Tensor:
    """Positions of the k largest weights; of equal ones those of larger magnitude.

    Where magnitudes are equal too the smaller position wins, and zeros never do.
    """
    if not k or k == weights.numel():
        return magnitude.nonzero().reshape(-1)
    threshold = torch.topk(weights, k, sorted=False).values.min()
    chosen = weights > threshold
    ties = (weights == threshold).nonzero().reshape(-1)
    chosen[ties[largest(magnitude[ties], k - int(chosen.sum()))]] = True
    return chosen.nonzero().reshape(-1)


def _nonzero(x: Tensor, indices: Tensor) -> Tensor:
    """Leave out positions of zeros: they decode to zero unsent."""
    return indices[x[indices] != 0]


_OUTSIDE = NoGuarantee(
    "the weights come from outside and may leave out all that is large; no more than "
    "|C(x) - x| <= |x| is known, with a limit of at most 2"
)


@dataclass(frozen=True)
class MdGreedyWeighted(ByImportance):
    """Keep the entries of largest weight, times their weights.

    Guarantee: none; ``|C(x) - x| <= |x|`` with a limit of at most 2 and
    ``scale="mean"``. Wire cost: as of `TopK`.

    Parameters
    ----------
    fraction, k, scale, refresh, steps
        See `ByImportance`.
    limit : float
        Factors lie in [2 - limit, limit], so that what is sent of an entry differs from
        it by at most limit - 1 of itself; at least 1, and not with ``scale="paper"``.
        Below 2 for error feedback; large for ``feedback="plain"``, as in the thesis.
    """

    name: ClassVar[str] = "md_greedy_weighted"

    limit: float = 1.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1.0 <= self.limit < math.inf:
            msg = f"{self.name}: expected limit of at least 1, found {self.limit}"
            raise SettingError(msg)

    def guarantee(self, shape: Shape) -> Guarantee:
        """Nothing holds for all weights."""
        del shape
        return PAPER_GUARANTEE if self.scale == PAPER else _OUTSIDE

    def _choose(
        self, x: Tensor, weights: Tensor, k: int, rng: Rng
    ) -> tuple[Tensor, Tensor]:
        del rng
        indices = _nonzero(x * weights.sign(), heaviest(weights, x.abs(), k))
        return indices, self._factors(weights, indices, k)

    def _factors(self, weights: Tensor, indices: Tensor, k: int) -> Tensor:
        """Weights of the chosen entries, scaled as asked for."""
        chosen = weights[indices]
        if self.scale == PAPER:
            return chosen * (weights.numel() / max(k, 1)) / weights.sum()
        return (chosen / chosen.mean()).clamp(max(2.0 - self.limit, 0.0), self.limit)


@dataclass(frozen=True)
class MdWeightedGreedy(MdGreedyWeighted):
    """Keep the entries whose weighted magnitude is largest, times their weights.

    The best of the four in the author's experiments, on the level of Top-k.

    Guarantee: none for all weights; ``|C(x) - x| <= |x|`` as of `MdGreedyWeighted`. For
    weights in [1, 2], the cube of the thesis, and a limit of 2, ``|C(x)|^2 >= k / (4 d)
    |x|^2``. With equal weights it is `TopK`. Wire cost: as of `TopK`.

    Parameters
    ----------
    fraction, k, scale, refresh, steps, limit
        See `ByImportance` and `MdGreedyWeighted`.
    """

    name: ClassVar[str] = "md_weighted_greedy"

    def _choose(
        self, x: Tensor, weights: Tensor, k: int, rng: Rng
    ) -> tuple[Tensor, Tensor]:
        del rng
        magnitude = x.abs().to(torch.float64)
        if magnitude.numel() and bool(magnitude.any()):
            magnitude = magnitude / magnitude.max() * (weights / weights.max())
        indices = largest(magnitude, k)
        return indices, self._factors(weights, indices, k)
