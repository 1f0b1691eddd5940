"""Powers of two: a sign and an exponent for each entry.

For ``2^a <= |t| < 2^(a+1)`` the value t becomes ``sign(t) 2^a`` or
``sign(t) 2^(a+1)``: the nearer one (`Natural`), or the upper one with probability
``(|t| - 2^a) / 2^a`` (`NaturalStochastic`).

Wire cost: a sign bit for each nonzero entry and the entropy of the exponents: 3.54
bits an entry for Gaussian data, about 2 for the survivors of ``topk`` (the paper
counts 9).

References
----------
S. Horvath, C.-Y. Ho, L. Horvath, A. N. Sahu, M. Canini, P. Richtarik, "Natural
Compression for Distributed Deep Learning", 2019, arXiv 1905.10988. A. Beznosikov et
al., "On Biased Compression for Distributed Learning", JMLR 2023, arXiv 2002.12410
(the deterministic form).

Differences: exponents are entropy coded relative to the largest; all dtypes,
subnormal numbers and zeros are covered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..linalg import working_dtype
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
from .common import check_range, finish, need

POWERS = Kind(
    4,
    "powers",
    ("top", "exponents", "signs"),
    (Coding.VARINTS, Coding.SYMBOLS, Coding.BITS),
)

_MAX_EXPONENTS = 2200  # more than float64 has, subnormals included


def _powers(x: Tensor, up: Tensor, exponent: Tensor) -> Payload:
    """Payload of ``sign(x) 2^(exponent - 1)``, doubled where ``up``."""
    flat = x.reshape(-1)
    level = exponent - 1 + up.to(exponent.dtype)
    nonzero = flat != 0
    top = int(level[nonzero].max()) if bool(nonzero.any()) else 0
    # 0 stands for zero, 1 for the largest power, 2 for half of it, ...
    symbols = torch.where(nonzero, top + 1 - level, torch.zeros_like(level))
    fields = {
        "top": Field(Coding.VARINTS, torch.tensor([top])),
        "exponents": Field(Coding.SYMBOLS, symbols),
        "signs": Field(Coding.BITS, torch.signbit(flat[nonzero])),
    }
    return Payload(POWERS, tuple(x.shape), x.dtype, fields)


def _split(who: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mantissa in [0.5, 1) and integer exponent of the magnitudes."""
    check_range(who, check_input(who, x), 2.0 if x.numel() else 1.0)
    flat = x.detach().reshape(-1)
    return torch.frexp(flat.abs().to(working_dtype(x.dtype)))


def _decode(payload: Payload) -> Tensor:
    """Look the powers up in a table that is exact for all of them."""
    top, symbols = payload.tensor("top"), payload.tensor("exponents")
    signs = payload.tensor("signs")
    need(top.numel() == 1 and -1100 < int(top) < 1024, payload, "no usable exponent")
    need(symbols.numel() == payload.numel, payload, f"{symbols.numel()} exponents")
    low, high = (int(v) for v in symbols.aminmax()) if symbols.numel() else (0, 0)
    need(low >= 0 and high <= _MAX_EXPONENTS, payload, f"exponents {low} to {high}")
    nonzero = symbols != 0
    need(int(nonzero.sum()) == signs.numel(), payload, f"{signs.numel()} signs")
    table = [0.0] + [math.ldexp(1.0, int(top) - i) for i in range(high)]
    work = working_dtype(payload.dtype)
    out = torch.tensor(table, dtype=work, device=symbols.device)[symbols]
    negative = signs.to(out.device)
    if negative.numel() < out.numel():
        negative = torch.zeros_like(nonzero).masked_scatter_(nonzero, negative)
    return finish(payload, torch.where(negative, -out, out))


@dataclass(frozen=True)
class Natural(Compressor):
    """Round every entry to the nearest power of two.

    Guarantee: ``Contractive(8/9)``: the ratio lies in [2/3, 4/3], so the squared
    error is at most 1/9, attained at 1.5 times a power of two.
    Wire cost: see the module.

    Raises
    ------
    InputError
        On entries within a factor of two of the dtype's largest number.
    """

    name: ClassVar[str] = "natural"
    elementwise: ClassVar[bool] = True

    def guarantee(self, shape: Shape) -> Guarantee:
        """Beznosikov et al. (2023), deterministic exponential dithering, base 2."""
        del shape
        return Contractive(8.0 / 9.0)

    def encode(self, x: Tensor, state: State, rng: Rng) -> tuple[Payload, State]:
        """Round up from 1.5 times the lower power on."""
        del rng
        mantissa, exponent = _split(self.name, x)
        return _powers(x.detach(), mantissa >= 0.75, exponent), state

    @staticmethod
    def decode(payload: Payload) -> Tensor:
        """Look the powers up."""
        return _decode(payload)


@dataclass(frozen=True)
class NaturalStochastic(Compressor):
    """Round every entry to one of its two neighbouring powers of two, unbiased.

    Guarantee: ``Unbiased(9/8)``, attained at 4/3 times a power of two (Horvath et
    al., 2019, theorem 3). Wire cost: see the module.

    Raises
    ------
    InputError
        On entries within a factor of two of the dtype's largest number.
    """

    name: ClassVar[str] = "natural_stochastic"
    elementwise: ClassVar[bool] = True

    def guarantee(self, shape: Shape) -> Guarantee:
        """Horvath et al. (2019), theorem 3."""
        del shape
        return Unbiased(9.0 / 8.0)

    def encode(self, x: Tensor, state: State, rng: Rng) -> tuple[Payload, State]:
        """Round up with the probability that keeps the mean."""
        mantissa, exponent = _split(self.name, x)
        draws = rng.uniform(mantissa.numel(), mantissa.device)
        return _powers(x.detach(), draws < 2.0 * mantissa - 1.0, exponent), state

    @staticmethod
    def decode(payload: Payload) -> Tensor:
        """Look the powers up."""
        return _decode(payload)
