"""The family of low-rank settings: how many columns, and how fine their numbers."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...linalg import range_finder
from ...rng import Rng
from ...shapes import as_matrix
from ..dithering import LEAST_ERROR
from ..rsvd import Rsvd
from ..scalar import Ecsq
from ..wrappers import Then
from .families import (
    FRAME_BITS,
    LEVEL_BITS,
    MOST_LEVELS,
    NESTED_BITS,
    Choice,
    Family,
)
from .magnitudes import Floats, over_unit

#: Larger ranks are not looked at.
MAX_RANK = 256
_NMSE = 10.0 ** -np.arange(0.5, 5.1, 0.25)  # relative errors of the factors
_RATE = 0.53  # bits a number over log2(1 / nmse): the entropy-coded quantizer's


def spectrum(x: Tensor, exponent: int) -> Floats:
    """Largest singular values of the matrix of ``x``, over ``2^exponent``.

    All of them where there are few, else the first of nearly `MAX_RANK`.
    """
    matrix = over_unit(as_matrix(x), exponent)
    if matrix.shape[0] > matrix.shape[1]:
        matrix = matrix.T
    if matrix.shape[0] > 2 * MAX_RANK:
        matrix = range_finder(matrix, MAX_RANK, 1, Rng(0)).T @ matrix
    squares = torch.linalg.eigvalsh(matrix @ matrix.T).clamp_min(0.0)
    values: Floats = squares.sqrt().flip(0).cpu().numpy()
    return values[:MAX_RANK]


class Factors(Family):
    """`Rsvd` with entropy-coded factors, by rank and by the error of the factors."""

    def __init__(self, values: Floats, energy: float, shape: tuple[int, int]) -> None:
        m, n = shape
        most = (m * n - 1) // (m + n)  # where factors have fewer numbers
        ranks: Floats = np.arange(1.0, min(len(values), most) + 1)
        kept = values[: len(ranks)]
        tails = np.maximum(energy - np.cumsum(kept**2), 0.0)
        # Noise of relative size nmse in either factor is spread over its r columns.
        noise = 2.0 * np.cumsum(kept) ** 2 / ranks
        self.nmse = np.repeat(_NMSE, len(ranks))
        self.ranks = np.tile(ranks, len(_NMSE))
        self.rates: Floats = self.ranks * (m + n) * _RATE
        errors = tails + np.outer(_NMSE, noise)
        self.errors = errors.ravel()
        self.bits = self._sizes(self.rates, self.nmse)

    def choice(self, i: int) -> Choice:
        """Give one setting; its neighbours have the same rank."""
        rank, nmse = int(self.ranks[i]), float(self.nmse[i])
        rate = self.rates[i : i + 1]

        def limited(scale: float) -> float:
            return min(max(nmse * scale * scale, LEAST_ERROR), 0.9)

        return Choice(
            float(self.bits[i]),
            float(self.errors[i]),
            lambda scale: float(self._sizes(rate, np.array([limited(scale)]))[0]),
            lambda scale: Then(
                Rsvd(rank=rank, num_iterations=2), Ecsq(nmse=limited(scale))
            ),
        )

    @staticmethod
    def _sizes(rates: Floats, nmse: Floats) -> Floats:
        # Levels within two deviations, at a step of sqrt(12 nmse).
        levels = np.minimum(4.0 / np.sqrt(12.0 * nmse), MOST_LEVELS)
        tables = FRAME_BITS + 2.0 * (NESTED_BITS + LEVEL_BITS * levels)
        return rates * np.log2(1.0 / nmse) + tables
