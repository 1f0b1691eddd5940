"""Laws of the guarantees over example tensors: bias, second moment, contraction.

What is compared, and how often a kept law fails by chance, stands in `guarantees`.
"""

from __future__ import annotations

import math

import torch

from ..types import Compressor, Contractive, Shape, Unbiased
from .examples import examples, gaussian, require, rounding
from .guarantees import (
    check_error_on,
    check_mean_on,
    check_second_moment_on,
    is_random,
    sample,
)

#: Below so many entries a random map may well be exact, or its mean not normal.
FEW_ENTRIES = 64


def check_unbiased_within_5_sigma(
    compressor: Compressor,
    shape: Shape,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> None:
    """``E C(x) = x``, for what declares `Unbiased`, on two of the examples."""
    if not isinstance(compressor.guarantee(shape), Unbiased):
        return
    for name, x in examples(shape, dtype, device, ("normal", "89% equal")).items():
        check_mean_on(compressor, x, name)


def check_variance_is_not_zero_off_grid(
    compressor: Compressor,
    shape: Shape,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> None:
    """Lose something where a loss is declared: no identity that counts few bytes.

    On normal numbers of at least 64 entries, in float32 or float64: `Unbiased` with
    zeta > 1 varies from draw to draw, `Contractive` with delta < 1 has an error.
    """
    few = math.prod(shape) < FEW_ENTRIES
    if few or dtype not in (torch.float32, torch.float64):
        return
    x = gaussian(shape, dtype, device)
    match compressor.guarantee(shape):
        case Unbiased(zeta) if zeta > 1.0:
            ok = is_random(compressor, x)
            require(ok, compressor, x, f"zeta = {zeta}, yet no draw differs")
        case Contractive(delta) if delta < 1.0:
            unit, draws = sample(compressor, x, 1)
            lost = float((draws[0] - unit).norm())
            require(lost > 0.0, compressor, x, f"delta = {delta}, yet nothing is lost")


def check_second_moment_below_zeta(
    compressor: Compressor,
    shape: Shape,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> None:
    """``E|C(x)|^2 <= zeta |x|^2``, for what declares `Unbiased`, on all examples."""
    guarantee = compressor.guarantee(shape)
    if not isinstance(guarantee, Unbiased):
        return
    for name, x in examples(shape, dtype, device).items():
        check_second_moment_on(compressor, x, name, guarantee.zeta)


def check_contraction_below_1_minus_delta(
    compressor: Compressor,
    shape: Shape,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> None:
    """``E|C(x) - x|^2 <= (1 - delta) |x|^2``, for `Contractive`, on all examples."""
    guarantee = compressor.guarantee(shape)
    if not isinstance(guarantee, Contractive):
        return
    for name, x in examples(shape, dtype, device).items():
        check_error_on(compressor, x, name, guarantee.delta)


def check_norm_nonincreasing(
    compressor: Compressor,
    shape: Shape,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> None:
    """``|C(x)| <= |x|`` in every realisation, where that is declared."""
    if not compressor.norm_nonincreasing:
        return
    for name, x in examples(shape, dtype, device).items():
        unit, draws = sample(compressor, x, 3)
        for row in draws:
            ok = float(row.norm()) <= float(unit.norm()) + rounding(x)
            require(ok, compressor, x, f"{name}: |C(x)| = {float(row.norm()):.6g} |x|")


def check_scaling_equivariant(
    compressor: Compressor,
    shape: Shape,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> None:
    """``C(4^i x) = 4^i C(x)`` for the same draws: units do not matter.

    Powers of four are exact in every dtype and so are their roots.
    """
    names = ("normal", "89% equal", "heavy tails")
    for name, x in examples(shape, dtype, device, names).items():
        unit, (plain,) = sample(compressor, x, 1)
        for factor in (4.0, 0.25):
            _, (scaled,) = sample(compressor, x * factor, 1)
            off = float((scaled - plain).norm())
            require(
                off <= rounding(x * min(factor, 1.0)),
                compressor,
                x,
                f"{name}: C({factor} x) is not {factor} C(x), off by "
                f"{off / max(float(unit.norm()), 1e-300):.3g} of |x|",
            )
