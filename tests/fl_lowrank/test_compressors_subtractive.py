"""dither and dither_unbiased: an error that is uniform whatever x is."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import fl_lowrank as fll
from fl_lowrank import Contractive, Dither, DitherUnbiased, Unbiased
from fl_lowrank.errors import InputError, SettingError
from fl_lowrank.rng import Rng
from tests.fl_lowrank.compressing import error, moments, send, signs


def inputs(d: int) -> dict[str, Tensor]:
    position = torch.arange(d)
    normal = fll.rng.stream(40).normal(d)
    return {
        "normal": normal,
        "heavy": normal**5,
        "one hot": (position == d // 3).float(),
        "all equal": signs(d),
        "positive": normal.abs(),
        "periodic": (position % 4).float(),
    }


@pytest.mark.parametrize("step", [0.1, 1.5, 20.0])
@pytest.mark.parametrize("d", [700, 9000])
def test_the_error_does_not_depend_on_x(step: float, d: int) -> None:
    """``step^2 / 12`` exactly, and ``1 / (1 + 12 / step^2)``; 20 draws, 5 sigma."""
    variance = step**2 / 12
    cases = inputs(d)
    for name in cases if d < 1000 else ("normal", "positive"):
        x = cases[name]
        mean, sigma = moments(DitherUnbiased(step=step), x, 20)
        assert mean == pytest.approx(variance, abs=5 * sigma), name
        mean, sigma = moments(Dither(step=step), x, 20)
        assert mean == pytest.approx(variance / (1 + variance), abs=5 * sigma), name
        assert sigma < 0.02 * mean


@pytest.mark.parametrize("nmse", [1e-4, 0.02, 0.3, 0.8])
def test_nmse_is_met(nmse: float) -> None:
    for name, x in inputs(50_000).items():
        assert error(x, send(Dither(nmse=nmse), x)) == pytest.approx(nmse, rel=0.03)
        got = error(x, send(DitherUnbiased(nmse=nmse), x))
        assert got == pytest.approx(nmse, rel=0.03), name
    assert isinstance(bound := Dither(nmse=nmse).guarantee((9,)), Contractive)
    assert 1 - bound.delta == pytest.approx(nmse)
    assert DitherUnbiased(nmse=nmse).guarantee((9,)) == Unbiased(1 + nmse)


def test_errors_are_uniform_and_independent_of_each_other() -> None:
    """Kolmogorov-Smirnov below 1.95 / sqrt n, by chance above it 1 in 1,000."""
    n, step = 40_000, 1.7
    for name, x in inputs(n).items():
        x = x.to(torch.float64)
        off = send(DitherUnbiased(step=step), x) - x
        e = (off / (step * x.square().mean().sqrt())).sort().values
        places = torch.arange(1, n + 1) / n - 0.5
        assert float((e - places).abs().max()) < 1.95 / math.sqrt(n), name
    neighbours = off.reshape(-1, 2).T  # of the last, periodic in four
    assert abs(float(torch.corrcoef(neighbours)[0, 1])) < 5 / math.sqrt(n / 2)


@pytest.mark.parametrize(
    ("d", "step", "folded", "paired"),
    [(5000, 0.02, 0, False), (5000, 1.3, 1, False), (40_001, 3.0, 1, True)],
)
def test_definition(d: int, step: float, folded: int, paired: bool) -> None:
    x = fll.rng.stream(41).normal(d).to(torch.float64)
    payload, _ = DitherUnbiased(step=step).encode(x, {}, fll.rng.stream(0))
    seed, found, low, base = payload.tensor("head").tolist()
    assert (found, base > 0) == (folded, paired)
    u = Rng(seed).bits32(d).to(torch.float64) / 2**32
    unit = step * x.square().mean().sqrt()
    k = torch.round(x / unit + u)
    sent = (k * torch.where(u < 0, -1, 1) if folded else k).to(torch.int64)
    if paired:
        assert (int(sent.min()), int(sent.max())) == (low, low + base - 1)
        sent = (torch.cat((sent, torch.tensor([low]))) - low).reshape(-1, 2)
        sent = sent[:, 0] * base + sent[:, 1]
    assert torch.equal(payload.tensor("levels").to(torch.int64), sent)
    y = fll.decode(payload)
    assert torch.allclose(y, unit * (k - u), rtol=1e-12, atol=1e-15)
    shrunk, _ = Dither(step=step).encode(x, {}, fll.rng.stream(0))
    factor = 1 / (1 + step**2 / 12)
    assert torch.allclose(fll.decode(shrunk), factor * y, rtol=1e-12, atol=1e-15)


def test_levels_of_one_sign_are_not_folded() -> None:
    """Their sign would cost a bit for each."""
    x = 9.0 + fll.rng.stream(44).normal(30_000)
    payload, _ = Dither(step=0.3).encode(x, {}, fll.rng.stream(0))
    assert int(payload.tensor("head")[1]) == 0
    assert (payload.tensor("levels") > 0).all()
    signed = x * signs(30_000)
    more, _ = Dither(step=0.3).encode(signed, {}, fll.rng.stream(0))
    assert len(fll.pack(payload)) < len(fll.pack(more)) - 0.7 * 30_000 / 8


def test_every_message_draws_anew() -> None:
    x = fll.rng.stream(42).normal(100)
    assert not torch.equal(send(Dither(step=1.0), x, 1), send(Dither(step=1.0), x, 2))


@pytest.mark.parametrize(
    ("nmse", "most"),
    [(0.02, 1.10), (0.05, 1.13), (0.1, 1.17), (0.2, 1.26), (0.4, 1.5)],
)
def test_rate_over_the_bound_for_gaussian_numbers(nmse: float, most: float) -> None:
    """Given the sign of the dither: 1.0915, 1.122, 1.164, 1.250, 1.488."""
    d = 200_000
    x = fll.rng.stream(43).normal(d)
    payload, _ = Dither(nmse=nmse).encode(x, {}, fll.rng.stream(0))
    bound = 0.5 * math.log2(1 / nmse)
    assert bound <= 8 * len(fll.pack(payload)) / d <= most * bound


def test_zero_is_sent_as_zero() -> None:
    for c in (Dither(nmse=0.1), DitherUnbiased(step=900.0)):
        for x in (torch.zeros(9000), torch.zeros(()), torch.zeros(0, 3)):
            payload, _ = c.encode(x, {}, fll.rng.stream(0))
            data = fll.pack(payload)
            assert torch.equal(fll.decode(fll.unpack(data)), x)
            assert len(data) < 60


def test_what_might_overflow_is_refused() -> None:
    x = torch.full((10,), 40_000.0, dtype=torch.float16)
    with pytest.raises(InputError, match="dither_unbiased: entries up to"):
        DitherUnbiased(step=1.0).encode(x, {}, fll.rng.stream(0))
    assert send(Dither(step=1.0), x).isfinite().all()  # shrunk, and it may saturate


def test_impossible_settings() -> None:
    for cls in (Dither, DitherUnbiased):
        for settings in ({}, {"step": 1.0, "nmse": 0.1}):
            with pytest.raises(SettingError, match="expected either step or nmse"):
                cls(**settings)
        for step in (0.0, math.nan, 1e9):
            with pytest.raises(SettingError, match="expected step in"):
                cls(step=step)
        for nmse in (0.0, math.nan, 1e9):
            with pytest.raises(SettingError, match="expected nmse in"):
                cls(nmse=nmse)
    with pytest.raises(SettingError, match="dither: expected nmse in"):
        Dither(nmse=1.0)
    assert DitherUnbiased(nmse=1.0).guarantee((3,)) == Unbiased(2.0)
