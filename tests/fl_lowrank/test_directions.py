"""Directions by number and the grid of scales: exact, portable, uniform."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fl_lowrank.compressors import directions, scales
from fl_lowrank.compressors.directions import directions_at, directions_from
from fl_lowrank.rng import stream


def draw(seed: int, count: int, dimensions: int) -> torch.Tensor:
    return directions_from(stream(seed), 0, count, torch.empty(0, dimensions))


def test_the_directions_never_change() -> None:
    """They are part of the wire format: hexadecimal, so every bit is compared."""
    (row,) = directions_at(stream(0, "pinned"), torch.tensor([123_456_789]), 5)
    expected = [
        "0x1.6cc103bee7584p-1",
        "-0x1.2d464848378a5p-1",
        "-0x1.a4c8828acbe64p-3",
        "0x1.08ee98a87d37ap-3",
        "0x1.2e8482f2dd147p-2",
    ]
    assert [v.hex() for v in row.tolist()] == expected


@pytest.mark.parametrize("dimensions", [2, 3, 8, 64])
def test_numbers_jump(dimensions: int) -> None:
    rng = stream(1)
    last = (1 << 32) // directions.counters_of(dimensions) - 1
    like = torch.empty(0, dimensions)
    for start in (0, 5000, last - 99):
        run = directions_from(rng, start, 100, like)
        numbers = torch.tensor([start + 99, start, start + 7])
        assert torch.equal(directions_at(rng, numbers, dimensions), run[[99, 0, 7]])
    assert directions_at(rng, torch.empty(0, dtype=torch.int64), 4).shape == (0, 4)


def test_quotients_are_rounded_as_ieee_754_says() -> None:
    """As those of Python; sums and products of torch have no other choice."""
    x = torch.exp(20.0 * stream(2).normal(100_000).double())
    y = torch.exp(stream(3).normal(100_000).double())
    pairs = zip(x.tolist(), y.tolist(), strict=True)
    assert (x / y).tolist() == [a / b for a, b in pairs]


def test_threads_and_shapes_do_not_matter() -> None:
    """Vectorised loops and their remainders give the same bits."""
    rng = stream(4)
    whole = directions_from(rng, 0, 1001, torch.empty(0, 7))
    for begin, end in ((0, 1), (3, 10), (500, 1001)):
        part = directions_from(rng, begin, end - begin, torch.empty(0, 7))
        assert torch.equal(part, whole[begin:end])


@pytest.mark.gpu
def test_cuda_draws_the_same() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    rng = stream(5)
    here = directions_from(rng, 0, 100_000, torch.empty(0, 11))
    there = directions_from(rng, 0, 100_000, torch.empty(0, 11, device="cuda"))
    assert torch.equal(here, there.cpu())
    numbers = torch.arange(0, 100_000, 17)
    assert torch.equal(here[numbers], directions_at(rng, numbers.cuda(), 11).cpu())


def test_functions_made_here_are_the_functions() -> None:
    x = stream(6).uniform(100_000).double().clamp(min=2.0**-33)
    assert float((directions._log(x) - x.log()).abs().max()) < 1e-11
    wide = torch.exp2(torch.linspace(-80.0, 79.9, 100_001, dtype=torch.float64))
    root = torch.tensor([math.sqrt(v) for v in wide.tolist()], dtype=torch.float64)
    assert float((directions._sqrt(wide) / root - 1).abs().max()) < 5e-16
    angle = torch.linspace(-math.pi / 4, math.pi / 4, 10_001, dtype=torch.float64)
    sine = angle * directions._polynomial(directions._SINE, angle**2)
    cosine = directions._polynomial(directions._COSINE, angle**2)
    assert float((sine - angle.sin()).abs().max()) < 1e-11
    assert float((cosine - angle.cos()).abs().max()) < 1e-11


@pytest.mark.parametrize("dimensions", [2, 3, 8, 33])
def test_directions_are_uniform(dimensions: int) -> None:
    """Length, mean and moments to the fourth, along axes and a diagonal, at 5 sigma.

    A coordinate t of m has ``E t^2 = 1/m`` and ``E t^4 = 3 / (m (m + 2))``. At most
    170 numbers for a case: 1e-4 by chance.
    """
    n, m = 400_000 // dimensions, dimensions
    u = draw(7, n, m)
    assert float((u.norm(dim=1) - 1).abs().max()) < 1e-14
    diagonal = torch.ones(m, dtype=torch.float64) / math.sqrt(m)
    seen = torch.cat((u, (u @ diagonal)[:, None], (u[:, :1] - u[:, 1:2]) / 2**0.5), 1)
    for power, mean in ((1, 0.0), (2, 1 / m), (3, 0.0), (4, 3 / (m * (m + 2)))):
        sample = seen**power
        sigma = sample.std(0) / math.sqrt(n)
        assert bool(((sample.mean(0) - mean).abs() < 5 * sigma).all()), power
    products = u[:, :1] * u[:, 1:]
    sigma = products.std(0) / math.sqrt(n)
    assert bool((products.mean(0).abs() < 5 * sigma).all())


# --- scales --------------------------------------------------------------------------


@pytest.mark.parametrize("steps", scales.STEPS)
def test_powers(steps: int) -> None:
    levels = torch.arange(-1022 * steps, 1023 * steps)
    found = scales.power(levels, steps).numpy()
    expected = np.exp2(levels.numpy() / steps)
    assert np.max(np.abs(found / expected - 1)) < 1e-13
    assert np.all(np.diff(found) > 0)
    assert float(scales.power(torch.tensor(scales.highest_level(steps)), steps)) > 0
    assert float(scales.power(torch.tensor(-(10**6)), steps)) == 0.0


@pytest.mark.parametrize("steps", scales.STEPS)
def test_nearest_power(steps: int) -> None:
    x = torch.exp(30.0 * stream(8).normal(20_000).double())
    ratio = scales.power(scales.nearest(x, steps), steps) / x
    largest = float((ratio - 1).abs().max())
    assert 0.99 * scales.spread(steps) < largest <= scales.spread(steps) * (1 + 1e-12)
    levels = torch.arange(-50, 50)
    assert torch.equal(scales.nearest(scales.power(levels, steps), steps), levels)


@pytest.mark.parametrize("steps", scales.STEPS)
def test_power_at_random_keeps_the_mean(steps: int) -> None:
    """20,000 equal numbers at the worst place: mean and variance at 5 sigma."""
    ratio = 2.0 ** (1.0 / steps)
    worst = 2.0 * ratio / (1.0 + ratio)
    x = torch.full((20_000,), worst, dtype=torch.float64)
    draws = stream(9).uniform(20_000).double()
    found = scales.power(scales.at_random(x, steps, draws), steps) / worst
    assert len(found.unique()) == 2
    sigma = float(found.std()) / math.sqrt(20_000)
    assert abs(float(found.mean()) - 1) < 5 * sigma
    variance = scales.relative_variance(steps)
    assert float(found.var()) == pytest.approx(variance, rel=0.05)
    exact = scales.power(torch.arange(-9, 9), steps)
    assert torch.equal(
        scales.at_random(exact, steps, torch.zeros(18).double()), torch.arange(-9, 9)
    )
