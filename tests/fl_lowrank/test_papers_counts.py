"""Bit counts of Albasyoni et al. (2020, arXiv 2010.03246) against real messages.

At d = 10^5, nu = 0.1 at most ``30 + log2 d + 3.35 d`` bits for every input, and in
expectation ``30 + log2 d + (log2 3 + 1 / (2 sqrt omega)) d`` at omega = 0.25. Messages
count with all their bytes.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import fl_lowrank as fll
from fl_lowrank import SparseDithering, SparseDitheringUnbiased, bounds
from tests.fl_lowrank.compressing import signs

D = 100_000


def bits(compressor: fll.Compressor, x: Tensor, key: int = 0) -> int:
    payload, _ = compressor.encode(x, {}, fll.rng.stream(30, key))
    return 8 * len(fll.pack(payload))


def ordinary() -> dict[str, Tensor]:
    """The three distributions that the figures speak of."""
    draws = np.random.default_rng(20103246)
    samples = {
        "Gaussian": draws.standard_normal(D),
        "Laplace": draws.laplace(size=D),
        "Student-t3": draws.standard_t(3, size=D),
    }
    return {name: torch.from_numpy(x).float() for name, x in samples.items()}


def levels_of(shares: dict[int, float], variance: float, low: float) -> Tensor:
    """A vector whose levels have these shares, as small as rounding allows.

    Level k takes magnitudes of ``(k - low)`` steps; the entries left over are zeros.
    The last free entry is made so large that the step comes out as assumed.
    """
    parts = [
        torch.full((int(share * D),), max(k - low, 0.0)) for k, share in shares.items()
    ]
    x = torch.cat(parts)[: D - 1]
    x = torch.cat((x, torch.zeros(D - len(x))))
    # The step is 2 |x| sqrt(variance / d), so |x|^2 must be d / (4 variance).
    rest = D / (4 * variance) - float(x.square().sum())
    x[-1] = math.sqrt(max(rest, 0.0))
    order = fll.rng.stream(31).bits32(D).argsort()
    return (x * signs(D))[order]


def maximum_entropy(variance: float, low: float) -> Tensor:
    """Levels with the largest entropy that the norm leaves room for.

    Of shares p_k with ``sum p_k (|k| - low)^2 = 1 / (4 variance)`` the entropy is
    largest for ``p_k = exp(-t (|k| - low)^2) / z``, and t is found by bisection.
    """
    k = np.arange(-60, 61)
    energy = np.maximum(np.abs(k) - low, 0.0) ** 2
    cold, hot = 1e-6, 50.0
    for _ in range(100):
        t = math.sqrt(cold * hot)
        p = np.exp(-t * energy)
        p /= p.sum()
        cold, hot = (t, hot) if (p * energy).sum() > 1 / (4 * variance) else (cold, t)
    shares = {int(m): float(p[np.abs(k) == m].sum()) for m in range(61)}
    return levels_of(shares, variance, low)


def adversarial(variance: float, low: float) -> dict[str, Tensor]:
    position = torch.arange(D)
    normal = fll.rng.stream(32).normal(D)
    # Uniform over -1, 0, 1: the most that few levels can cost.
    thirds = levels_of({0: 1 / 3, 1: 2 / 3}, variance, low)
    return {
        "all equal": signs(D),
        "89% equal": torch.where(position % 9 == 0, 1e-4 * normal, signs(D)),
        "89% at level 2": levels_of({0: 0.11, 2: 0.89}, variance, low),
        "one hot": (position == 777).float(),
        "all distinct": (position + 1.0) * signs(D),
        "a geometric sequence": torch.exp(-position / 5e3) * signs(D),
        "a third each": thirds,
        "maximum entropy": maximum_entropy(variance, low),
        "half of it zero": torch.where(position % 2 == 0, normal, 0.0),
        "zero": torch.zeros(D),
    }


def test_sparse_dithering_stays_below_the_paper_for_every_input() -> None:
    allowed = 30 + math.log2(D) + 3.35 * D
    assert allowed == pytest.approx(bounds.sparse_dithering_bits(D, 0.1), rel=2e-4)
    c = SparseDithering(nu=0.1)
    inputs = {**ordinary(), **adversarial(0.1, 0.499)}
    found = {name: bits(c, x) for name, x in inputs.items()}
    worst = max(found, key=lambda name: found[name])
    assert found[worst] <= allowed, worst
    # The order-0 entropy of levels is at most 3.018 bits for any vector, and the
    # input made for it reaches nearly that: the worst case has been tried.
    assert worst == "maximum entropy"
    assert 2.98 * D < found[worst] < 3.05 * D


def test_sparse_dithering_is_15_percent_below_the_paper_in_the_mean() -> None:
    c = SparseDithering(nu=0.1)
    mean = np.mean([bits(c, x) for x in ordinary().values()])
    assert mean <= 0.85 * (30 + math.log2(D) + 3.35 * D)


def test_unbiased_sparse_dithering_stays_below_the_paper_in_expectation() -> None:
    """Mean of five messages; their lengths differ by less than 0.1%."""
    allowed = bounds.sparse_dithering_unbiased_bits(D, 0.25)
    assert allowed == 30 + math.log2(D) + (math.log2(3) + 1) * D
    c = SparseDitheringUnbiased(omega=0.25)
    inputs = {**ordinary(), **adversarial(0.25, 0.0)}
    for name, x in inputs.items():
        found = [bits(c, x, key) for key in range(5)]
        assert np.mean(found) <= allowed, name
        assert max(found) - min(found) <= 1e-2 * np.mean(found) + 64, name


def test_unbiased_sparse_dithering_is_15_percent_below_in_the_mean() -> None:
    c = SparseDitheringUnbiased(omega=0.25)
    mean = np.mean([bits(c, x) for x in ordinary().values()])
    assert mean <= 0.85 * bounds.sparse_dithering_unbiased_bits(D, 0.25)
