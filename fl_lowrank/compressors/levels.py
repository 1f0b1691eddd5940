"""Vectors to integer levels of a common step, a cache-sized block at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..linalg import largest_magnitude, working_dtype

_BLOCK = 1 << 17  # entries that pass through a CPU's cache together


def blocks(count: int, device: torch.device) -> Iterator[slice]:
    """Cut ``count`` entries into pieces; other devices than a CPU get one piece."""
    size = _BLOCK if device.type == "cpu" else max(count, 1)
    for begin in range(0, count, size):
        yield slice(begin, min(begin + size, count))


@dataclass(frozen=True)
class Scaled:
    """A vector seen in units of its largest magnitude, in working precision.

    Squares of very large or very small entries then neither overflow nor vanish.

    Attributes
    ----------
    flat : Tensor
        (d,) the vector itself.
    top : Tensor
        () its largest magnitude, in working precision; 0 for the zero vector and the
        empty one.
    rms : float
        Root of the mean square of its entries over that; 0 for these.
    """

    flat: Tensor
    top: Tensor
    rms: float

    @staticmethod
    def of(x: Tensor) -> Scaled:
        """Measure a tensor of finite numbers."""
        flat = x.reshape(-1)
        work = working_dtype(x.dtype)
        if not flat.numel():
            return Scaled(flat, torch.zeros((), dtype=work, device=flat.device), 0.0)
        plain = Scaled(flat, largest_magnitude(flat).to(work), 0.0)
        if not plain.top > 0.0:
            return plain
        parts = (plain.part(block).to(torch.float64) for block in plain.blocks())
        square = sum(float(torch.dot(part, part)) for part in parts)
        return Scaled(flat, plain.top, math.sqrt(square / flat.numel()))

    @property
    def peak(self) -> float:
        """The largest magnitude as a number."""
        return float(self.top)

    def blocks(self) -> Iterator[slice]:
        """Cut the vector into pieces."""
        return blocks(self.flat.numel(), self.flat.device)

    def part(self, block: slice) -> Tensor:
        """Give a piece over the peak, which must not be 0; it may be overwritten."""
        # Divided by a tensor: CUDA would multiply by the reciprocal of a Python number,
        # which is infinite for subnormal ones.
        return self.flat[block].to(self.top.dtype) / self.top

    def sample(self, count: int) -> Scaled:
        """Give about ``count`` entries at equal distances, in the units of all."""
        stride = max(self.flat.numel() // count, 1)
        return replace(self, flat=self.flat[::stride].contiguous())


@dataclass(frozen=True)
class Rounded:
    """Levels k of a vector, and how well they fit it: with q = x / step, in steps.

    Attributes
    ----------
    levels : Tensor
        (d,) int32.
    energy : float
        ``|k|^2``.
    cross : float
        ``<q - k, k>``.
    error : float
        ``|q - k|^2``.
    """

    levels: Tensor
    energy: float
    cross: float
    error: float

    @property
    def gain(self) -> float:
        """Factor of k that is nearest to q, ``<q, k> / |k|^2``; 0 if k is."""
        return 1.0 + self.cross / self.energy if self.energy > 0.0 else 0.0

    @property
    def nmse(self) -> float:
        """``|q - gain k|^2 / |q|^2``."""
        total = self.error + 2.0 * self.cross + self.energy
        if not self.energy > 0.0:
            return 1.0 if total > 0.0 else 0.0
        return max(self.error - self.cross**2 / self.energy, 0.0) / total


def nearest_levels(x: Scaled, step: float) -> Rounded:
    """Round to the nearest multiples of ``step``, a share of the peak."""
    sums = [0.0, 0.0, 0.0]

    def nearest(q: Tensor, block: slice) -> Tensor:
        del block
        k = q.round()
        off = q.sub_(k).to(torch.float64)  # exact: the two are near each other
        wide = k.to(torch.float64)
        for i, pair in enumerate(((wide, wide), (off, wide), (off, off))):
            sums[i] += float(torch.dot(*pair))
        return k

    levels = to_levels(x, step, nearest)
    return Rounded(levels, *sums)


def to_levels(
    x: Scaled, step: float, rounding: Callable[[Tensor, slice], Tensor]
) -> Tensor:
    """Round the entries in units of ``step``, a share of the peak.

    Parameters
    ----------
    x : Scaled
        The vector. Its entries must be below 2^31 steps.
    step : float
        Positive, unless x is zero.
    rounding : function
        Gives whole numbers for a piece of x in steps, which it may overwrite.

    Returns
    -------
    Tensor
        (d,) int32; zeros for the zero vector.
    """
    levels = torch.zeros(x.flat.numel(), dtype=torch.int32, device=x.flat.device)
    if x.peak > 0.0:
        for block in x.blocks():
            levels[block] = rounding(x.part(block).div_(step), block)
    return levels
