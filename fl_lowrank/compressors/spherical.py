"""Spherical compression: the number of the first random direction that is near enough.

The tensor is cut into blocks of m entries (the last one filled up with zeros). For a
block x, directions u_1, u_2, ..., uniform on the sphere, are drawn from a seed until
``cos(u_T, x) >= q``; T and a scale are sent, and the receiver jumps to u_T. One draw
is accepted with the probability P of a spherical cap (`bounds.log_cap_probability`),
so T is geometric and costs about 1.5 bits more than ``-log2 P``, the lower bound for a
random direction.

The scale is a power of ``g = 2^(1/L)``, L steps an octave; the L in {1, 2, 4, 8, 16}
with the lowest cost is taken.

- `Spherical`: the projection ``<x, u_T>``, rounded to the nearest power, so that its
  ratio is within ``1 -+ e`` with ``e = (g - 1) / (g + 1)``. With
  ``q^2 (1 - e^2) = 1 - alpha`` the error ``1 - cos^2 (1 - (ratio - 1)^2)`` is at most
  alpha.
- `SphericalUnbiased`: ``|x| / k``, k the mean cosine of accepted directions at
  ``q^2 = 1 - alpha``, rounded to a neighbour at random so that the mean is kept. By
  symmetry ``E u_T = k x / |x|``.

All blocks of a message share the directions, a new seed for each: neither guarantee
needs independent blocks, and a draw then costs each block one inner product, about 7 ns
on one core. A block waits for ``1 / P`` draws, which grows as ``alpha^(-m / 2)``: this
is for small layers, or small m: 10^5 entries take 0.3 s at alpha = 0.2 and m = 8, and
25 s at 0.1 and 10. Settings with ``1 / P`` above 2^22 are refused, and a block that
has waited 32 times as long is sent as it is.

Wire cost: for each block about ``-log2 P + 2`` bits (1.5 for the unbiased form, whose
cap is not narrowed) and the entropy of the scale, 1 to 3 bits for Gaussian data: 1.13
bits an entry at alpha = 0.5 and m = 8, 0.85 at 0.5 and 16, 2.36 at 0.1 and 8.

References
----------
A. Albasyoni, M. Safaryan, L. Condat, P. Richtarik, "Optimal Gradient Compression for
Distributed and Federated Learning", 2020, arXiv 2010.03246, spherical compression.

Differences: in blocks; the projection is sent instead of ``sqrt(1 - alpha) |x|``;
scales are quantised, which both guarantees take into account. The unbiased form is the
paper's over its mean shrinkage.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from ..bounds import cap_mean_cosine, log_cap_probability
from ..codecs.floats import decode_raw, encode_raw
from ..codecs.rice import decode_rice, encode_rice
from ..errors import SettingError
from ..linalg import normalised, working_dtype
from ..rng import Rng
from ..types import (
    Coding,
    Compressor,
    Contractive,
    Field,
    Guarantee,
    Kind,
    Payload,
    Shape,
    State,
    Unbiased,
    check_input,
)
from .common import check_range, draw_seed, finish, need
from .covering import ROWS, cover, mean_draws
from .directions import MAX_DIMENSIONS, counters_of, directions_at
from .scales import (
    STEPS,
    at_random,
    highest_level,
    nearest,
    power,
    relative_variance,
    spread,
)

SPHERICAL = Kind(
    16,
    "spherical",
    ("settings", "scales", "numbers", "plain", "rest"),
    (Coding.VARINTS, Coding.SYMBOLS, Coding.RAW, Coding.INDICES, Coding.RAW),
)

LEAST_ERROR = 0.01
#: Expected draws for a block; more would take too long for each.
MAX_MEAN_DRAWS = 1 << 22
#: Entries times expected draws for a block: some 20 minutes on one core. Texts come
#: from the network, and none may keep a client busy for a day.
MAX_PRODUCTS = 1 << 40
_MAX_SPAN = 2200  # octaves between scales; float64 has fewer


@lru_cache
def _acceptance(alpha: float, block: int) -> tuple[float, int]:
    """Error to ask of the direction, and steps an octave, that cost fewest bits.

    Twice as many steps cost nearly a bit; a smaller cap costs ``-log2 P``.
    """
    choices = []
    for steps in STEPS:
        left = 1.0 - (1.0 - alpha) / (1.0 - spread(steps) ** 2)
        if left > 0.0:
            nats = 0.8 * math.log(steps) - log_cap_probability(block, left)
            choices.append((nats, left, steps))
    _, left, steps = min(choices)
    return left, steps


def _check(who: str, alpha: float, block: int) -> None:
    if not LEAST_ERROR <= alpha < 1.0:
        msg = (
            f"{who}: expected alpha in (0, 1) and at least {LEAST_ERROR}, found "
            f"{alpha}; sparse_dithering takes smaller errors"
        )
        raise SettingError(msg)
    if not 2 <= block <= MAX_DIMENSIONS:
        msg = (
            f"{who}: expected a block of 2 to {MAX_DIMENSIONS} entries, found {block}; "
            "try block=8"
        )
        raise SettingError(msg)


def _check_draws(who: str, alpha: float, block: int, left: float) -> None:
    draws = mean_draws(block, left)
    if draws <= MAX_MEAN_DRAWS:
        return
    fits = (m for m in range(block, 1, -1))
    fit = next(
        m for m in fits if mean_draws(m, _acceptance(alpha, m)[0]) <= MAX_MEAN_DRAWS
    )
    msg = (
        f"{who}: expected at most {MAX_MEAN_DRAWS} draws for a block, found "
        f"{draws:.2g} on average with alpha={alpha} and block={block}; block={fit} "
        "fits this alpha"
    )
    raise SettingError(msg)


def _in_blocks(flat: Tensor, block: int) -> Tensor:
    """Rows of ``block`` entries, (n, block), the last one filled up with zeros."""
    count = -(-flat.numel() // block)
    return torch.nn.functional.pad(flat, (0, count * block - flat.numel())).reshape(
        count, block
    )


@dataclass(frozen=True)
class Caps(Compressor):
    """What `Spherical` and `SphericalUnbiased` share.

    Parameters
    ----------
    alpha : float
        Squared sine of the largest angle accepted, in [0.01, 1).
    block : int
        Entries that share a direction, 2 to 64. Bits an entry fall and draws grow
        exponentially with it.
    """

    alpha: float = 0.5
    block: int = 8

    def __post_init__(self) -> None:
        _check(self.name, self.alpha, self.block)
        _check_draws(self.name, self.alpha, self.block, self.error())

    def error(self) -> float:
        """Squared sine of the largest angle between a block and its direction."""
        return self.alpha

    def check_time(self, numel: int) -> None:
        """Refuse tensors of so many entries that the search would take too long.

        Raises
        ------
        SettingError
            If they do.
        """
        draws = mean_draws(self.block, self.error())
        if numel * draws > MAX_PRODUCTS:
            msg = (
                f"{self.name}: expected at most {MAX_PRODUCTS / numel:.2g} draws for a "
                f"block of a tensor with {numel} entries, found {draws:.2g} on average "
                f"with {self}; choose a smaller block"
            )
            raise SettingError(msg)

    def _send(self, x: Tensor, rng: Rng, dice: Rng | None) -> Payload:
        """Cover the blocks; round the scales to the nearest, or by ``dice``."""
        flat = x.reshape(-1)
        self.check_time(flat.numel())
        _, steps = _acceptance(self.alpha, self.block)
        seed = draw_seed(rng, "directions")
        blocks = _in_blocks(flat, self.block)
        work, peak = normalised(blocks.to(torch.float64))
        found = cover(work, Rng(seed), self.error())
        # The peak's exponent is added to the levels, where it cannot underflow.
        mantissa, exponent = math.frexp(peak)
        if dice is None:
            levels = nearest(found.norms * found.cosines * mantissa, steps)
        else:
            shrinkage = cap_mean_cosine(self.block, self.alpha)
            amounts = found.norms / shrinkage * mantissa
            draws = dice.uniform(amounts.numel(), amounts.device).to(torch.float64)
            levels = at_random(amounts, steps, draws)
        levels = levels + exponent * steps
        top = int(levels.max()) if levels.numel() else 0
        scales = torch.zeros(len(work), dtype=torch.int64, device=x.device)
        # 0 stands for no direction, 1 for the largest scale, 2 for the next, ...
        scales[found.coded] = top + 1 - levels
        settings = torch.tensor([seed, self.block, steps, top])
        numbers = decode_raw(encode_rice(found.numbers), torch.uint8)
        fields = {
            "settings": Field(Coding.VARINTS, settings),
            "scales": Field(Coding.SYMBOLS, scales),
            "numbers": Field(Coding.RAW, numbers),
            "plain": Field(Coding.INDICES, found.plain),
            "rest": Field(Coding.RAW, blocks[found.plain].reshape(-1)),
        }
        return Payload(SPHERICAL, tuple(x.shape), x.dtype, fields)

    @staticmethod
    def decode(payload: Payload) -> Tensor:
        """Jump to the directions, and scale them."""
        seed, block, steps, top = _settings(payload)
        scales, plain = payload.tensor("scales"), payload.tensor("plain")
        rest = payload.tensor("rest")
        count = -(-payload.numel // block)
        need(scales.numel() == count, payload, f"{scales.numel()} scales")
        low, high = (int(v) for v in scales.aminmax()) if count else (0, 0)
        fits = low >= 0 and high <= _MAX_SPAN * steps + 1
        need(fits, payload, f"scales {low} to {high}")
        plain = plain.to(scales.device)
        fits = not plain.numel() or int(plain[-1]) < count
        need(fits and not bool(scales[plain].any()), payload, "plain blocks elsewhere")
        fits = rest.numel() == plain.numel() * block and rest.dtype == payload.dtype
        need(fits, payload, f"{rest.numel()} entries sent as they are")
        coded = scales.nonzero().reshape(-1)
        numbers = _numbers(payload, coded.numel(), block).to(scales.device)
        out = torch.zeros(
            count, block, dtype=working_dtype(payload.dtype), device=scales.device
        )
        out[plain] = rest.reshape(-1, block).to(out)
        for rows, number in zip(
            torch.split(coded, ROWS), torch.split(numbers, ROWS), strict=True
        ):
            scale = power(top + 1 - scales[rows], steps)
            direction = directions_at(Rng(seed), number, block)
            out[rows] = (direction * scale[:, None]).to(out)
        return finish(payload, out.reshape(-1)[: payload.numel])


def _numbers(payload: Payload, count: int, block: int) -> Tensor:
    """Read the numbers of ``count`` directions."""
    packed = payload.tensor("numbers")
    need(packed.dtype == torch.uint8, payload, f"numbers of {packed.dtype}")
    numbers = decode_rice(encode_raw(packed), count)
    highest = int(numbers.max()) if count else 0
    fits = (highest + 1) * counters_of(block) <= 1 << 32
    need(fits, payload, f"direction {highest}")
    return numbers


def _settings(payload: Payload) -> tuple[int, int, int, int]:
    """Seed, entries of a block, steps an octave and the largest level."""
    settings = payload.tensor("settings").tolist()
    need(len(settings) == 4, payload, f"{len(settings)} settings")
    seed, block, steps, top = settings
    fits = (
        payload.dtype.is_floating_point
        and seed >= 0
        and 2 <= block <= MAX_DIMENSIONS
        and steps in STEPS
        and -_MAX_SPAN * steps < top <= highest_level(steps)
    )
    need(fits, payload, f"settings {settings}")
    return seed, block, steps, top


@dataclass(frozen=True)
class Spherical(Caps):
    """Send the number of the first direction near each block, and a scale.

    Guarantee: ``Contractive(1 - alpha)``, for every input in every realisation.
    Wire cost and time: see the module.

    Parameters
    ----------
    alpha : float
        Bound of the relative squared error, in [0.01, 1).
    block : int
        Entries that share a direction, 2 to 64. Bits an entry fall and draws grow
        exponentially with it.
    """

    name: ClassVar[str] = "spherical"

    def error(self) -> float:
        """Less than alpha by what the quantised scale may take."""
        return _acceptance(self.alpha, self.block)[0]

    def guarantee(self, shape: Shape) -> Guarantee:
        """Albasyoni et al. (2020), spherical compression: error at most alpha."""
        self.check_time(math.prod(shape))
        return Contractive(1.0 - self.alpha)

    def encode(self, x: Tensor, state: State, rng: Rng) -> tuple[Payload, State]:
        """Search, project, round the projection."""
        wide = check_input(self.name, x).to(torch.float64)  # others saturate
        check_range(self.name, wide, 2.0 * math.sqrt(self.block))
        return self._send(x.detach(), rng, None), state


@dataclass(frozen=True)
class SphericalUnbiased(Caps):
    """Spherical compression over its mean shrinkage, so that the mean is x.

    Guarantee: ``Unbiased((1 + v) / k^2)``, k the mean cosine of an accepted direction
    and v the variance of a rounded scale, ``(g - 1)^2 / (4 g)``. Without v that is
    below ``1 / (1 - alpha)``. Wire cost and time: see the module.

    Parameters
    ----------
    alpha : float
        Squared sine of the largest angle accepted, in [0.01, 1).
    block : int
        Entries that share a direction, 2 to 64. Bits an entry fall and draws grow
        exponentially with it.
    """

    name: ClassVar[str] = "spherical_unbiased"

    def guarantee(self, shape: Shape) -> Guarantee:
        """By symmetry; scale and direction are drawn independently."""
        self.check_time(math.prod(shape))
        _, steps = _acceptance(self.alpha, self.block)
        shrinkage = cap_mean_cosine(self.block, self.alpha)
        return Unbiased((1.0 + relative_variance(steps)) / shrinkage**2)

    def encode(self, x: Tensor, state: State, rng: Rng) -> tuple[Payload, State]:
        """Search, divide by the mean shrinkage, round at random."""
        shrinkage = cap_mean_cosine(self.block, self.alpha)
        reach = 2.0 * math.sqrt(self.block) / shrinkage
        check_range(self.name, check_input(self.name, x), reach)
        return self._send(x.detach(), rng, rng.child("scales")), state
