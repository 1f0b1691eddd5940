"""Uniform quantisation in blocks: levels at multiples of the largest magnitude over s.

With b bits there are ``s = 2^(b-1) - 1`` levels on each side of zero, which is one
itself (mid-tread). With 1 bit there is no such level: an entry sends its sign, and
stands for plus or minus a common magnitude.

Wire cost: at most b bits an entry, since levels are entropy coded, and 16 for the
scale of each block: for Gaussian data in blocks of 256, 7.44 + 0.06 bits at b = 8
and 3.28 + 0.06 at b = 4.

References
----------
A. Beznosikov et al., "On Biased Compression for Distributed Learning", JMLR 2023,
arXiv 2002.12410 (general rounding, biased and unbiased); T. Dettmers, M. Lewis,
S. Shleifer, L. Zettlemoyer, "8-bit Optimizers via Block-wise Quantization", ICLR 2022,
arXiv 2110.02861 (blocks). Constants: of this package, see `Uniform` and
`UniformStochastic`; both are attained.

Differences: levels are entropy coded; scales are float16, rounded up before the
levels are chosen, so that no entry lies beyond level s.
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
    Contractive,
    Guarantee,
    Payload,
    Shape,
    State,
    Unbiased,
    check_input,
)
from .blocks import (
    Scales,
    binary_unit,
    block_length,
    check_block,
    check_reach,
    choose_scales,
    decode_levels,
    in_steps,
    largest_sizes,
    level_payload,
    per_block,
    scale_slack,
)
from .sign import mean_signs, mean_signs_delta, random_signs, random_signs_zeta


def steps_below(levels: int, slack: float) -> tuple[float, float]:
    """Give the least steps to the largest magnitude, and their distance from s."""
    steps = levels / (1.0 + slack)
    return steps, min(levels - steps, 0.5)


def random_levels(unit: Tensor, block: int, steps: Scales, rng: Rng) -> Tensor:
    """Round entries to one of the two neighbouring levels, so that the mean is kept.

    ``unit`` is used up.
    """
    draws = rng.uniform(unit.numel(), unit.device)
    signed = in_steps(unit, block, steps)
    size = signed.abs()
    lower = size.floor()
    return lower.add_(draws < size.sub_(lower)).copysign_(signed)


def random_absmax(
    who: str, x: Tensor, block: int | None, levels: int, rng: Rng
) -> Payload:
    """Random levels, of which ``levels`` reach the largest magnitude of a block."""
    unit, exponent = binary_unit(check_input(who, x))
    length = block_length(block, unit.numel())
    tops = largest_sizes(unit, length)
    steps = choose_scales(tops / levels, up=True)
    check_reach(who, x, tops, steps)
    rounded = random_levels(unit, length, steps, rng)
    return level_payload(x, length, steps, exponent, rounded)


def absmax_zeta(block: int | None, levels: int, shape: Shape) -> float:
    """Second moment of `random_absmax`, over the square.

    In units of a step an entry u varies by ``f (1 - f)``, f its distance from the
    level below. With the largest magnitude at a, s or a little less, and v its
    variance, the worst others have a common u below 1/2, and omega is the root of
    ``(a^2 omega - v) (1 + omega) = (m - 1) / 4``. Without rounding of the scale that
    is ``(sqrt(m - 1 + s^2) - s) / (2 s)``.
    """
    d = math.prod(shape)
    others = block_length(block, d) - 1
    a, off = steps_below(levels, scale_slack(block, d))
    v = off * (1.0 - off)
    b = a**2 - v
    # Of two forms of the root the one that does not cancel: b is positive.
    omega = 2.0 * (v + others / 4.0) / (b + math.sqrt(b**2 + a**2 * (4.0 * v + others)))
    return 1.0 + omega


@dataclass(frozen=True)
class _InBlocks(Compressor):
    """What both forms share."""

    bits: int = 8
    block: int = 256

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 16:
            msg = f"{self.name}: expected 1 to 16 bits, found {self.bits}; try bits=8"
            raise SettingError(msg)
        check_block(self.name, self.block)

    @property
    def levels(self) -> int:
        """Levels on each side of zero; none with one bit."""
        return (1 << (self.bits - 1)) - 1


@dataclass(frozen=True)
class Uniform(_InBlocks):
    """Round to the nearest level, then rescale each block once.

    What is sent is ``<x, k> / |k|^2`` for the levels k of a block: the projection on
    their direction, never farther from x than the levels themselves. With 1 bit it is
    the mean magnitude, and this is ``sign(block=...)``.

    Guarantee: ``Contractive(delta)`` with ``1 - delta = (m-1) / (4 s^2 + m - 1)`` in
    blocks of m, attained by one entry and m - 1 of half a step. float16 scales widen
    it to ``(m - 1 + 4 e^2) / (4 a^2 + m - 1)``, ``a = s / (1 + 2^-10)`` and e the
    distance of a from s, at most 1/2. ``Contractive(1 / m)`` with 1 bit.
    Wire cost: see the module.

    Parameters
    ----------
    bits : int
        1 to 16.
    block : int
        Entries that share a scale.
    """

    name: ClassVar[str] = "uniform"

    def guarantee(self, shape: Shape) -> Guarantee:
        """Bound the error; others than the largest entry lose at most half a step."""
        if self.bits == 1:
            return Contractive(mean_signs_delta(self.block, shape))
        d = math.prod(shape)
        others = block_length(self.block, d) - 1
        a, off = steps_below(self.levels, scale_slack(self.block, d))
        return Contractive((4.0 * a**2 - 4.0 * off**2) / (4.0 * a**2 + others))

    def encode(self, x: Tensor, state: State, rng: Rng) -> tuple[Payload, State]:
        """Round, then project each block on its levels."""
        del rng
        if self.bits == 1:
            return mean_signs(self.name, x, self.block), state
        unit, exponent = binary_unit(check_input(self.name, x))
        block = block_length(self.block, unit.numel())
        steps = choose_scales(largest_sizes(unit, block) / self.levels, up=True)
        exact = in_steps(unit, block, steps)
        levels = exact.round()
        along = per_block(exact.mul_(levels), block, _sums)
        squares = per_block(levels.square(), block, _sums)
        ratio = along / torch.where(squares > 0.0, squares, 1.0)
        values = (steps.values * ratio).to(steps.values.dtype)
        scales = Scales(values, steps.exponent)
        return level_payload(x, block, scales, exponent, levels), state

    @staticmethod
    def decode(payload: Payload) -> Tensor:
        """Multiply levels by scales."""
        return decode_levels(payload)


def _sums(part: Tensor) -> Tensor:
    return part.sum(1, dtype=torch.float64)


@dataclass(frozen=True)
class UniformStochastic(_InBlocks):
    """Round at random to one of the two neighbouring levels, unbiased.

    With 1 bit every entry becomes plus or minus the largest magnitude of its block.

    Guarantee: ``Unbiased(1 + omega)``, ``omega = (sqrt(m - 1 + s^2) - s) / (2 s)`` in
    blocks of m, attained by one entry and m - 1 of equal, smaller size. float16
    scales widen it, see `absmax_zeta`. ``Unbiased(m)`` with 1 bit, times
    ``(1 + 2^-10)^2``.
    Wire cost: see the module.

    Parameters
    ----------
    bits : int
        1 to 16.
    block : int
        Entries that share a scale.

    Raises
    ------
    InputError
        If the largest entry, rounded up to whole steps, does not fit the dtype: only
        within 0.1% of its largest number.
    """

    name: ClassVar[str] = "uniform_stochastic"

    def guarantee(self, shape: Shape) -> Guarantee:
        """See `absmax_zeta`."""
        if self.bits == 1:
            return Unbiased(random_signs_zeta(self.block, shape))
        return Unbiased(absmax_zeta(self.block, self.levels, shape))

    def encode(self, x: Tensor, state: State, rng: Rng) -> tuple[Payload, State]:
        """Round up with the probability that keeps the mean."""
        if self.bits == 1:
            return random_signs(self.name, x, self.block, rng), state
        payload = random_absmax(self.name, x, self.block, self.levels, rng)
        return payload, state

    @staticmethod
    def decode(payload: Payload) -> Tensor:
        """Multiply levels by scales."""
        return decode_levels(payload)
