"""Random rounding to levels at fractions of a norm: `Qsgd`, `TernGrad`.

References
----------
D. Alistarh, D. Grubic, J. Li, R. Tomioka, M. Vojnovic, "QSGD: Communication-Efficient
SGD via Gradient Quantization and Encoding", NeurIPS 2017, arXiv 1610.02132, section 3.
W. Wen, C. Xu, F. Yan, C. Wu, Y. Wang, Y. Chen, H. Li, "TernGrad: Ternary Gradients to
Reduce Communication in Distributed Deep Learning", NeurIPS 2017, arXiv 1705.07878.

Differences: levels are entropy coded jointly instead of by Elias codes (QSGD), or two
bits each (TernGrad). The constants are smaller than the published, and attained.
TernGrad's clipping of gradients at 2.5 standard deviations is biased
and left out, and each tensor keeps a scale of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import SettingError
from ..rng import Rng
from ..types import (
    Compressor,
    Guarantee,
    Payload,
    Shape,
    State,
    Unbiased,
    check_input,
)
from .blocks import (
    binary_unit,
    block_length,
    check_block,
    check_reach,
    choose_scales,
    decode_levels,
    largest_sizes,
    level_payload,
    per_block,
    scale_slack,
)
from .uniform import absmax_zeta, random_absmax, random_levels

MAX_LEVELS = 1 << 16


@dataclass(frozen=True)
class Qsgd(Compressor):
    """Round at random to a neighbouring level of step ``|x| / levels``.

    Guarantee: ``Unbiased(1 + omega)`` with ``omega = d / (4 s^2)`` from
    ``s = sqrt(d) / 2`` levels on, below that ``sqrt(d) / s - 1``, attained by equal
    magnitudes; with blocks of m the same with m for d. (The paper states
    ``min(d / s^2, sqrt(d) / s)``.) The step is rounded up to float32, 2^-23, or
    float16, 2^-10, which is included. With ``s = sqrt(d / omega) / 2`` it is
    ``sparse_dithering_unbiased(omega=...)``.
    Wire cost: the entropy of the signed levels and a scale of 32 bits (16 a block):
    for Gaussian data 2.16 d bits at ``s = sqrt(d)``, 1.41 d at ``s = sqrt(d) / 2``.

    Parameters
    ----------
    levels : int
        Levels on each side of zero, s, at most 65,536.
    block : int, optional
        Entries that share a norm; all of them by default.

    Raises
    ------
    InputError
        If an entry, rounded up to whole steps, does not fit the dtype.
    """

    name: ClassVar[str] = "qsgd"

    levels: int = 256
    block: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.levels <= MAX_LEVELS:
            msg = (
                f"{self.name}: expected 1 to {MAX_LEVELS} levels, found "
                f"{self.levels}; try the root of the block's length"
            )
            raise SettingError(msg)
        check_block(self.name, self.block)

    def guarantee(self, shape: Shape) -> Guarantee:
        """Concave envelope of the variance ``f (1 - f)`` of an entry, over its square.

        It is ``u - u^2`` for entries of u steps up to 1/2, and 1/4 from there on; all
        squares together are s^2.
        """
        d = math.prod(shape)
        length = block_length(self.block, d)
        s = self.levels / (1.0 + scale_slack(self.block, d))
        if 4.0 * s**2 <= length:
            return Unbiased(math.sqrt(length) / s)
        return Unbiased(1.0 + length / (4.0 * s**2))

    def encode(self, x: Tensor, state: State, rng: Rng) -> tuple[Payload, State]:
        """Round up with the probability that keeps the mean."""
        unit, exponent = binary_unit(check_input(self.name, x))
        block = block_length(self.block, unit.numel())
        norms = per_block(unit, block, _norms)
        steps = choose_scales(norms / self.levels, up=True)
        check_reach(self.name, x, largest_sizes(unit, block), steps)
        levels = random_levels(unit, block, steps, rng)
        return level_payload(x, block, steps, exponent, levels), state

    @staticmethod
    def decode(payload: Payload) -> Tensor:
        """Multiply levels by scales."""
        return decode_levels(payload)


def _norms(part: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(part, dim=1, dtype=torch.float64)
    return norms


@dataclass(frozen=True)
class TernGrad(Compressor):
    """Send minus, zero or plus the largest magnitude, unbiased.

    An entry is kept with the probability ``|x_i| / max |x|``.

    Guarantee: ``Unbiased((1 + sqrt d) / 2)``: ``E|C(x)|^2 = |x|_inf |x|_1``, at most
    so many ``|x|^2``, attained by one entry of ``1 + sqrt d`` and others of 1. With
    blocks of m the same with m for d, and 2^-10 for their scales in float16.
    Wire cost: the entropy of the signs and zeros, at most 1.585 bits an entry and
    for Gaussian data 0.79 (d = 2^20; 1.16 in blocks of 256), and a scale of 32 bits
    (16 a block).

    Parameters
    ----------
    block : int, optional
        Entries that share a scale; all of them by default.

    Raises
    ------
    InputError
        With blocks, on entries within 0.1% of the dtype's largest number, whose
        scales may be rounded up beyond it.
    """

    name: ClassVar[str] = "terngrad"

    block: int | None = None

    def __post_init__(self) -> None:
        check_block(self.name, self.block)

    def guarantee(self, shape: Shape) -> Guarantee:
        """Uniform levels with s = 1, see `absmax_zeta`."""
        return Unbiased(absmax_zeta(self.block, 1, shape))

    def encode(self, x: Tensor, state: State, rng: Rng) -> tuple[Payload, State]:
        """Keep entries with a probability proportional to their size."""
        return random_absmax(self.name, x, self.block, 1, rng), state

    @staticmethod
    def decode(payload: Payload) -> Tensor:
        """Multiply levels by scales."""
        return decode_levels(payload)
