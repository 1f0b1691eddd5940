"""sparse_dithering in both forms: bounds in every realisation, and attained."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fl_lowrank as fll
from fl_lowrank import SparseDithering, SparseDitheringUnbiased, Unbiased
from fl_lowrank.bounds import sparse_dithering_bits
from fl_lowrank.errors import SettingError
from tests.fl_lowrank.compressing import error, moments, send, signs


def hostile(d: int) -> dict[str, torch.Tensor]:
    """Inputs that cost most or lose most."""
    position = torch.arange(d)
    normal = fll.rng.stream(6).normal(d)
    return {
        "one hot": (position == d // 3).float(),
        "all equal": signs(d),
        "89% equal": torch.where(position % 9 == 0, 1e-4 * normal, signs(d)),
        "normal": normal,
        "heavy": normal**5,
        "two sizes": torch.where(position % 2 == 0, 0.6 * signs(d), signs(d)),
    }


@pytest.mark.parametrize("nu", [0.01, 0.1, 0.25, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("d", [1, 2, 64, 1009])
def test_error_is_at_most_nu_whatever_comes(nu: float, d: int) -> None:
    for name, x in hostile(d).items():
        y = send(SparseDithering(nu), x)
        assert error(x, y) <= nu * (1 + 1e-5), name


@pytest.mark.parametrize("magnitude", [1e-44, 1e-40, 1e-30, 1e30])
def test_magnitude_does_not_matter(magnitude: float) -> None:
    """Subnormal float32 numbers have few digits: their last place is allowed."""
    for name, x in hostile(1009).items():
        scaled = (x * magnitude).to(torch.float32)
        if not scaled.any():
            continue
        y = send(SparseDithering(0.1), scaled)
        off = math.sqrt(error(scaled, y) * float(scaled.double().square().sum()))
        norm = float(scaled.double().norm())
        assert off <= math.sqrt(0.1) * norm * (1 + 1e-5) + 1e-45 * 32, name


def test_half_precision_near_its_largest_number() -> None:
    for name, x in hostile(500).items():
        big = (x / x.abs().max() * 60000).to(torch.float16)
        assert error(big, send(SparseDithering(0.1), big)) <= 0.1 + 1e-3, name


def test_constant_magnitude_is_exact() -> None:
    """The scale sent is the projection on the levels."""
    for nu in (0.05, 0.1, 0.3, 0.9):
        x = 0.37 * signs(300)
        assert error(x, send(SparseDithering(nu), x)) < 1e-12


def test_levels_are_the_nearest_ones() -> None:
    """Against the definition, up to the common scale."""
    x = fll.rng.stream(7).normal(400).to(torch.float64)
    nu = 0.1
    payload, _ = SparseDithering(nu).encode(x, {}, fll.rng.stream(0))
    step = 2 * math.sqrt(nu / 400) * float(x.norm())
    levels = payload.tensor("levels").to(torch.float64)
    assert torch.equal(levels, torch.sign(x) * torch.floor(x.abs() / step + 0.5))
    rescaled = send(SparseDithering(nu), x)
    assert error(x, rescaled) <= error(x, levels * step) <= nu


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40),
    st.floats(0.01, 0.99),
)
def test_error_is_at_most_nu_for_any_vector(values: list[float], nu: float) -> None:
    x = torch.tensor(values)
    if x.any():
        slack = 1e-44 * len(values) / float(x.abs().max())
        assert error(x, send(SparseDithering(nu), x)) <= nu * (1 + 1e-5) + slack


@pytest.mark.parametrize("omega", [0.05, 0.25, 1.0, 4.0])
def test_unbiased_variance_is_attained_midway_between_levels(omega: float) -> None:
    """A quarter step squared for each of n entries; 60 draws at 5 sigma."""
    k = math.ceil(1 / (2 * math.sqrt(omega)) - 0.5)
    # The others are zero, so that these lie midway: |u_i| = 1 / sqrt(n).
    d = 4000
    n = round(d / (4 * omega * (k + 0.5) ** 2))
    x = torch.zeros(d)
    x[:n] = signs(n)
    expected = omega * n / d
    mean, sigma = moments(SparseDitheringUnbiased(omega), x, 60)
    assert mean == pytest.approx(expected, abs=5 * sigma + 1e-3 * omega)
    assert mean <= omega + 5 * sigma
    assert SparseDitheringUnbiased(omega).guarantee((d,)) == Unbiased(1 + omega)


def test_unbiased_variance_reaches_omega() -> None:
    """omega = 1 / (4 (k + 1/2)^2) with every entry midway; 60 draws, 5 sigma."""
    for k in (0, 1, 2):
        omega = 1 / (4 * (k + 0.5) ** 2)
        mean, sigma = moments(SparseDitheringUnbiased(omega), signs(4000), 60)
        assert mean == pytest.approx(omega, rel=1e-3, abs=5 * sigma)


def test_unbiased_goes_up_as_often_as_it_must() -> None:
    """20,000 equal entries at 5 sigma: 6e-7 by chance."""
    n, omega = 20_000, 0.09  # entries of 1 / (2 * 0.3) = 1.667 steps
    payload, _ = SparseDitheringUnbiased(omega).encode(
        torch.ones(n), {}, fll.rng.stream(8)
    )
    levels = payload.tensor("levels")
    assert set(levels.tolist()) == {1, 2}
    share = 1 / (2 * math.sqrt(omega)) - 1
    up = float((levels == 2).sum()) / n
    assert abs(up - share) < 5 * math.sqrt(share * (1 - share) / n)


@pytest.mark.parametrize("nu", [0.05, 0.1, 0.5])
def test_bytes_stay_below_the_papers_bound(nu: float) -> None:
    d = 20_000
    for name, x in hostile(d).items():
        payload, _ = SparseDithering(nu).encode(x, {}, fll.rng.stream(0))
        assert len(fll.pack(payload)) <= sparse_dithering_bits(d, nu) / 8 + 64, name
    assert sparse_dithering_bits(10**9, 0.1) / 1e9 == pytest.approx(3.3494, abs=1e-4)


def test_impossible_settings() -> None:
    for nu in (0.0, 1.0, -1.0, math.nan):
        with pytest.raises(SettingError, match="sparse_dithering: expected nu in"):
            SparseDithering(nu)
    for omega in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(
            SettingError, match="sparse_dithering_unbiased: expected omega"
        ):
            SparseDitheringUnbiased(omega)
