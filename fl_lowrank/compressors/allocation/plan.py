"""The price that spends a budget, and which parts travel together, as predicted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ...errors import SettingError
from ...linalg import largest_magnitude
from ...shapes import matrix_shape
from ...types import check_input
from .factors import Factors, spectrum
from .families import Choice, Family
from .magnitudes import Magnitudes
from .rounding import Rounding
from .selection import Selection

METHODS = ("dither", "topk", "lowrank", "best")
#: Logarithms of the least and the largest price that a budget may need, in squared
#: units a bit: the unit is near the largest entry.
_PRICES = -60.0, 8.0
_HALVINGS = 15
_JOINS = 2  # times that parts are joined, each at a better price


def check_method(who: str, method: str) -> None:
    """Refuse an unknown method."""
    if method not in METHODS:
        msg = f"{who}: there is no method {method!r}; there are {', '.join(METHODS)}"
        raise SettingError(msg)


@dataclass(frozen=True)
class Part:
    """Tensors that travel as one body.

    Attributes
    ----------
    members : tuple[int, ...]
        Their positions in the list of tensors.
    dtype : torch.dtype
        Only tensors of one dtype travel together.
    magnitudes : Magnitudes
        Of all entries.
    factors : Factors, optional
        Of a single matrix, for low rank.
    method : str
        One of `METHODS`.
    exponent : int
        Of the unit of all magnitudes, a power of two.
    """

    members: tuple[int, ...]
    dtype: torch.dtype
    magnitudes: Magnitudes
    factors: Factors | None
    method: str
    exponent: int

    @cached_property
    def families(self) -> list[Family]:
        """What may be chosen."""
        found: list[Family] = [Selection(self.magnitudes)]
        if self.method in ("dither", "best") and len(self.magnitudes.bins[0]):
            found.append(Rounding(self.magnitudes))
        if self.factors is not None:
            found.append(self.factors)
        return found

    def best(self, price: float) -> Choice:
        """Give the choice of least cost."""
        choices = [family.best(price) for family in self.families]
        return min(choices, key=lambda choice: choice.cost(price))

    def joined(self, other: Part) -> Part:
        """Give the part of both."""
        return replace(
            self,
            members=tuple(sorted((*self.members, *other.members))),
            magnitudes=self.magnitudes + other.magnitudes,
            factors=None,
        )


def parts_of(tensors: Sequence[Tensor], method: str) -> list[Part]:
    """Count magnitudes, and for low rank find spectra, in units of the largest entry.

    Raises
    ------
    SettingError
        If there is no such method.
    InputError
        If a tensor is not of finite floating-point numbers.
    """
    check_method("budget", method)
    peaks = [
        float(largest_magnitude(check_input("budget", x))) if x.numel() else 0.0
        for x in tensors
    ]
    exponent = math.frexp(max(peaks, default=0.0))[1]
    parts = []
    for i, x in enumerate(tensors):
        found, factors = Magnitudes.of(x, exponent), None
        m, n = matrix_shape(tuple(x.shape))
        if (
            method in ("lowrank", "best")
            and x.dim() > 1
            and m + n < m * n
            and found.energy > 0.0
        ):
            factors = Factors(spectrum(x, exponent), found.energy, (m, n))
        parts.append(Part((i,), x.dtype, found, factors, method, exponent))
    return parts


def plan(parts: Sequence[Part], bits: float) -> list[tuple[Part, Choice]]:
    """Choose settings of about so many bits together, and join what is better joined.

    Parameters
    ----------
    parts : sequence of Part
        At least one.
    bits : float
        The budget.

    Returns
    -------
    list of tuple of Part and Choice
        The parts, joined or not, in the order of their first tensors.
    """
    for _ in range(_JOINS if len(parts) > 1 else 0):
        parts = _join(parts, _price(parts, bits))
    price = _price(parts, bits)
    return [(part, part.best(price)) for part in parts]


def _price(parts: Sequence[Part], bits: float) -> float:
    """Bisect for the price at which the choices cost the budget."""
    low, high = _PRICES
    for _ in range(_HALVINGS):
        middle = (low + high) / 2.0
        found = sum(part.best(2.0**middle).bits for part in parts)
        low, high = (middle, high) if found > bits else (low, middle)
    return float(2.0**high)


def _join(parts: Sequence[Part], price: float) -> list[Part]:
    """Join neighbours, in the order of their mean magnitudes, while that costs less."""
    done = []
    dtypes = dict.fromkeys(part.dtype for part in parts)
    for dtype in dtypes:
        queue = sorted(
            (part for part in parts if part.dtype == dtype),
            key=lambda part: part.magnitudes.rms,
        )
        costs = [part.best(price).cost(price) for part in queue]
        changed = True
        while changed:
            changed, i = False, 0
            while i + 1 < len(queue):
                both = queue[i].joined(queue[i + 1])
                cost = both.best(price).cost(price)
                if cost < costs[i] + costs[i + 1]:
                    queue[i : i + 2], costs[i : i + 2] = [both], [cost]
                    changed = True
                else:
                    i += 1
        done += queue
    return sorted(done, key=lambda part: part.members[0])
