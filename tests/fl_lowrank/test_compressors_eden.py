"""eden in both forms: errors at every rate, what always holds, the proven bounds."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import fl_lowrank as fll
from fl_lowrank import Contractive, Eden, EdenContractive, NoGuarantee
from fl_lowrank.compressors.eden_payload import split_rate
from fl_lowrank.errors import InputError, SettingError
from fl_lowrank.hadamard import rotate
from fl_lowrank.rng import Rng
from tests.fl_lowrank.compressing import error, moments, send, signs

#: Largest mean error of 20 seeds at 1 to 4 bits.
BARS = {
    Eden: {1: 0.575, 2: 0.135, 3: 0.0365, 4: 0.0098},
    EdenContractive: {1: 0.366, 2: 0.119, 3: 0.035, 4: 0.0097},
}
FORMS = (Eden, EdenContractive)


def laws(d: int) -> dict[str, Tensor]:
    """Gaussian, Student-t3, and 1/rank with random signs in random order."""
    rng = fll.rng.stream(1, d)
    normal = rng.child("t").normal(4, d)
    order = rng.child("order").bits32(d).argsort()
    rank = torch.arange(1, d + 1)[order]
    return {
        "normal": rng.normal(d),
        "t3": normal[0] / (normal[1:].square().sum(0) / 3).sqrt(),
        "zipf": rng.child("signs").normal(d).sign() / rank,
    }


def few(d: int) -> dict[str, Tensor]:
    """Inputs that a random rotation with +-1 entries treats worst, and others."""
    x = torch.zeros(5, d)
    x[0, d // 3] = 2.0
    x[1, [0, d - 1]] = 1.0
    x[2, : d // 2 + 1] = 1.0
    x[3] = 2.0 ** -torch.arange(d)
    x[4] = fll.rng.stream(2, d).normal(d)
    return dict(zip(("one", "two", "half", "powers", "normal"), x, strict=True))


def check_errors_and_size(
    form: type[Eden | EdenContractive], d: int, draws: int
) -> None:
    for name, x in laws(d).items():
        for bits, bar in BARS[form].items():
            mean, _ = moments(form(bits), x, draws)
            assert mean <= bar, (name, bits)
            payload, _ = form(bits).encode(x, {}, fll.rng.stream(3))
            assert len(fll.pack(payload)) <= 1.01 * bits / 8 * d + 64, (name, bits)


@pytest.mark.parametrize("form", FORMS)
def test_errors_and_size_at_whole_bits(form: type[Eden | EdenContractive]) -> None:
    check_errors_and_size(form, 122_879, 2)


@pytest.mark.slow
@pytest.mark.parametrize("d", [100_000, 131_072, 150_001])
@pytest.mark.parametrize("form", FORMS)
def test_mean_errors_of_20_seeds(form: type[Eden | EdenContractive], d: int) -> None:
    check_errors_and_size(form, d, 20)


@pytest.mark.parametrize(
    ("bits", "contractive"),
    [(0.1, 0.9363), (0.5, 0.6817), (1.3, 0.2752), (1.5, 0.2152), (2.5, 0.0647)],
)
def test_errors_at_fractional_rates(bits: float, contractive: float) -> None:
    """The mix of the errors of M and M + 1 levels, within 2%; never above the rate."""
    x = laws(20_000)["t3"]
    c = EdenContractive(bits)
    mean, _ = moments(c, x, 4)
    assert mean == pytest.approx(contractive, rel=0.02)
    payload, _ = c.encode(x, {}, fll.rng.stream(3))
    assert len(fll.pack(payload)) <= 1.01 * bits / 8 * 20_000 + 64


@pytest.mark.parametrize("bits", [0.1, 0.5])
def test_below_one_bit_is_a_random_part_times_its_inverse(bits: float) -> None:
    """About pi / 2 times 1 / bits is the second moment, within 3%."""
    mean, _ = moments(Eden(bits), laws(20_000)["normal"], 4)
    assert 1 + mean == pytest.approx(math.pi / 2 / bits, rel=0.03)


def test_a_rate_is_two_numbers_of_levels() -> None:
    assert split_rate(1.0, 1000) == (2, 0)
    assert split_rate(2.0, 1000) == (4, 0)
    assert split_rate(8.0, 1000) == (256, 0)
    assert split_rate(0.25, 1000) == (1, 250)
    assert split_rate(0.0001, 1000) == (1, 1)
    assert split_rate(0.5, 0) == (1, 0)
    for bits in (1.01, 1.5, 1.99, 2.2, 3.7, 7.999):
        levels, fine = split_rate(bits, 10_000)
        spent = (10_000 - fine) * math.log2(levels) + fine * math.log2(levels + 1)
        assert bits * 10_000 - 1 < spent <= bits * 10_000 + 1e-6


@pytest.mark.parametrize("bits", [1, 1.5, 2, 4])
@pytest.mark.parametrize("d", [1, 2, 7, 64, 1009])
def test_the_inner_product_with_x_is_exact(bits: float, d: int) -> None:
    """``<C(x), x> = |x|^2`` in every message from one bit on."""
    for name, x in few(d).items():
        wide = x.to(torch.float64)
        for key in range(3):
            along = float(send(Eden(bits), wide, key) @ wide)
            assert along == pytest.approx(float(wide @ wide), rel=1e-9), name


@pytest.mark.parametrize("bits", [0.4, 1, 1.5, 2.5])
def test_the_contractive_scale_is_the_projection(bits: float) -> None:
    """The error is orthogonal to what is sent, so the squared norms add up."""
    for d in (1, 2, 7, 300):
        for name, x in few(d).items():
            wide = x.to(torch.float64)
            y = send(EdenContractive(bits), wide)
            rest = float((wide - y).square().sum())
            total = float(wide.square().sum())
            assert rest + float(y.square().sum()) == pytest.approx(total), name


def test_levels_are_the_nearest_ones() -> None:
    x = fll.rng.stream(4).normal(500).to(torch.float64)
    payload, _ = Eden(2).encode(x, {}, fll.rng.stream(5))
    seed, levels = payload.tensor("setup").tolist()
    assert levels == 4
    u = rotate(x, Rng(seed)) * math.sqrt(500) / x.norm()
    table = torch.tensor([-1.5104, -0.4528, 0.4528, 1.5104], dtype=torch.float64)
    nearest = (u[:, None] - table).abs().argmin(1)
    assert int((payload.tensor("coarse") != nearest).sum()) == 0


@pytest.mark.parametrize("bits", [0.3, 1, 1.3, 3])
@pytest.mark.parametrize("d", [1, 2, 7, 23])
def test_the_proven_contraction(bits: float, d: int) -> None:
    """Worst inputs; means of 30 draws at 5 standard errors."""
    found = EdenContractive(bits).guarantee((d,))
    assert isinstance(found, Contractive)
    assert 0.0 < found.delta < 1.0 or (found.delta, d) == (1.0, 1)
    for name, x in few(d).items():
        mean, sigma = moments(EdenContractive(bits), x, 30)
        assert mean <= 1.0 - found.delta + 5 * sigma + 1e-6, name


def test_the_constants_of_the_contraction() -> None:
    assert EdenContractive(1).guarantee((1 << 20,)) == Contractive(0.5)
    assert EdenContractive(0.5).guarantee((1 << 10,)) == Contractive(0.25)
    for bits, delta in ((math.log2(3), 0.50), (2, 0.64), (3, 0.80), (4, 0.86)):
        found = EdenContractive(bits).guarantee((4096,))
        assert isinstance(found, Contractive)
        assert found.delta == pytest.approx(delta, abs=0.005)
    assert EdenContractive(2).guarantee((0, 3)) == Contractive(1.0)


def test_one_bit_attains_its_bound_for_two_entries() -> None:
    x = torch.tensor([3.0, 0.0])
    assert EdenContractive(1).guarantee((2,)) == Contractive(0.5)
    assert error(x, send(EdenContractive(1), x)) == pytest.approx(0.5)


def test_two_entries_are_biased() -> None:
    """Why no guarantee is stated: (2, 1) always becomes (5/3, 5/3)."""
    assert isinstance(Eden().guarantee((2,)), NoGuarantee)
    x = torch.tensor([2.0, 1.0])
    for key in range(20):
        y = send(Eden(1), x, key)
        assert torch.allclose(y, torch.tensor([5 / 3, 5 / 3]))


@pytest.mark.parametrize("bits", [0.5, 1.0])
def test_no_bias_is_found_for_many_entries(bits: float) -> None:
    """Errors of 60 independent pairs, 5 standard errors (6e-7 for each number)."""
    d = 512
    for name in ("two", "half", "powers"):
        x = few(d)[name]
        wide = x.to(torch.float64) / x.norm()
        errors = torch.stack([send(Eden(bits), wide, i) - wide for i in range(120)])
        products = (errors[::2] * errors[1::2]).sum(1)
        sigma = float(products.std()) / math.sqrt(60)
        assert abs(float(products.mean())) < 5 * sigma, name
        along = errors @ wide
        assert abs(float(along.mean())) <= 5 * float(along.std()) / 120**0.5 + 1e-9


def test_the_mean_of_many_clients_comes_near() -> None:
    """Independent errors average out: a tenth of the error with ten times the clients.

    The ratio of two sums of 4096 squares is within 20% (more than 5 sigma).
    """
    x = laws(4096)["zipf"]
    sent = torch.stack([send(Eden(1), x, i) for i in range(50)])
    assert error(x, sent.mean(0)) == pytest.approx(0.571 / 50, rel=0.2)


@pytest.mark.parametrize("form", FORMS)
def test_a_spread_vector_near_the_largest_number(form: type[Eden]) -> None:
    """Its norm and scale are beyond float32: the scale travels in float64."""
    x = 3.3e38 * signs(4000)
    y = send(form(4), x)
    assert error(x, y) < 0.02
    tiny = 1e-42 * signs(4000)
    assert error(tiny, send(form(4), tiny)) < 0.02


def test_a_scale_beyond_float64_is_refused() -> None:
    """One sign of 50 at 0.02 bits stands for all, so its scale is 50 times larger."""
    x = torch.finfo(torch.float64).max * signs(50).to(torch.float64)
    with pytest.raises(InputError, match=r"eden: entries up to .* beyond float64"):
        Eden(0.02).encode(x, {}, fll.rng.stream(1))
    assert bool(torch.isfinite(send(Eden(0.02), x / 1e4)).all())


def test_impossible_settings() -> None:
    for bits in (0.0, -1.0, 8.01, math.inf, math.nan):
        for form in FORMS:
            with pytest.raises(SettingError, match="expected bits in"):
                form(bits)


def test_whole_bits_have_one_text() -> None:
    assert Eden(2) == Eden(2.0)
    assert str(Eden(2)) == "eden(bits=2.0)"
    assert fll.parse("eden(bits=2)") == Eden(2)
