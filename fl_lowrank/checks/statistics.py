"""Laws of the guarantees: bias, second moment, contraction.

Where a compressor draws, means over `DRAWS` independent messages are compared with
the declared constants at five standard errors. A law that is kept fails with the
probability 3e-7 (one side) or 6e-7 (two sides) for each number compared, if the
mean is nearly normal; for skewed draws, such as a few random entries, count 1e-4.
Seeds are fixed: a law that has passed once passes again.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import decoders
from ..types import Compressor, Contractive, Shape, Unbiased
from .examples import examples, fresh, gaussian, relative, require, rng_for, rounding

DRAWS = 100
SIGMAS = 5.0
#: Below so many entries a random map may well be exact, or its mean not normal.
FEW_ENTRIES = 64


def _sample(compressor: Compressor, x: Tensor, draws: int) -> tuple[Tensor, Tensor]:
    """Decode ``draws`` first messages; (d,) and (draws, d) in units of the peak."""
    state = fresh(compressor, x)
    rows = []
    for i in range(draws):
        payload, _ = compressor.encode(x, state, rng_for("draw", i))
        rows.append(decoders.decode(payload))
    unit, *others = relative(x, *rows)
    return unit, torch.stack(others)


def _is_random(compressor: Compressor, like: Tensor) -> bool:
    """Whether two streams give two tensors, for normal numbers."""
    x = gaussian(tuple(like.shape), like.dtype, like.device)
    _, pair = _sample(compressor, x, 2)
    return not torch.equal(pair[0], pair[1])


def _mean_and_error(values: Tensor) -> tuple[float, float]:
    """Mean of independent numbers, and its standard error."""
    return float(values.mean()), float(values.std()) / math.sqrt(values.numel())


def check_unbiased_within_5_sigma(
    compressor: Compressor,
    shape: Shape,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> None:
    """``E C(x) = x``, for what declares `Unbiased`.

    Tested along x, along its magnitudes' larger half, along three random signs, and,
    for a bias in any direction, by the inner products of the errors of independent
    pairs, whose mean is the squared length of the bias. False alarms: 6 numbers, so
    4e-6 for each input (see the module).
    """
    if not isinstance(compressor.guarantee(shape), Unbiased):
        return
    for name in ("normal", "89% equal"):
        (x,) = examples(shape, dtype, device, (name,)).values()
        unit, sample = _sample(compressor, x, 2 * DRAWS)
        errors = sample - unit
        slack = rounding(x)
        signs = torch.stack([gaussian((x.numel(),), torch.float64, "cpu", k).sign()
                             for k in range(3)])  # fmt: skip
        upper = torch.where(unit.abs() > unit.abs().median(), unit, 0.0)
        for direction in (unit, upper, *signs):
            mean, error = _mean_and_error(errors @ direction)
            bound = SIGMAS * error + slack * float(direction.norm())
            require(
                abs(mean) <= bound,
                compressor,
                x,
                f"{name}: biased by {mean:.3g} along a direction, {bound:.3g} is "
                f"{SIGMAS:.0f} standard errors",
            )
        mean, error = _mean_and_error((errors[::2] * errors[1::2]).sum(1))
        require(
            mean <= SIGMAS * error + slack**2,
            compressor,
            x,
            f"{name}: the squared bias is {mean:.3g}, with standard error {error:.3g}",
        )


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
            ok = _is_random(compressor, x)
            require(ok, compressor, x, f"zeta = {zeta}, yet no draw differs")
        case Contractive(delta) if delta < 1.0:
            unit, sample = _sample(compressor, x, 1)
            lost = float((sample[0] - unit).norm())
            require(lost > 0.0, compressor, x, f"delta = {delta}, yet nothing is lost")


def check_second_moment_below_zeta(
    compressor: Compressor,
    shape: Shape,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> None:
    """``E|C(x)|^2 <= zeta |x|^2``, for what declares `Unbiased`.

    False alarms: one number, one side, for each of the example tensors.
    """
    guarantee = compressor.guarantee(shape)
    if not isinstance(guarantee, Unbiased):
        return
    for name, x in examples(shape, dtype, device).items():
        unit, sample = _sample(compressor, x, DRAWS)
        mean, error = _mean_and_error(sample.square().sum(1))
        largest = math.sqrt(guarantee.zeta) * float(unit.norm()) + rounding(x)
        require(
            mean <= largest**2 + SIGMAS * error,
            compressor,
            x,
            f"{name}: E|C(x)|^2 / |x|^2 is {mean / float(unit.square().sum()):.6g}, "
            f"zeta is {guarantee.zeta:.6g}",
        )


def check_contraction_below_1_minus_delta(
    compressor: Compressor,
    shape: Shape,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> None:
    """``E|C(x) - x|^2 <= (1 - delta) |x|^2``, for what declares `Contractive`.

    In every realisation where nothing is drawn, else in the mean. The root of the
    bound is widened by `rounding`: 8 units in the last place of the norm. False
    alarms: one number, one side, for each example tensor of a random compressor.
    """
    guarantee = compressor.guarantee(shape)
    if not isinstance(guarantee, Contractive):
        return
    for name, x in examples(shape, dtype, device).items():
        random = _is_random(compressor, x)
        unit, sample = _sample(compressor, x, DRAWS if random else 1)
        squares = (sample - unit).square().sum(1)
        mean, error = _mean_and_error(squares) if random else (float(squares), 0.0)
        largest = math.sqrt(1.0 - guarantee.delta) * float(unit.norm()) + rounding(x)
        require(
            mean <= largest**2 + SIGMAS * error,
            compressor,
            x,
            f"{name}: |C(x) - x|^2 / |x|^2 is {mean / float(unit.square().sum()):.6g}, "
            f"1 - delta is {1.0 - guarantee.delta:.6g}",
        )


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
        unit, sample = _sample(compressor, x, 3)
        for row in sample:
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
        unit, (plain,) = _sample(compressor, x, 1)
        for factor in (4.0, 0.25):
            _, (scaled,) = _sample(compressor, x * factor, 1)
            off = float((scaled - plain).norm())
            require(
                off <= rounding(x * min(factor, 1.0)),
                compressor,
                x,
                f"{name}: C({factor} x) is not {factor} C(x), off by "
                f"{off / max(float(unit.norm()), 1e-300):.3g} of |x|",
            )
