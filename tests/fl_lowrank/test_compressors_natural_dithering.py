"""natural_dithering: levels, frequencies, and the least constant."""

from __future__ import annotations

import math

import pytest
import torch

import fl_lowrank as fll
from fl_lowrank import NaturalDithering, Unbiased
from fl_lowrank.errors import InputError, SettingError
from tests.fl_lowrank.compressing import error, moments, send, signs


def omega(levels: int, d: int) -> float:
    """Relative variance that is declared."""
    guarantee = NaturalDithering(levels).guarantee((d,))
    assert isinstance(guarantee, Unbiased)
    return guarantee.omega


@pytest.mark.parametrize("levels", [1, 3, 6])
def test_variance_of_few_levels_is_attained_by_equal_magnitudes(levels: int) -> None:
    """Where the least level is 9/4 of them or more; 30 draws, 5 sigma."""
    d = 1 << 14
    expected = 128 * 2.0 ** (1 - levels) - 1
    mean, sigma = moments(NaturalDithering(levels), signs(d), 30)
    assert mean == pytest.approx(expected, abs=5 * sigma)
    assert 5 * sigma < 0.1 * expected
    assert omega(levels, d) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("large", [2 / 3, 1 / 3])
def test_variance_is_attained_by_two_sizes(large: float) -> None:
    """One of 4/3 times a power of two, others of 4/9 of the least level; 60 draws."""
    levels = 6
    least = 2.0 ** (1 - levels)
    small = 4 * least / 9
    count = round((1 - large**2) / small**2)
    x = signs(count + 1) * small
    x[0] = large
    expected = 1 / 8 + 2 / 9 * (count + 1) * least**2
    mean, sigma = moments(NaturalDithering(levels), x, 60)
    assert mean == pytest.approx(expected, abs=5 * sigma, rel=1e-3)
    assert 5 * sigma < 0.1 * expected
    assert omega(levels, count + 1) == pytest.approx(expected, rel=1e-5)


def test_many_levels_leave_one_eighth() -> None:
    """Every size 4/3 times a power of two; 30 draws, 5 sigma."""
    d = 1 << 12
    x = signs(d) * 4 / 3
    x[: d // 2] *= 0.5
    x *= 2.0**8 / float(x.double().norm())  # sizes stay at 4/3 of a power only ...
    mean, sigma = moments(NaturalDithering(30), x, 30)
    assert mean <= omega(30, d) + 5 * sigma  # ... if the norm is one
    assert omega(30, d) == pytest.approx(1 / 8, rel=1e-9)
    n = 9 * 4**4 // 16  # so many of (4/3) 2^-4 have norm one
    x = signs(n) * 4 / 3 / 16
    mean, sigma = moments(NaturalDithering(30), x, 60)
    assert mean == pytest.approx(1 / 8, abs=5 * sigma)
    assert 5 * sigma < 0.02


@pytest.mark.parametrize("levels", [1, 2, 4, 8, 12, 40])
@pytest.mark.parametrize("d", [1, 10, 1000, 10**6])
def test_the_constant_is_below_the_published_one(levels: int, d: int) -> None:
    reach = 2.0 ** (1 - levels) * math.sqrt(d)
    published = 1 / 8 + reach * min(1.0, reach)
    assert omega(levels, d) <= published * (1 + 1e-6)
    assert omega(levels, d) >= 1 / 8


@pytest.mark.parametrize("levels", [1, 4, 9])
def test_variance_is_at_most_declared(levels: int) -> None:
    """20 draws at 5 sigma."""
    d = 2000
    normal = fll.rng.stream(50).normal(d)
    for x in (normal, normal**5, (torch.arange(d) == 7).float(), 1e-40 * signs(d)):
        mean, sigma = moments(NaturalDithering(levels), x, 20)
        assert mean <= omega(levels, d) + 5 * sigma


def test_levels_are_powers_of_two_of_the_norm() -> None:
    x = fll.rng.stream(51).normal(3000)
    y = send(NaturalDithering(8), x)
    ratio = y.abs().double() / float(x.double().norm())
    powers = ratio[ratio > 0].log2()
    assert float((powers - powers.round()).abs().max()) < 1e-6
    assert int(powers.round().min()) == -7
    assert bool((y * x >= 0).all())
    # Never farther than a neighbour.
    size = x.abs().double() / float(x.double().norm())
    above = size >= 2.0**-7
    assert bool((ratio[above] <= 2 * size[above]).all())
    assert bool((ratio[above] * 2 >= size[above]).all())
    assert set(ratio[~above].tolist()) <= {0.0, float(ratio[ratio > 0].min())}


@pytest.mark.parametrize("share", [0.2, 0.7])
def test_goes_up_as_often_as_it_must(share: float) -> None:
    """20,000 equal entries at 5 sigma, below and above the least level."""
    n, levels = 20_000, 12
    unit = 2.0**-11
    for low, high in ((0.0, unit), (2 * unit, 4 * unit)):
        x = torch.full((n + 1,), low + share * (high - low))
        x[-1] = math.sqrt(1.0 - n * float(x[0]) ** 2)
        y = send(NaturalDithering(levels), x, 3)[:-1]
        assert y.min() == pytest.approx(low, rel=1e-5)
        assert y.max() == pytest.approx(high, rel=1e-5)
        assert len(y.unique()) == 2
        up = float((y > low * 1.5).sum()) / n
        assert abs(up - share) < 5 * math.sqrt(share * (1 - share) / n)


@pytest.mark.parametrize("magnitude", [1e-44, 1e-30, 1e30, 3e37])
def test_magnitude_does_not_matter(magnitude: float) -> None:
    """Also where the norm is beyond float32; subnormal numbers lose their last place.

    50 draws: in the mean within omega, at 5 sigma.
    """
    d = 400
    x = (fll.rng.stream(52).normal(d).clamp(-4, 4) / 4 * magnitude).to(torch.float32)
    mean, sigma = moments(NaturalDithering(9), x, 50)
    place = 1e-45 * math.sqrt(d) / float(x.double().norm())
    assert math.sqrt(mean) <= math.sqrt(omega(9, d) + 5 * sigma) + place


def test_near_the_largest_number() -> None:
    top = torch.finfo(torch.float16).max
    one_hot = torch.zeros(50, dtype=torch.float16)
    one_hot[3] = -top
    assert error(one_hot, send(NaturalDithering(5), one_hot)) == 0.0
    with pytest.raises(InputError, match=r"natural_dithering: .*do not fit"):
        NaturalDithering(9).encode(
            torch.full((50,), top, dtype=torch.float16), {}, fll.rng.stream(0)
        )


def test_bytes_of_normal_numbers() -> None:
    """2.13 bits an entry where the least level is the root mean square."""
    d = 1 << 16
    payload, _ = NaturalDithering(9).encode(
        fll.rng.stream(53).normal(d), {}, fll.rng.stream(0)
    )
    assert len(fll.pack(payload)) * 8 == pytest.approx(2.13 * d, rel=0.02)


def test_impossible_settings() -> None:
    for levels in (0, -2, 65):
        with pytest.raises(SettingError, match="natural_dithering: expected 1 to 64"):
            NaturalDithering(levels)
