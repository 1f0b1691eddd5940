"""natural and natural_stochastic: every binade, and inputs that attain the bounds."""

from __future__ import annotations

import math

import pytest
import torch

import fl_lowrank as fll
from fl_lowrank import Contractive, Natural, NaturalStochastic, Unbiased
from fl_lowrank.errors import InputError
from tests.fl_lowrank.compressing import error, moments, send, signs

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@pytest.mark.parametrize("exponent", [-147, -140, -126, -10, 0, 100, 125])
def test_natural_bound_is_attained_at_three_halves(exponent: int) -> None:
    x = signs(100) * math.ldexp(1.5, exponent)
    assert error(x, send(Natural(), x)) == pytest.approx(1 / 9, rel=1e-9)
    assert Natural().guarantee((100,)) == Contractive(8 / 9)


@pytest.mark.parametrize("exponent", [-140, -126, 0, 99])
def test_natural_stochastic_bound_is_attained_at_four_thirds(exponent: int) -> None:
    """60 draws of 3000 entries at 5 sigma: 6e-7 by chance."""
    x = signs(3000) * math.ldexp(4 / 3, exponent)
    mean, sigma = moments(NaturalStochastic(), x, 60)
    assert mean == pytest.approx(1 / 8, abs=5 * sigma)
    assert sigma < 0.001
    assert NaturalStochastic().guarantee((3000,)) == Unbiased(9 / 8)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_binade_of_every_dtype(dtype: torch.dtype) -> None:
    """Against the definition in exact arithmetic: Python's numbers are float64."""
    info = torch.finfo(dtype)
    lowest = round(math.log2(info.tiny * info.eps))
    highest = round(math.log2(info.max)) - 1
    steps = 1 + torch.arange(8, dtype=torch.float64) / 8
    powers = [math.ldexp(1.0, a) for a in range(lowest, highest)]
    grid = torch.outer(torch.tensor(powers, dtype=torch.float64), steps).reshape(-1)
    x = torch.cat((grid, -grid, torch.zeros(2, dtype=torch.float64))).to(dtype)
    y = send(Natural(), x).tolist()
    for value, found in zip(x.tolist(), y, strict=True):
        if value == 0.0:
            assert found == 0.0
            continue
        lower = math.ldexp(0.5, math.frexp(abs(value))[1])
        nearer = lower if abs(value) < 1.5 * lower else 2 * lower
        assert found == math.copysign(nearer, value)


@pytest.mark.parametrize("dtype", DTYPES)
def test_powers_of_two_are_exact(dtype: torch.dtype) -> None:
    x = torch.tensor([1.0, -0.5, 2.0**-20, 0.0, -(2.0**13)]).to(dtype)
    for compressor in (Natural(), NaturalStochastic()):
        assert torch.equal(send(compressor, x), x)


@pytest.mark.parametrize("compressor", [Natural(), NaturalStochastic()], ids=str)
def test_near_the_largest_number(compressor: fll.Compressor) -> None:
    x = torch.tensor([1.0, 60000.0], dtype=torch.float16)
    with pytest.raises(InputError, match=f"{compressor.name}: .*6e\\+04 times 2"):
        compressor.encode(x, {}, fll.rng.stream(0))
    below = torch.tensor([1.0, -32000.0], dtype=torch.float16)
    assert send(compressor, below)[1] in (-16384.0, -32768.0)


def test_stochastic_rounding_goes_up_as_often_as_it_must() -> None:
    """Seven shares of 20,000 draws at 5 sigma: 4e-6 by chance."""
    n = 20_000
    for eighths in range(1, 8):
        share = eighths / 8
        y = send(NaturalStochastic(), torch.full((n,), 1 + share), eighths)
        assert set(y.tolist()) == {1.0, 2.0}
        up = float((y == 2.0).sum()) / n
        assert abs(up - share) < 5 * math.sqrt(share * (1 - share) / n)


def test_normal_numbers_cost_less_than_three_bits() -> None:
    payload, _ = Natural().encode(
        fll.rng.stream(5).normal(100_000), {}, fll.rng.stream(0)
    )
    assert len(fll.pack(payload)) * 8 < 3.6 * 100_000
