"""uniform in both forms: bounds that hold, are attained, and survive their scales."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fl_lowrank as fll
from fl_lowrank import Contractive, Unbiased, Uniform, UniformStochastic
from fl_lowrank.errors import InputError, SettingError
from tests.fl_lowrank.compressing import error, moments, send, signs


def bound(compressor: Uniform, d: int) -> float:
    """Relative squared error that is declared."""
    guarantee = compressor.guarantee((d,))
    assert isinstance(guarantee, Contractive)
    return 1.0 - guarantee.delta


def omega(compressor: UniformStochastic, d: int) -> float:
    guarantee = compressor.guarantee((d,))
    assert isinstance(guarantee, Unbiased)
    return guarantee.omega


def exact_error(bits: int, m: int) -> float:
    s = 2 ** (bits - 1) - 1
    return (m - 1) / (4 * s**2 + m - 1)


def spike_and(rest: float, spike: float, m: int, blocks: int = 1) -> Tensor:
    """Blocks of one large entry and m - 1 others of random signs."""
    x = rest * signs(m * blocks).reshape(blocks, m)
    x[:, m // 2] = -spike
    return x.reshape(-1)


def hostile(d: int, bits: int) -> dict[str, Tensor]:
    """Inputs that lose most."""
    s = max(2 ** (bits - 1) - 1, 1)
    normal = fll.rng.stream(30).normal(d)
    return {
        "normal": normal,
        "heavy": normal**5,
        "all equal": 0.7 * signs(d),
        "spike and half steps": spike_and(0.4999, s, d),
        "spike between float16 numbers": spike_and(0.4999, s * (1 + 2.0**-11.1), d),
        "one hot": spike_and(0.0, 0.3, d),
        "sparse": torch.where(normal >= normal.quantile(0.9), normal, 0.0),
    }


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8, 12, 16])
@pytest.mark.parametrize(("d", "block"), [(1, 256), (64, 64), (1009, 64), (700, 7000)])
def test_error_is_at_most_declared_whatever_comes(
    bits: int, d: int, block: int
) -> None:
    c = Uniform(bits, block)
    for name, x in hostile(d, bits).items():
        # Decoded numbers are rounded to float32 themselves, by 2^-24 each.
        assert error(x, send(c, x)) <= bound(c, d) * (1 + 1e-6) + 2.0**-46, name


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("m", [64, 256, 4096])
@pytest.mark.parametrize("blocks", [1, 3])
def test_bound_is_attained_by_a_spike_and_half_steps(
    bits: int, m: int, blocks: int
) -> None:
    """Just below half a step, so that all but the spike become zero."""
    s = 2 ** (bits - 1) - 1
    x = spike_and(0.5 - 2.0**-20, s, m, blocks)
    c = Uniform(bits, m)
    found = error(x, send(c, x))
    assert found == pytest.approx(exact_error(bits, m), rel=1e-5)
    # Steps are at most 2^-10 longer, and the spike is off by at most half of one.
    assert found <= bound(c, m * blocks)
    assert bound(c, m * blocks) <= exact_error(bits, m) * (1 + 2.0**-9 + 1 / (m - 1))


def test_constants_of_the_literature() -> None:
    assert bound(Uniform(4, 256), 256) == pytest.approx(0.5654, abs=1e-4)
    assert bound(Uniform(4, 4096), 4096) == pytest.approx(0.9543, abs=1e-4)
    assert bound(Uniform(8, 256), 256) == pytest.approx(0.003937, abs=1e-6)
    assert omega(UniformStochastic(4, 256), 256) == pytest.approx(0.745, abs=1e-3)
    assert omega(UniformStochastic(8, 4096), 4096) == pytest.approx(0.060, abs=1e-3)


@pytest.mark.parametrize("bits", [12, 16])
def test_rounding_of_scales_is_declared_because_it_is_real(bits: int) -> None:
    """A step just above a float16 number is rounded up by nearly 2^-10."""
    m, s = 64, 2 ** (bits - 1) - 1
    step = 1.0 + 2.0**-10
    spike = s * (1.0 + 1e-6)
    spike -= (spike / step - math.floor(spike / step) - 0.5) * step  # midway
    x = spike_and((0.5 - 2.0**-12) * step, spike, m, blocks=2)
    c = Uniform(bits, m)
    found = error(x, send(c, x))
    assert found > exact_error(bits, m) * (1 + 1 / m)
    assert found == pytest.approx(bound(c, 2 * m), rel=2e-2)
    assert found <= bound(c, 2 * m)


@pytest.mark.parametrize("bits", range(2, 17))
def test_no_level_beyond_s(bits: int) -> None:
    s = 2 ** (bits - 1) - 1
    for c in (Uniform(bits, 100), UniformStochastic(bits, 100)):
        for key in range(5):
            x = fll.rng.stream(31, key).normal(1950)
            payload, _ = c.encode(x, {}, fll.rng.stream(key))
            levels = payload.tensor("levels")
            assert int(levels.abs().max()) <= s
            assert levels.abs().reshape(-1, 50).amax().item() >= s - s * 2.0**-10 - 1


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40),
    st.integers(1, 16),
    st.integers(1, 50),
)
def test_error_is_at_most_declared_for_any_vector(
    values: list[float], bits: int, block: int
) -> None:
    x = torch.tensor(values)
    if x.any():
        c = Uniform(bits, block)
        tiny = 1e-44 * len(values) / float(x.abs().max())
        allowed = bound(c, x.numel()) * (1 + 1e-6) + 2.0**-46
        assert error(x, send(c, x)) <= allowed + tiny


@pytest.mark.parametrize("magnitude", [1e-43, 1e-38, 1e-20, 1e20, 3e38])
def test_magnitude_does_not_matter(magnitude: float) -> None:
    """Subnormal float32 numbers have few digits: their last place is allowed."""
    for bits in (1, 4, 9):
        c = Uniform(bits, 64)
        x = fll.rng.stream(32).normal(1000).clamp(-3, 3) / 3 * magnitude
        off = math.sqrt(error(x, send(c, x)) * float(x.double().square().sum()))
        allowed = math.sqrt(bound(c, 1000)) * float(x.double().norm())
        assert off <= allowed * (1 + 1e-6) + 1e-45 * 32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    peak = torch.finfo(dtype).max
    x = (fll.rng.stream(33).normal(1000).double().clamp(-3, 3) / 3 * peak).to(dtype)
    y = send(Uniform(8, 64), x)
    assert error(x, y) <= bound(Uniform(8, 64), 1000) + torch.finfo(dtype).eps ** 2


def test_blocks_of_very_different_sizes() -> None:
    """Scales travel as float32 where float16 would lose the small ones."""
    c = Uniform(6, 100)
    for small, width in ((1e-3, 2), (1e-9, 4), (1e-25, 4)):
        sizes = torch.tensor([1.0, small, 0.3, 0.0]).repeat_interleave(100)
        x = fll.rng.stream(34).normal(400) * sizes
        payload, _ = c.encode(x, {}, fll.rng.stream(0))
        assert payload.tensor("scales").element_size() == width
        y = send(c, x)
        for k in range(3):
            part = slice(100 * k, 100 * (k + 1))
            assert error(x[part], y[part]) <= bound(c, 400) * (1 + 1e-6)
        assert not y[300:].any()


def test_blocks_too_small_for_any_scale_become_zero() -> None:
    x = torch.cat((torch.ones(8), torch.full((8,), 1e-30))).double() * 1e200
    x[8:] *= 1e-200
    for c in (Uniform(4, 8), UniformStochastic(4, 8), Uniform(1, 8)):
        y = send(c, x)
        assert torch.allclose(y[:8].abs(), x[:8], rtol=1e-3)
        assert not y[8:].any()


def test_blocks_do_not_see_each_other() -> None:
    """The last one is shorter, and nothing is padded."""
    x = fll.rng.stream(35).normal(250)
    c = Uniform(5, 100)
    whole = send(c, x)
    payload, _ = c.encode(x, {}, fll.rng.stream(0))
    assert payload.tensor("scales").numel() == 3
    assert payload.tensor("levels").numel() == 250
    changed = torch.cat((x[:200], 2 * x[200:]))
    assert torch.equal(send(c, changed)[:200], whole[:200])
    assert torch.equal(send(c, x[:200]), whole[:200])


def test_rescaling_only_helps() -> None:
    """Against the levels times the step, for coarse and fine levels."""
    x = fll.rng.stream(36).normal(1000)
    for bits in (2, 3, 8):
        c = Uniform(bits, 250)
        payload, _ = c.encode(x, {}, fll.rng.stream(0))
        peaks = x.reshape(4, 250).abs().amax(1, keepdim=True)
        steps = peaks / (2 ** (bits - 1) - 1)
        plain = payload.tensor("levels").reshape(4, 250) * steps
        assert error(x, send(c, x)) <= error(x, plain.reshape(-1)) * (1 + 1e-4)
    assert error(x, send(Uniform(2, 250), x)) < 0.6


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("m", [64, 2048])
def test_variance_is_attained_by_a_spike_and_a_constant(bits: int, m: int) -> None:
    """150 draws of few entries, 30 of many; 5 sigma."""
    s = 2 ** (bits - 1) - 1
    expected = (math.sqrt(m - 1 + s**2) - s) / (2 * s)
    x = spike_and(1 / (2 * (1 + expected)), s, m, blocks=2)
    c = UniformStochastic(bits, m)
    mean, sigma = moments(c, x, 150 if m < 100 else 30)
    assert mean == pytest.approx(expected, abs=5 * sigma)
    assert 5 * sigma < 0.1 * expected
    # Steps are at most 2^-10 longer, and the spike varies by at most 1/4 of one.
    assert expected <= omega(c, 2 * m) <= expected * (1 + 2.0**-9 + 1 / (m - 1))
    assert omega(c, m) == pytest.approx(expected, rel=1e-5)


def test_a_step_between_float16_numbers_makes_the_spike_vary() -> None:
    """The largest entry lies midway between two levels; 100 draws, 5 sigma."""
    m, s = 16, 2**15 - 1
    step = 1.0 + 2.0**-10
    spike = (math.floor(s / step) + 0.5) * step
    x = spike_and(0.5 * step, spike, m, blocks=2)
    c = UniformStochastic(16, m)
    mean, sigma = moments(c, x, 100)
    assert mean == pytest.approx(omega(c, 2 * m), abs=5 * sigma, rel=5e-3)
    assert mean > (math.sqrt(m - 1 + s**2) - s) / (2 * s) * (1 + 0.5 / m)


@pytest.mark.parametrize("bits", [1, 2, 5, 16])
def test_stochastic_rounding_goes_up_as_often_as_it_must(bits: int) -> None:
    """20,000 equal entries at 5 sigma: 6e-7 by chance for each."""
    n = 20_000
    s = 2 ** (bits - 1) - 1
    for share in (0.1, 0.5, 0.8):
        value = (s // 2 + share) / s if s else 2 * share - 1
        x = torch.full((n + 1,), value)
        x[-1] = 1.0
        y = send(UniformStochastic(bits, n + 1), x, bits)[:-1]
        low, high = float(y.min()), float(y.max())
        assert len(y.unique()) == 2
        up = float((y == high).sum()) / n
        expected = (value - low) / (high - low)
        assert expected == pytest.approx(share, abs=0.01)
        assert abs(up - expected) < 5 * math.sqrt(share * (1 - share) / n)


def test_one_bit() -> None:
    """Mean magnitude and sign; or the largest, at random."""
    x = fll.rng.stream(37).normal(1000)
    assert torch.equal(send(Uniform(1, 64), x), send("sign(block=64)", x))
    assert bound(Uniform(1, 64), 1000) == pytest.approx(1 - 1 / 64, abs=1e-6)
    one_hot = spike_and(0.0, 2.0, 64)
    y = send(UniformStochastic(1, 64), one_hot)
    assert set(y.tolist()) == {-2.0, 2.0}
    assert error(one_hot, y) == pytest.approx(63, abs=1e-4)
    assert omega(UniformStochastic(1, 64), 64) == pytest.approx(63, rel=1e-6)


@pytest.mark.parametrize("bits", range(1, 17))
def test_bytes_are_at_most_the_packed_size(bits: int) -> None:
    """Numbers spread evenly leave an entropy coder nothing to gain."""
    d = 30_000
    even = fll.rng.stream(38).uniform(d) * 2 - 1
    normal = fll.rng.stream(39).normal(d)
    for x in (even, normal, normal**5):
        for c in (Uniform(bits), UniformStochastic(bits)):
            payload, _ = c.encode(x, {}, fll.rng.stream(0))
            size = len(fll.pack(payload))
            scales = payload.tensor("scales")
            packed = bits * d / 8 + scales.numel() * scales.element_size()
            assert size <= packed + 64
    if bits > 2:
        assert size < packed  # of the last, heavy-tailed one


def test_close_to_the_largest_number_of_the_dtype() -> None:
    """Scales in float16 are rounded up, beyond it."""
    x = torch.full((600,), torch.finfo(torch.float32).max)
    x[::2] *= 0.3
    for bits in (1, 8):
        with pytest.raises(InputError, match=r"uniform_stochastic: .*do not fit"):
            UniformStochastic(bits).encode(x, {}, fll.rng.stream(0))
    assert bool(send(Uniform(8), x).isfinite().all())


def test_impossible_settings() -> None:
    for cls in (Uniform, UniformStochastic):
        for bits in (0, 17, -3):
            with pytest.raises(SettingError, match=f"{cls.name}: expected 1 to 16"):
                cls(bits)
        with pytest.raises(SettingError, match=f"{cls.name}: expected a block"):
            cls(8, 0)
