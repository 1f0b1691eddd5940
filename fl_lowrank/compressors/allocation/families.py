"""Families of settings for one part, with what each setting should cost and lose.

All sizes are in bits and all errors in squared units of `Magnitudes`. Sizes are
predictions: entropies of histograms, and a guess for tables and frames. They need not
be exact, since `fit` corrects them, but errors and sizes of different families must
compare.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ...types import Compressor
from .magnitudes import Floats

FRAME_BITS = 8 * 20.0  # dtype, shape, kind, lengths of fields, a scale
NESTED_BITS = 8 * 8.0  # the same for a payload inside
LEVEL_BITS = 9.0  # of a table of frequencies, for each level
MOST_LEVELS = 48.0  # further ones share entries of the table


@dataclass(frozen=True)
class Choice:
    """A setting of a family, with its neighbours: ``scale`` above 1 is coarser."""

    bits: float
    error: float
    bits_at: Callable[[float], float]
    compressor: Callable[[float], Compressor]

    def cost(self, price: float) -> float:
        """Error and price together."""
        return self.error + price * self.bits


class Family(ABC):
    """Settings of one method for one part: a table of predictions."""

    bits: Floats
    errors: Floats

    def best(self, price: float) -> Choice:
        """Give the setting of least error + price x bits."""
        return self.choice(int(np.argmin(self.errors + price * self.bits)))

    @abstractmethod
    def choice(self, i: int) -> Choice:
        """Give one setting."""


def position_bits(kept: Floats, numel: int) -> Floats:
    """``log2 C(numel, kept)``, nearly."""
    rest = np.maximum(numel - kept, 1.0)
    kept = np.maximum(kept, 1.0)
    return kept * np.log2(numel / kept) + (numel - kept) * np.log2(numel / rest)
