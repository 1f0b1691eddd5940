"""The guarantee of a compressor, tried on one tensor.

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
from ..types import Compressor, Contractive, Unbiased
from .examples import fresh, gaussian, relative, require, rng_for, rounding

DRAWS = 100
SIGMAS = 5.0


def sample(compressor: Compressor, x: Tensor, draws: int) -> tuple[Tensor, Tensor]:
    """Decode ``draws`` first messages; (d,) and (draws, d) in units of the peak."""
    state = fresh(compressor, x)
    rows = []
    for i in range(draws):
        payload, _ = compressor.encode(x, state, rng_for("draw", i))
        rows.append(decoders.decode(payload))
    unit, *others = relative(x, *rows)
    return unit, torch.stack(others)


def is_random(compressor: Compressor, like: Tensor) -> bool:
    """Whether two streams give two tensors, for normal numbers."""
    x = gaussian(tuple(like.shape), like.dtype, like.device)
    _, pair = sample(compressor, x, 2)
    return not torch.equal(pair[0], pair[1])


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Mean of independent numbers, and its standard error."""
    return float(values.mean()), float(values.std()) / math.sqrt(values.numel())


def check_guarantee_on(compressor: Compressor, x: Tensor, name: str = "x") -> None:
    """Hold the declared guarantee against one tensor, such as a real update.

    Parameters
    ----------
    compressor : Compressor
        Any.
    x : Tensor
        Of any shape and floating-point dtype, on any device.
    name : str
        What to call it in a failure.

    Raises
    ------
    AssertionError
        If `Unbiased` or `Contractive` is declared for the shape and not kept.
    """
    guarantee = compressor.guarantee(tuple(x.shape))
    if isinstance(guarantee, Unbiased):
        check_mean_on(compressor, x, name)
        check_second_moment_on(compressor, x, name, guarantee.zeta)
    elif isinstance(guarantee, Contractive):
        check_error_on(compressor, x, name, guarantee.delta)


def check_mean_on(compressor: Compressor, x: Tensor, name: str) -> None:
    """``E C(x) = x``.

    Tested along x, along its magnitudes' larger half, along three random signs, and,
    for a bias in any direction, by the inner products of the errors of independent
    pairs, whose mean is the squared length of the bias. False alarms: 6 numbers, so
    4e-6 (see the module).
    """
    unit, draws = sample(compressor, x, 2 * DRAWS)
    errors = draws - unit
    slack = rounding(x)
    signs = [gaussian((x.numel(),), torch.float64, "cpu", k).sign() for k in range(3)]
    upper = torch.where(unit.abs() > unit.abs().median(), unit, 0.0)
    for direction in (unit, upper, *signs):
        mean, error = mean_and_error(errors @ direction)
        bound = SIGMAS * error + slack * float(direction.norm())
        require(
            abs(mean) <= bound,
            compressor,
            x,
            f"{name}: biased by {mean:.3g} along a direction, {bound:.3g} is "
            f"{SIGMAS:.0f} standard errors",
        )
    mean, error = mean_and_error((errors[::2] * errors[1::2]).sum(1))
    require(
        mean <= SIGMAS * error + slack**2,
        compressor,
        x,
        f"{name}: the squared bias is {mean:.3g}, with standard error {error:.3g}",
    )


def check_second_moment_on(
    compressor: Compressor, x: Tensor, name: str, zeta: float
) -> None:
    """``E|C(x)|^2 <= zeta |x|^2``. False alarms: one number, one side."""
    unit, draws = sample(compressor, x, DRAWS)
    mean, error = mean_and_error(draws.square().sum(1))
    largest = math.sqrt(zeta) * float(unit.norm()) + rounding(x)
    require(
        mean <= largest**2 + SIGMAS * error,
        compressor,
        x,
        f"{name}: E|C(x)|^2 / |x|^2 is {mean / float(unit.square().sum()):.6g}, "
        f"zeta is {zeta:.6g}",
    )


def check_error_on(compressor: Compressor, x: Tensor, name: str, delta: float) -> None:
    """``E|C(x) - x|^2 <= (1 - delta) |x|^2``.

    In every realisation where nothing is drawn, else in the mean. The root of the
    bound is widened by `rounding`: 8 units in the last place of the norm. False
    alarms: one number, one side, for a random compressor.
    """
    random = is_random(compressor, x)
    unit, draws = sample(compressor, x, DRAWS if random else 1)
    squares = (draws - unit).square().sum(1)
    mean, error = mean_and_error(squares) if random else (float(squares), 0.0)
    largest = math.sqrt(1.0 - delta) * float(unit.norm()) + rounding(x)
    require(
        mean <= largest**2 + SIGMAS * error,
        compressor,
        x,
        f"{name}: |C(x) - x|^2 / |x|^2 is {mean / float(unit.square().sum()):.6g}, "
        f"1 - delta is {1.0 - delta:.6g}",
    )
