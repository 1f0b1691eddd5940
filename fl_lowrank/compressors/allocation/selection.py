"""The family of `TopK` settings."""

from __future__ import annotations

import math

import numpy as np

from ...types import Compressor
from ..natural import Natural
from ..sparse import TopK
from ..wrappers import Then
from .families import (
    FRAME_BITS,
    LEVEL_BITS,
    NESTED_BITS,
    Choice,
    Family,
    position_bits,
)
from .magnitudes import Floats, Magnitudes


def select(k: int) -> Compressor:
    """Send the k largest entries, at least one."""
    return Then(TopK(k=max(k, 1)), Natural())


def selected(compressor: Compressor) -> int | None:
    """Give the k of what `select` has made, and None of others."""
    match compressor:
        case Then(outer=TopK(k=int(k)), inner=Natural()):
            return k
    return None


class Selection(Family):
    """`TopK` with powers of two for the values, by the least magnitude that is sent."""

    def __init__(self, x: Magnitudes) -> None:
        counts, middles, widths = (part[::-1] for part in x.bins)
        if not len(counts):
            self.bits, self.errors = np.array([FRAME_BITS]), np.zeros(1)
            self.edges, self.kept = np.ones(1), np.ones(1)
            return
        self.edges, self.kept = middles - widths / 2.0, np.cumsum(counts)
        mantissas, exponents = np.frexp(middles)
        up = mantissas >= 0.75  # nearer to the upper power
        powers = np.ldexp(np.where(up, 1.0, 0.5), exponents)
        octaves = exponents + up
        octaves -= octaves.min()
        masses = np.zeros((int(octaves.max()) + 1, len(counts)))
        masses[octaves, np.arange(len(counts))] = counts
        masses = np.cumsum(masses, axis=1)
        logs = np.log2(np.maximum(masses, 1.0))
        self.bits = self.kept * np.log2(self.kept) - (masses * logs).sum(0)
        self.bits += self.kept  # the signs
        self.bits += x.clustering * position_bits(self.kept, x.numel)
        self.bits += FRAME_BITS + NESTED_BITS + LEVEL_BITS * (masses > 0.0).sum(0)
        gained = counts * (middles**2 - (middles - powers) ** 2)
        self.errors = np.maximum(x.energy - np.cumsum(gained), 0.0)

    def choice(self, i: int) -> Choice:
        """Give one setting; its neighbours lie between those of the table."""
        least = math.log(self.edges[i])
        places = np.log(self.edges[::-1])

        def at(scale: float, values: Floats) -> float:
            return float(np.interp(least + math.log(scale), places, values[::-1]))

        return Choice(
            float(self.bits[i]),
            float(self.errors[i]),
            lambda scale: at(scale, self.bits),
            lambda scale: select(round(at(scale, self.kept))),
        )
