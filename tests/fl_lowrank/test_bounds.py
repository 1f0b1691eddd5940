"""Bounds against scipy, closed forms and the figures that the papers print."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special, stats

from fl_lowrank import bounds
from fl_lowrank.errors import SettingError

#: Arguments at which scipy's own value does not underflow.
BETA = [
    (a, b, x)
    for a in (0.5, 1.0, 4.5, 31.5, 1000.0)
    for b in (0.5, 1.0, 7.0)
    for x in (1e-6, 0.01, 0.2, 0.5, 0.9, 0.999999)
    if a * math.log(x) > -600
]


@pytest.mark.parametrize(("a", "b", "x"), BETA)
def test_incomplete_beta_is_that_of_scipy(a: float, b: float, x: float) -> None:
    expected = float(stats.beta.logcdf(x, a, b))
    assert bounds.log_beta_inc(a, b, x) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_incomplete_beta_where_the_value_itself_underflows() -> None:
    """``I_x(a, 1) = x^a``."""
    for a in (1e3, 1e5, 1e7):
        assert bounds.log_beta_inc(a, 1.0, 0.1) == pytest.approx(a * math.log(0.1))


@pytest.mark.parametrize("d", [2, 3, 10, 14, 64])
@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.5, 0.75])
def test_cap_probability_and_mean_cosine(d: int, alpha: float) -> None:
    p = 0.5 * special.betainc((d - 1) / 2, 0.5, alpha)
    assert bounds.log_cap_probability(d, alpha) == pytest.approx(math.log(p), rel=1e-9)
    edge = math.sqrt(1 - alpha)
    # The density of the cosine, with t = cos(phi): sin(phi)^(d - 2) dphi.
    phi = np.linspace(0, math.acos(edge), 200_001)
    weight = np.sin(phi) ** (d - 2)
    mean = np.trapezoid(weight * np.cos(phi), phi) / np.trapezoid(weight, phi)
    assert bounds.cap_mean_cosine(d, alpha) == pytest.approx(mean, rel=1e-8)
    assert edge <= bounds.cap_mean_cosine(d, alpha) <= 1.0


def test_one_dimension_has_two_directions() -> None:
    assert bounds.spherical_cap_bits(1, 0.3) == pytest.approx(1.0)
    assert bounds.cap_mean_cosine(1, 0.3) == 1.0


def test_figures_of_the_paper() -> None:
    """Albasyoni et al. (2020): 3.35 d, 9.9 times, 1.69 d above the bound."""
    d = 10**9
    assert bounds.sparse_dithering_bits(d, 0.1) / d == pytest.approx(3.3494, abs=1e-4)
    gap = bounds.sparse_dithering_bits(d, 0.1) - bounds.uncertainty_bits(d, 0.1)
    assert gap / d == pytest.approx(1.6885, abs=1e-4)
    unbiased = bounds.sparse_dithering_unbiased_bits(d, 0.25) / d
    assert 32 / (1.25 * unbiased) == pytest.approx(9.9, abs=0.01)
    # Its experiment with d = 10 at alpha = 0.2 takes about 10^4 draws.
    assert 2 ** bounds.spherical_cap_bits(10, 0.2) == pytest.approx(9877, rel=1e-4)
    assert bounds.cap_mean_cosine(10, 0.2) * math.sqrt(0.8) == pytest.approx(
        0.8176, abs=1e-4
    )


def test_spherical_cap_meets_the_uncertainty_principle() -> None:
    """Per entry they agree as d grows; the cap asks for some log2(d) / 2 bits more."""
    for alpha in (0.05, 0.3, 0.8):
        for d in (10, 100, 10**4, 10**7):
            cap = bounds.spherical_cap_bits(d, alpha)
            assert cap > bounds.uncertainty_bits(d, alpha)
        assert cap == pytest.approx(bounds.uncertainty_bits(d, alpha), rel=1e-5)


def test_water_filling() -> None:
    assert bounds.gaussian_bits([4.0] * 50, 0.1) == pytest.approx(
        bounds.uncertainty_bits(50, 0.1)
    )
    # Two entries under water: the level is where min(v, t) sums to a tenth.
    variances = [0.1, 0.2, 5.0, 4.7]
    level = (0.1 * 10.0 - 0.3) / 2
    expected = 0.5 * math.log2(5.0 / level) + 0.5 * math.log2(4.7 / level)
    assert bounds.gaussian_bits(variances, 0.1) == pytest.approx(expected)
    assert bounds.gaussian_bits([0.0, 0.0], 0.1) == 0.0
    assert bounds.gaussian_bits([0.0, 1.0], 0.25) == pytest.approx(1.0)


@pytest.mark.parametrize("alpha", [0.001, 0.1, 0.5, 0.99])
def test_water_filling_against_a_search_for_the_level(alpha: float) -> None:
    variances = np.random.default_rng(0).pareto(1.5, 300)
    low, high = 0.0, float(variances.max())
    for _ in range(200):
        level = (low + high) / 2
        flooded = np.minimum(variances, level).sum() > alpha * variances.sum()
        low, high = (low, level) if flooded else (level, high)
    bits = 0.5 * np.log2(np.maximum(variances / level, 1.0)).sum()
    found = bounds.gaussian_bits(variances, alpha)
    assert found == pytest.approx(bits, rel=1e-9)
    assert found <= bounds.uncertainty_bits(300, alpha)


def test_counts_of_the_classical_methods() -> None:
    assert bounds.index_set_bits(2, 5) == pytest.approx(math.log2(10))
    assert bounds.topk_bits(1 << 20, 1) == 32 + 20
    assert bounds.topk_bits(100, 50) == 32 * 50 + bounds.index_set_bits(50, 100)
    assert bounds.topk_bits(1, 1) == 32
    assert bounds.randk_bits(7) == 32 * 7 + 64
    assert bounds.natural_bits(11) == 99
    assert bounds.qsgd_bits(100, 3) == 31 + 300
    assert bounds.uniform_bits(100, 4, 64) == 400 + 64
    assert bounds.spherical_bits(10, 0.2) == pytest.approx(31 + 13.27 + 3, abs=0.01)


def test_efficiency() -> None:
    assert bounds.efficiency(bounds.uncertainty_bits(90, 0.2), 90, 0.2) == 1.0
    assert bounds.efficiency(100.0, 100, 0.25) == 1.0
    assert bounds.efficiency(100.0, 100, 1.5) == math.inf
    assert bounds.efficiency(3200.0, 100, 0.0) == 0.0


def test_impossible_arguments() -> None:
    for alpha in (0.0, 1.0, -1.0, math.nan):
        with pytest.raises(SettingError, match="relative squared error in"):
            bounds.uncertainty_bits(10, alpha)
        with pytest.raises(SettingError, match="relative squared error in"):
            bounds.log_cap_probability(10, alpha)
    with pytest.raises(SettingError, match="at least one dimension"):
        bounds.log_cap_probability(0, 0.5)
    with pytest.raises(SettingError, match="log_beta_inc: expected a, b > 0"):
        bounds.log_beta_inc(0.0, 1.0, 0.5)
    for variances in ([], [-1.0], [math.inf]):
        with pytest.raises(SettingError, match="at least one variance"):
            bounds.gaussian_bits(variances, 0.1)
