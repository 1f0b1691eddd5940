"""identity, f16, >>, shrunk, by_size: what holds for the composition."""

from __future__ import annotations

import math

import pytest
import torch

import fl_lowrank as fll
from fl_lowrank import (
    F16,
    BySize,
    Contractive,
    Exact,
    Identity,
    Natural,
    NoGuarantee,
    PowerSgd,
    RandK,
    Shrunk,
    SparseDitheringUnbiased,
    Then,
    TopK,
    Unbiased,
)
from fl_lowrank.errors import InputError, SettingError
from tests.fl_lowrank.compressing import error, moments, send, signs


@pytest.mark.parametrize(
    ("text", "guarantee"),
    [
        ("topk(k=10) >> natural()", Contractive(0.1 * 8 / 9)),
        ("topk(k=10) >> natural_stochastic()", Contractive(0.1 * 7 / 8)),
        ("topk(k=10) >> topk(k=5) >> natural()", Contractive(0.05 * 8 / 9)),
        ("topk(k=100) >> natural()", Contractive(8 / 9)),
        ("topk(k=100) >> natural_stochastic()", Unbiased(9 / 8)),
        ("topk(k=10) >> identity()", Contractive(0.1)),
        ("randk(k=10) >> natural_stochastic()", Unbiased(11.25)),
        ("randk(k=100) >> natural()", Contractive(8 / 9)),
        ("randk(k=100) >> natural_stochastic()", Unbiased(9 / 8)),
        ("identity() >> sparse_dithering(nu=0.2)", Contractive(0.8)),
        ("svd(rank=60) >> natural_stochastic()", Unbiased(9 / 8)),
        ("shrunk(inner=randk(k=10))", Contractive(0.1)),
        ("shrunk(inner=randk(k=100))", Exact()),
        ("shrunk(inner=sparse_dithering_unbiased(omega=0.25))", Contractive(0.8)),
        ("shrunk(inner=randk(k=10) >> natural_stochastic())", Contractive(1 / 11.25)),
        ("by_size(threshold=100, small=f16(), large=topk(k=10))", Contractive(0.1)),
        ("by_size(threshold=101, small=randk(k=10), large=f16())", Unbiased(10.0)),
    ],
)
def test_guarantee_of_a_composition(text: str, guarantee: fll.Guarantee) -> None:
    found = fll.parse(text).guarantee((100,))
    assert type(found) is type(guarantee)
    for name, value in vars(guarantee).items():
        assert getattr(found, name) == pytest.approx(value)


@pytest.mark.parametrize(
    "text",
    [
        "randk(k=10) >> natural()",
        "topk(k=10) >> randk(k=2)",
        "topk(k=10) >> sparse_dithering_unbiased(omega=2.0)",
        "svd(rank=2) >> natural()",
    ],
)
def test_no_guarantee_says_why(text: str) -> None:
    found = fll.parse(text).guarantee((10, 10))
    assert isinstance(found, NoGuarantee)
    assert text.split(" >> ")[1] in found.reason


def test_topk_then_natural_attains_its_bound() -> None:
    x = 1.5 * signs(1000)
    y = send("topk(k=100) >> natural()", x)
    assert error(x, y) == pytest.approx(1 - 0.1 * 8 / 9, rel=1e-9)


def test_topk_then_natural_stochastic_attains_its_bound() -> None:
    """100 draws at 5 sigma: 6e-7 by chance."""
    x = 4 / 3 * signs(3000)
    mean, sigma = moments("topk(k=1000) >> natural_stochastic()", x, 100)
    assert mean == pytest.approx(1 - 7 / 8 / 3, abs=5 * sigma)
    assert sigma < 1e-3


def test_randk_then_natural_stochastic_attains_its_bound() -> None:
    """200 draws at 5 sigma: 6e-7 by chance."""
    x = 4 / 3 * signs(1000)
    mean, sigma = moments("randk(k=500) >> natural_stochastic()", x, 200)
    assert mean + 1 == pytest.approx(2 * 9 / 8, abs=5 * sigma)


def test_shrunk_attains_its_bound() -> None:
    """The best factor makes the error 1 - 1 / zeta, for every input of randk."""
    x = fll.rng.stream(40).normal(500)
    mean, sigma = moments("shrunk(inner=randk(k=100))", x, 200)
    assert mean == pytest.approx(0.8, abs=5 * sigma)


def test_shrunk_keeps_unscaled_entries() -> None:
    x = fll.rng.stream(41).normal(64)
    y = send(Shrunk(RandK(k=16)), x)
    kept = y != 0
    assert int(kept.sum()) == 16
    assert torch.allclose(y[kept], x[kept])


def test_shrunk_refuses_what_is_biased() -> None:
    with pytest.raises(SettingError, match="shrunk: expected an unbiased compressor"):
        Shrunk(TopK(k=2)).encode(torch.ones(9), {}, fll.rng.stream(0))


def test_then_refuses_what_hands_nothing_on() -> None:
    with pytest.raises(SettingError, match="natural\\(\\) has no real numbers"):
        Then(Natural(), F16())
    with pytest.raises(SettingError, match="has no real numbers"):
        fll.parse("topk(k=3) >> f16() >> natural()")


def test_then_keeps_states_of_both_sides() -> None:
    c = Then(TopK(k=960), PowerSgd(rank=2))
    x = fll.rng.stream(42).normal(2000)
    state = c.init((2000,))
    assert set(state) == {"inner0.right"}
    payload, state = c.encode(x, state, fll.rng.stream(0))
    assert bool(state["inner0.right"].any())
    assert fll.decode(payload).shape == (2000,)


def test_by_size_chooses() -> None:
    c = BySize(threshold=10, small=Identity(), large=TopK(k=1))
    assert torch.equal(send(c, torch.arange(9.0)), torch.arange(9.0))
    assert int(send(c, torch.arange(10.0)).count_nonzero()) == 1
    with pytest.raises(SettingError, match="threshold of at least 0"):
        BySize(threshold=-1, small=F16(), large=F16())


def test_draws_of_the_two_sides_are_independent() -> None:
    """The same stream for both would tie positions to rounding; 200 draws, 5 sigma."""
    x = 1.5 * torch.ones(100)
    kept, up = [], []
    for i in range(200):
        y = send("randk(k=50) >> natural_stochastic()", x, i)
        first = y[:50]
        kept.append(float((first != 0).sum()))
        up.append(float((y == 4.0).sum()))
    pair = torch.tensor([kept, up], dtype=torch.float64)
    assert abs(float(torch.corrcoef(pair)[0, 1])) < 5 / math.sqrt(200)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool, torch.uint8])
def test_only_identity_takes_integers(dtype: torch.dtype) -> None:
    x = torch.tensor([[0, 1, 1], [1, 0, 1]]).to(dtype)
    y = send(Identity(), x)
    assert torch.equal(x, y)
    assert y.dtype == dtype
    for other in (F16(), TopK(k=1), SparseDitheringUnbiased()):
        with pytest.raises(InputError, match="integers travel through identity"):
            other.encode(x, {}, fll.rng.stream(0))


@pytest.mark.parametrize("magnitude", [1e-310, 1e-40, 1.0, 1e30, 1.7e308])
def test_f16_keeps_eleven_bits_at_every_scale(magnitude: float) -> None:
    x = fll.rng.stream(43).normal(1000).to(torch.float64)
    x = x / x.abs().max() * magnitude
    assert error(x, send(F16(), x)) <= 2.0**-22


@pytest.mark.parametrize("magnitude", [6e-8, 1e-3, 60000.0, 65504.0])
def test_f16_of_float16_is_exact_but_for_the_smallest(magnitude: float) -> None:
    x = (torch.linspace(-1, 1, 101) * magnitude).to(torch.float16)
    assert error(x, send(F16(), x)) <= 2.0**-40


def test_the_largest_float32_survives_f16() -> None:
    largest = torch.finfo(torch.float32).max
    y = send(F16(), torch.tensor([largest, 1.0]))
    assert float(y[0]) == pytest.approx(largest, rel=2.0**-11)


@pytest.mark.parametrize("power", [-125, -101, -100, -99, -1, 0, 98, 99, 100, 111])
def test_f16_of_float32_rounds_once(power: int) -> None:
    # 2^(power + 14) is the largest entry, so that `power` is on the wire.
    x = torch.cat([torch.ones(1), fll.rng.stream(44).uniform(500), torch.zeros(1)])
    x[2:100] *= 2.0 ** -torch.arange(98) / 4
    x = (x.double() * 2.0**power * 2.0**14).float()
    rounded = (x.double() * 2.0**-power).half().double() * 2.0**power
    assert torch.equal(send(F16(), x), rounded.float())
