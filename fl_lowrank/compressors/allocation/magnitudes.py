"""How many entries of a tensor have which magnitude, in 32 bins an octave."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...codecs.indices import encode_indices
from ...linalg import largest_magnitude

Floats = NDArray[np.float64]

#: A float32 without its sign and its 18 lowest bits: exponent and 5 bits of mantissa.
_SHIFT = 18
_NUM_BINS = 1 << (31 - _SHIFT)
_CHUNK = 1 << 20
_SHARE = 0.03  # of the entries, whose positions are coded to see how they cluster
_FEW = 4096  # entries of which there is nothing to see
#: Entries below so many root mean squares are as zero: together they hold less than
#: a millionth of the energy.
_NEGLIGIBLE = 1e-3


@dataclass(frozen=True)
class Magnitudes:
    """A histogram of ``|x| / unit``; addition joins tensors.

    Attributes
    ----------
    numel : int
        Entries, zeros included.
    energy : float
        Sum of squares.
    peak : float
        Largest magnitude.
    counts : ndarray
        (2^13,) entries in each bin; magnitudes below 2^-126 units are as zero.
    clustering : float
        Size of the positions of the largest entries, over that for random positions.
    """

    numel: int
    energy: float
    peak: float
    counts: Floats
    clustering: float = 1.0

    @staticmethod
    def of(x: Tensor, exponent: int) -> Magnitudes:
        """Count the entries of a tensor, in units of ``2^exponent``.

        No magnitude may be above 1e18 units: squares must fit float32.
        """
        counts = np.zeros(_NUM_BINS)
        energy, peak = 0.0, 0.0
        for part in torch.split(x.reshape(-1), _CHUNK):
            if not part.numel():
                continue
            wide = over_unit(part, exponent)
            energy += float(torch.dot(wide, wide))
            peak = max(peak, float(largest_magnitude(wide)))
            bins = wide.to(torch.float32).abs().view(torch.int32) >> _SHIFT
            found = torch.bincount(bins, minlength=_NUM_BINS)
            counts += found.cpu().numpy()
        plain = Magnitudes(x.numel(), energy, peak, counts)
        return replace(plain, clustering=_clustering(x, exponent, plain))

    def __add__(self, other: Magnitudes) -> Magnitudes:
        return Magnitudes(
            self.numel + other.numel,
            self.energy + other.energy,
            max(self.peak, other.peak),
            self.counts + other.counts,
            (self.clustering * self.numel + other.clustering * other.numel)
            / max(self.numel + other.numel, 1),
        )

    @property
    def rms(self) -> float:
        """Root of the mean square."""
        return math.sqrt(self.energy / max(self.numel, 1))

    @cached_property
    def bins(self) -> tuple[Floats, Floats, Floats]:
        """Counts, middles and widths of the bins that are not empty, from below.

        Without those of negligible entries.
        """
        places = np.flatnonzero(self.counts)
        places = places[places > 0]
        edges = np.stack((places, places + 1)).astype(np.uint32) << np.uint32(_SHIFT)
        low, high = edges.view(np.float32).astype(np.float64)
        used = high > _NEGLIGIBLE * self.rms
        low, high = low[used], high[used]
        return self.counts[places[used]], (low + high) / 2.0, high - low

    @cached_property
    def _tails(self) -> tuple[Floats, Floats, Floats]:
        """Logarithms of lower edges; counts and energies from there on."""
        counts, middles, widths = self.bins
        edges = np.append(middles - widths / 2.0, max(self.peak, middles[-1]) * 1.0001)
        tails = (
            np.append(np.cumsum(part[::-1])[::-1], 0.0)
            for part in (counts, counts * middles**2)
        )
        return np.log(edges), *tails

    def above(self, magnitudes: Floats) -> tuple[Floats, Floats]:
        """Count the entries from these magnitudes on, and sum their squares.

        Interpolated inside a bin.
        """
        places, counts, energies = self._tails
        at = np.log(magnitudes)
        return np.interp(at, places, counts), np.interp(at, places, energies)


def _clustering(x: Tensor, exponent: int, found: Magnitudes) -> float:
    """Code the positions of the largest entries; updates have strong rows and columns.

    The ratio varies little with the share of the entries.
    """
    counts, middles, widths = found.bins
    if found.numel < _FEW or not len(counts):
        return 1.0
    wanted = _SHARE * found.numel
    i = int(np.argmax(np.cumsum(counts[::-1])[::-1] <= wanted))
    low = math.ldexp(float(middles[i] - widths[i] / 2.0), exponent)
    positions = (x.detach().reshape(-1).abs() >= low).nonzero().reshape(-1)
    k = positions.numel()
    if not 0 < k <= 2.0 * wanted:
        return 1.0
    random = math.lgamma(found.numel + 1) - math.lgamma(k + 1)
    random = (random - math.lgamma(found.numel - k + 1)) / math.log(2.0)
    return min(8.0 * len(encode_indices(positions, found.numel)) / random, 1.0)


def squared_error(y: Tensor, x: Tensor, exponent: int) -> float:
    """Sum of the squares of ``(y - x) / 2^exponent``."""
    off = over_unit(y.to(x.device), exponent) - over_unit(x, exponent)
    return float(off.square().sum())


def over_unit(x: Tensor, exponent: int) -> Tensor:
    """Divide by ``2^exponent``, in float64."""
    # In two steps, since 2^-exponent may overflow.
    half = exponent // 2
    return x.detach().to(torch.float64) * 2.0**-half * 2.0 ** (half - exponent)
