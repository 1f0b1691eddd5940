"""qsgd and terngrad: least constants, attained, and the maps they are equal to."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import fl_lowrank as fll
from fl_lowrank import (
    Qsgd,
    SparseDitheringUnbiased,
    TernGrad,
    Unbiased,
    UniformStochastic,
)
from fl_lowrank.errors import InputError, SettingError
from fl_lowrank.types import Compressor
from tests.fl_lowrank.compressing import error, moments, send, signs


def omega(compressor: Compressor, d: int) -> float:
    """Relative variance that is declared."""
    guarantee = compressor.guarantee((d,))
    assert isinstance(guarantee, Unbiased)
    return guarantee.omega


def inputs(d: int) -> dict[str, Tensor]:
    normal = fll.rng.stream(40).normal(d)
    return {
        "normal": normal,
        "heavy": normal**5,
        "one hot": (torch.arange(d) == d // 3).float(),
        "two sizes": torch.where(torch.arange(d) % 2 == 0, 0.3 * signs(d), signs(d)),
    }


@pytest.mark.parametrize("levels", [1, 5, 30, 64])
def test_variance_of_few_levels_is_attained_by_equal_magnitudes(levels: int) -> None:
    """Up to half the root of d = 2^14 levels; 30 draws, 5 sigma."""
    d = 1 << 14
    expected = 128 / levels - 1
    mean, sigma = moments(Qsgd(levels), signs(d), 30)
    assert mean == pytest.approx(expected, abs=5 * sigma)
    assert 5 * sigma < 0.1 * expected
    assert omega(Qsgd(levels), d) == pytest.approx(expected, rel=1e-6)
    assert omega(Qsgd(levels), d) >= expected


@pytest.mark.parametrize("levels", [96, 160, 320])
def test_variance_of_many_levels_is_attained_by_half_steps(levels: int) -> None:
    """Magnitudes of 3/4, 5/4 and 5/2 steps, from which half steps are mixed."""
    d = 1 << 14
    steps = levels / 128  # the root of the mean square
    low = math.floor(steps - 0.5) + 0.5
    high = low + 1.0
    share = (steps**2 - low**2) / (high**2 - low**2)
    x = signs(d) * low
    x[: round(share * d)] *= high / low
    expected = d / (4 * levels**2)
    mean, sigma = moments(Qsgd(levels), x, 30)
    assert mean == pytest.approx(expected, abs=5 * sigma, rel=1e-3)
    assert 5 * sigma < 0.1 * expected
    assert omega(Qsgd(levels), d) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("levels", [1, 20, 500])
def test_variance_is_at_most_declared(levels: int) -> None:
    """12 draws at 5 sigma; the published constant is larger."""
    d = 3000
    for block in (None, 100):
        c = Qsgd(levels, block)
        m = d if block is None else block
        assert omega(c, d) < min(m / levels**2, math.sqrt(m) / levels)
        for name, x in inputs(d).items():
            mean, sigma = moments(c, x, 12)
            assert mean <= omega(c, d) + 5 * sigma, name


def test_it_is_unbiased_sparse_dithering() -> None:
    """With s = sqrt(d / omega) / 2: the same draws give the same levels."""
    d = 10_000
    x = fll.rng.stream(41).normal(d)
    for levels in (10, 50, 200):
        other = SparseDitheringUnbiased(d / (4 * levels**2))
        for key in range(3):
            rng = fll.rng.stream(42, key)
            ours, _ = Qsgd(levels).encode(x, {}, rng)
            theirs, _ = other.encode(x, {}, rng)
            differ = ours.tensor("levels") != theirs.tensor("levels")
            # Steps differ by 2^-23, and draws fall between them as rarely.
            assert int(differ.sum()) <= 2
            assert error(fll.decode(theirs), fll.decode(ours)) < 1e-5
        assert omega(other, d) == pytest.approx(d / (4 * levels**2))


def test_levels_are_neighbours_of_the_exact_ones() -> None:
    x = fll.rng.stream(43).normal(1000).double()
    payload, _ = Qsgd(12, 300).encode(x, {}, fll.rng.stream(0))
    levels = payload.tensor("levels").double()
    for begin in range(0, 1000, 300):
        part = slice(begin, begin + 300)
        exact = x[part] / x[part].norm() * 12
        assert float((levels[part] - exact).abs().max()) < 1.0 + 12 * 2.0**-10


@pytest.mark.parametrize("d", [100, 4096])
def test_terngrad_is_attained_by_one_large_entry(d: int) -> None:
    """60 draws, 5 sigma; E|C(x)|^2 is the largest times the sum of magnitudes."""
    x = signs(d)
    x[d // 2] = 1 + math.sqrt(d)
    mean, sigma = moments(TernGrad(), x, 60)
    expected = (math.sqrt(d) - 1) / 2
    assert mean == pytest.approx(expected, abs=5 * sigma)
    assert 5 * sigma < 0.2 * expected
    assert omega(TernGrad(), d) == pytest.approx(expected, rel=1e-5)
    heavy = fll.rng.stream(44).normal(d) ** 3
    sizes = heavy.double().abs()
    second = float(sizes.max() * sizes.sum() / sizes.square().sum())
    mean, sigma = moments(TernGrad(), heavy, 60)
    assert 1 + mean == pytest.approx(second, abs=5 * sigma)
    assert 1 + mean <= 1 + omega(TernGrad(), d) + 5 * sigma


def test_terngrad_is_uniform_with_one_level() -> None:
    x = fll.rng.stream(45).normal(1000)
    for block in (64, 1000):
        ours, _ = TernGrad(block).encode(x, {}, fll.rng.stream(1))
        theirs, _ = UniformStochastic(2, block).encode(x, {}, fll.rng.stream(1))
        assert fll.pack(ours) == fll.pack(theirs)
    assert omega(TernGrad(64), 1000) == omega(UniformStochastic(2, 64), 1000)
    assert set(send(TernGrad(), x).tolist()) == {
        -float(x.abs().max()),
        0.0,
        float(x.abs().max()),
    }


def test_terngrad_keeps_entries_as_often_as_it_must() -> None:
    """20,000 draws of each share at 5 sigma."""
    n = 20_000
    x = torch.cat((torch.full((n,), -0.1), torch.full((n,), 0.6), torch.ones(1)))
    y = send(TernGrad(), x)
    for part, value in ((y[:n], -1.0), (y[n:-1], 1.0)):
        assert set(part.tolist()) == {0.0, value}
        share = 0.1 if value < 0 else 0.6
        kept = float((part == value).sum()) / n
        assert abs(kept - share) < 5 * math.sqrt(share * (1 - share) / n)


def test_bytes() -> None:
    """Near the entropy of the levels, and below five trits in a byte."""
    d = 100_000
    for name, x in inputs(d).items():
        payload, _ = TernGrad().encode(x, {}, fll.rng.stream(0))
        assert len(fll.pack(payload)) <= d / 5 + 64, name
    worst = torch.full((d,), 2 / 3) * signs(d)
    worst[0] = 1.0
    payload, _ = TernGrad().encode(worst, {}, fll.rng.stream(0))
    size = len(fll.pack(payload))
    assert size == pytest.approx(math.log2(3) * d / 8, rel=0.01)
    payload, _ = Qsgd(316).encode(fll.rng.stream(46).normal(d), {}, fll.rng.stream(0))
    assert len(fll.pack(payload)) * 8 < 2.2 * d


def test_what_does_not_fit_the_dtype() -> None:
    x = torch.full((4000,), 2000.0, dtype=torch.float16)
    with pytest.raises(InputError, match=r"qsgd: .*do not fit torch\.float16"):
        Qsgd(1).encode(x, {}, fll.rng.stream(0))
    assert error(x, send(Qsgd(64), x)) < 1
    x = torch.full((200,), torch.finfo(torch.float32).max)
    with pytest.raises(InputError, match=r"terngrad: .*do not fit torch\.float32"):
        TernGrad(50).encode(x, {}, fll.rng.stream(0))
    assert torch.equal(x, send(TernGrad(), x))


def test_impossible_settings() -> None:
    for levels in (0, -1, 1 << 17):
        with pytest.raises(SettingError, match="qsgd: expected 1 to 65536 levels"):
            Qsgd(levels)
    with pytest.raises(SettingError, match="qsgd: expected a block"):
        Qsgd(4, 0)
    with pytest.raises(SettingError, match="terngrad: expected a block"):
        TernGrad(-1)
