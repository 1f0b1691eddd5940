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
from .common import check_peak, finish, need
from .levels import Scaled, nearest_levels, to_levels

LEVELS = Kind(5, "levels", ("scale", "levels"), (Coding.RAW, Coding.SYMBOLS))

#: Finer levels would drown in the rounding of the working precision.
LEAST_ERROR = 1e-6


def levels_payload(x: Tensor, scale: float, levels: Tensor) -> Payload:
    """Make the message that x is ``scale`` times the levels."""
    fields = {
        "scale": Field(Coding.RAW, scale_tensor(x, scale)),
        "levels": Field(Coding.SYMBOLS, levels),
    }
    return Payload(LEVELS, tuple(x.shape), x.dtype, fields)


def scale_tensor(x: Tensor, scale: float) -> Tensor:
    """Give a scale of x as it is sent, in working precision."""
    dtype = working_dtype(x.dtype)
    if 0.0 < scale < torch.finfo(dtype).tiny:
        dtype = torch.float64  # a subnormal float32 has too few digits
    return torch.tensor([scale], dtype=dtype)


def _decode(payload: Payload) -> Tensor:
    scale, levels = payload.tensor("scale"), payload.tensor("levels")
    need(scale.numel() == 1 and scale.is_floating_point(), payload, "no scale")
    need(levels.numel() == payload.numel, payload, f"{levels.numel()} levels")
    return finish(payload, levels.to(scale.dtype).mul_(scale.to(levels.device)))


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
        scaled = Scaled.of(check_input(self.name, x))
        reach = 1.5 * (1.0 + math.sqrt(self.nu))  # of levels and scale, over the peak
        check_peak(self.name, scaled.peak, working_dtype(x.dtype), reach)
        step = 2.0 * math.sqrt(self.nu) * scaled.rms
        rounded = nearest_levels(scaled, step)
        scale = step * rounded.gain * scaled.peak
        return levels_payload(x, scale, rounded.levels), state

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
        scaled = Scaled.of(check_input(self.name, x))
        check_peak(self.name, scaled.peak, x.dtype, 1.0 + 2.0 * math.sqrt(self.omega))
        step = 2.0 * math.sqrt(self.omega) * scaled.rms

        def at_random(q: Tensor, block: slice) -> Tensor:
            draws = rng.uniform(q.numel(), q.device, block.start)
            size = q.abs()
            lower = size.floor()
            up = size.sub_(lower).sub_(draws).ceil_()  # 1 if the draw is below the rest
            return lower.add_(up).mul_(q.sign_())

        levels = to_levels(scaled, step, at_random)
        return levels_payload(x, step * scaled.peak, levels), state

    @staticmethod
    def decode(payload: Payload) -> Tensor:
        """Scale the levels."""
        return _decode(payload)
