"""Random rounding to a norm times powers of two, with zero below the last of them.

References
----------
S. Horvath, C.-Y. Ho, L. Horvath, A. N. Sahu, M. Canini, P. Richtarik, "Natural
Compression for Distributed Deep Learning", 2019, arXiv 1905.10988: natural dithering
with the 2-norm, and its variance.

Differences: levels are entropy coded with their signs; the constant is
smaller than the published and attained, see `NaturalDithering`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import SettingError
from ..linalg import working_dtype
from ..rng import Rng
from ..types import (
    Coding,
    Compressor,
    Field,
    Guarantee,
    Kind,
    Payload,
    Shape,
    State,
    Unbiased,
    check_input,
)
from .blocks import binary_unit, choose_scales
from .common import check_range, finish, need, shift

BINADES = Kind(
    10,
    "binades",
    ("exponent", "scale", "levels"),
    (Coding.VARINTS, Coding.RAW, Coding.SYMBOLS),
)

MAX_LEVELS = 64


@dataclass(frozen=True)
class NaturalDithering(Compressor):
    """Round at random to a neighbouring one of 0, 2^(1-s) |x|, ..., |x| / 2, |x|.

    Guarantee: ``Unbiased(1 + omega)``. With ``l = 2^(1-s)``, omega is
    ``1/8 + (2/9) d l^2`` while ``l sqrt d <= 9/4``, and ``l sqrt d - 1`` beyond,
    attained by equal magnitudes. (The paper states
    ``1/8 + l sqrt d min(1, l sqrt d)``.) The norm is rounded up to float32, which
    widens l by 2^-23.
    Wire cost: the entropy of the signed levels and 32 bits for the norm: for Gaussian
    data and d = 2^20, 2.13 d bits at s = 11, where l sqrt d is 1, and 3.54 d at s = 16.

    Parameters
    ----------
    levels : int
        Powers of two on each side of zero, s, 1 to 64. ``1 + log2(d) / 2`` or more.

    Raises
    ------
    InputError
        On entries within a factor of two of the dtype's largest number, or if the
        least level does not fit the dtype.
    """

    name: ClassVar[str] = "natural_dithering"

    levels: int = 16

    def __post_init__(self) -> None:
        if not 1 <= self.levels <= MAX_LEVELS:
            msg = (
                f"{self.name}: expected 1 to {MAX_LEVELS} levels, found "
                f"{self.levels}; try 16"
            )
            raise SettingError(msg)

    def guarantee(self, shape: Shape) -> Guarantee:
        """Concave envelope of the variance of an entry, over its square.

        An entry u of the norm varies by ``u (l - u)`` below l, and by at most
        ``u^2 / 8`` above. The common tangent touches at ``u = 4 l / 9``.
        """
        d = max(math.prod(shape), 1)
        least = 2.0 ** (1 - self.levels) * (1.0 + 2.0**-23)
        reach = least * math.sqrt(d)
        if reach >= 2.25:
            return Unbiased(reach)
        return Unbiased(1.125 + 2.0 / 9.0 * reach**2)

    def encode(self, x: Tensor, state: State, rng: Rng) -> tuple[Payload, State]:
        """Round up with the probability that keeps the mean."""
        unit, exponent = binary_unit(check_input(self.name, x))
        norm = torch.linalg.vector_norm(unit, dtype=torch.float64)
        scale = choose_scales(norm.reshape(1), up=True)
        exponent += scale.exponent
        (divisor,) = scale.expanded(unit.dtype)
        if norm > 0.0:
            peak = float(unit.abs().max())
            least = float(divisor) * 2.0 ** (1 - self.levels)
            check_range(
                self.name, x, max(min(2.0, float(divisor) / peak), least / peak)
            )
            unit.div_(divisor)
        size = unit.abs()
        # A size in [2^(e-1), 2^e) is at least level e - 1 + s; the norm is level s.
        mantissa, binade = torch.frexp(size)
        below = torch.where(size > 0.0, binade - 1 + self.levels, 0)
        share = size * 2.0 ** (self.levels - 1)  # of the least level
        up = torch.where(below >= 1, 2.0 * mantissa - 1.0, share)
        draws = rng.uniform(unit.numel(), unit.device)
        levels = below.clamp_(min=0).add_(draws < up).to(torch.int64)
        fields = {
            "exponent": Field(Coding.VARINTS, torch.tensor([exponent - self.levels])),
            "scale": Field(Coding.RAW, scale.values),
            "levels": Field(Coding.SYMBOLS, torch.where(unit < 0, -levels, levels)),
        }
        return Payload(BINADES, tuple(x.shape), x.dtype, fields), state

    @staticmethod
    def decode(payload: Payload) -> Tensor:
        """Look the levels up in a table that is exact for all of them."""
        exponent, scale = payload.tensor("exponent"), payload.tensor("scale")
        levels = payload.tensor("levels")
        need(levels.numel() == payload.numel, payload, f"{levels.numel()} levels")
        need(scale.numel() == 1 and scale.is_floating_point(), payload, "no scale")
        need(exponent.numel() == 1, payload, f"{exponent.numel()} exponents")
        low, high = (int(v) for v in levels.aminmax()) if levels.numel() else (0, 0)
        need(low >= -MAX_LEVELS and high <= MAX_LEVELS, payload, f"{low} to {high}")
        first = int(exponent)
        need(-1200 < first < 1024, payload, f"exponent {first}")
        table = [
            math.copysign(2.0 ** abs(k), k) if k else 0.0 for k in range(low, high + 1)
        ]
        values = torch.tensor(table, dtype=torch.float64, device=levels.device)
        values = shift(values * scale.to(values), first)
        return finish(payload, values.to(working_dtype(payload.dtype))[levels - low])
