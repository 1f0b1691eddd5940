"""Sparse dithering: uniform levels on the unit sphere, most of them zero.

With ``x = |x| u`` in dimension d and ``h = sqrt(nu / d)`` the levels of ``|u_i|`` are
0, 2h, 4h, ...: the nearest one (`SparseDithering`), or one of the two neighbours at
random so that the mean is kept (`SparseDitheringUnbiased`, ``h = sqrt(omega / d)``).

Wire cost: one scale of 32 bits (64 for float64) and the order-0 entropy of the
signed levels: for Gaussian data 2.73 bits an entry at nu = 0.1 and 2.16 at
omega = 0.25. The paper counts at most ``30 + log2 d + 3.35 d`` and, in expectation,
``30 + log2 d + (log2 3 + 1 / (2 sqrt omega)) d`` bits for its own code.

References
----------
A. Albasyoni, M. Safaryan, L. Condat, P. Richtarik, "Optimal Gradient Compression for
Distributed and Federated Learning", 2020, arXiv 2010.03246, sparse dithering.

Differences: levels are entropy coded jointly instead of an enumerative support with
unary levels. The deterministic form sends ``<x, k> / |k|^2`` as its scale, the
projection on the direction of the levels k: its error is never larger than with
``2 h |x|``, and inputs of constant magnitude are exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

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
from .common import check_range, finish, need

LEVELS = Kind(5, "levels", ("scale", "levels"), (Coding.RAW, Coding.SYMBOLS))

#: Finer levels would drown in the rounding of the working precision.
LEAST_ERROR = 1e-6


def _relative(x: Tensor, variance: float) -> tuple[Tensor, float, float]:
    """Entries in units of ``2 h |x|``; that unit over the peak; the peak."""
    work, peak = normalised(x.reshape(-1))
    norm = math.sqrt(float(work.to(torch.float64).square().sum()))
    unit = 2.0 * math.sqrt(variance / max(work.numel(), 1)) * norm
    return (work / unit if unit > 0.0 else work), unit, peak


def _payload(x: Tensor, scale: float, levels: Tensor) -> Payload:
    dtype = working_dtype(x.dtype)
    if 0.0 < scale < torch.finfo(dtype).tiny:
        dtype = torch.float64  # a subnormal float32 has too few digits
    value = torch.tensor([scale], dtype=dtype)
    fields = {
        "scale": Field(Coding.RAW, value),
        "levels": Field(Coding.SYMBOLS, levels.to(torch.int64)),
    }
    return Payload(LEVELS, tuple(x.shape), x.dtype, fields)


def _decode(payload: Payload) -> Tensor:
    scale, levels = payload.tensor("scale"), payload.tensor("levels")
    need(scale.numel() == 1 and scale.is_floating_point(), payload, "no scale")
    need(levels.numel() == payload.numel, payload, f"{levels.numel()} levels")
    return finish(payload, levels.to(scale.dtype) * scale.to(levels.device))


@dataclass(frozen=True)
class SparseDithering(Compressor):
    """Round to the nearest level of step ``2 |x| sqrt(nu / d)``.

    Guarantee: ``Contractive(1 - nu)``, for every input in every realisation: each
    entry is off by at most h |x|. Wire cost: see the module.

    Parameters
    ----------
    nu : float
        Bound of the relative squared error, in [1e-6, 1). At 0.1, the paper's
        choice, the code length is closest to the lower bound.
    """

    name: ClassVar[str] = "sparse_dithering"

    nu: float = 0.1

    def __post_init__(self) -> None:
        if not LEAST_ERROR <= self.nu < 1.0:
            msg = (
                f"{self.name}: expected nu in (0, 1) and at least {LEAST_ERROR}, "
                f"found {self.nu}; try nu=0.1"
            )
            raise SettingError(msg)

    def guarantee(self, shape: Shape) -> Guarantee:
        """Albasyoni et al. (2020), sparse dithering: error at most nu."""
        del shape
        return Contractive(1.0 - self.nu)

    def encode(self, x: Tensor, state: State, rng: Rng) -> tuple[Payload, State]:
        """Round, then project x on the direction of the levels."""
        del rng
        relative, unit, peak = _relative(check_input(self.name, x), self.nu)
        reach = 1.5 * (1.0 + math.sqrt(self.nu))  # of levels and scale, over the peak
        check_range(self.name, x.to(working_dtype(x.dtype)), reach)
        levels = torch.sign(relative) * torch.floor(relative.abs() + 0.5)
        wide = levels.to(torch.float64)
        square = float(wide.square().sum())
        along = float((wide * relative.to(torch.float64)).sum())
        scale = unit * along / square if square > 0.0 else 0.0
        return _payload(x, scale * peak, levels), state

    @staticmethod
    def decode(payload: Payload) -> Tensor:
        """Scale the levels."""
        return _decode(payload)


@dataclass(frozen=True)
class SparseDitheringUnbiased(Compressor):
    """Round at random to a neighbouring level of step ``2 |x| sqrt(omega / d)``.

    Guarantee: ``Unbiased(1 + omega)``. The same map as QSGD (Alistarh et al., 2017)
    with ``s = sqrt(d / omega) / 2`` levels. Wire cost: see the module.

    Parameters
    ----------
    omega : float
        Bound of the relative variance, at least 1e-6. 0.25 is the paper's choice.
    """

    name: ClassVar[str] = "sparse_dithering_unbiased"

    omega: float = 0.25

    def __post_init__(self) -> None:
        if not LEAST_ERROR <= self.omega < math.inf:
            msg = (
                f"{self.name}: expected omega > 0 and at least {LEAST_ERROR}, found "
                f"{self.omega}; try omega=0.25"
            )
            raise SettingError(msg)

    def guarantee(self, shape: Shape) -> Guarantee:
        """Albasyoni et al. (2020): at most a quarter step squared for each entry."""
        del shape
        return Unbiased(1.0 + self.omega)

    def encode(self, x: Tensor, state: State, rng: Rng) -> tuple[Payload, State]:
        """Round up with the probability that keeps the mean."""
        relative, unit, peak = _relative(check_input(self.name, x), self.omega)
        check_range(self.name, x, 1.0 + 2.0 * math.sqrt(self.omega))
        draws = rng.uniform(relative.numel(), relative.device)
        size = relative.abs()
        lower = torch.floor(size)
        levels = torch.sign(relative) * (lower + (draws < size - lower))
        return _payload(x, unit * peak, levels), state

    @staticmethod
    def decode(payload: Payload) -> Tensor:
        """Scale the levels."""
        return _decode(payload)
