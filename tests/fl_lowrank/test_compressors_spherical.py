"""Spherical compression: bounds in every realisation, bits, search, fallback."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fl_lowrank as fll
from fl_lowrank import Spherical, SphericalUnbiased, bounds
from fl_lowrank.codecs.symbols import encode_symbols
from fl_lowrank.compressors import covering
from fl_lowrank.compressors.scales import relative_variance
from fl_lowrank.compressors.spherical import Caps
from fl_lowrank.errors import InputError, SettingError
from tests.fl_lowrank.compressing import error, moments, send, signs

SETTINGS = [(0.5, 8), (0.3, 4), (0.1, 5), (0.9, 32), (0.01, 2), (0.7, 3)]


def hostile(d: int) -> dict[str, Tensor]:
    """Inputs with equal blocks, empty ones, and ones of very different sizes."""
    position = torch.arange(d)
    normal = fll.rng.stream(6).normal(d)
    return {
        "one hot": (position == d // 3).float(),
        "all equal": signs(d),
        "the same block": torch.ones(d),
        "normal": normal,
        "heavy": normal**5,
        "two sizes": torch.where(position % 20 < 10, 1e-6 * normal, normal),
    }


def block_errors(c: Caps, x: Tensor, y: Tensor) -> Tensor:
    """``|y - x|^2 / |x|^2`` of each block; x has whole blocks."""
    off, own = ((t.double().reshape(-1, c.block)) for t in (y - x, x))
    return off.square().sum(1) / own.square().sum(1)


@pytest.mark.parametrize(("alpha", "block"), SETTINGS)
@pytest.mark.parametrize("d", [1, 7, 64, 501])
def test_error_is_at_most_alpha_whatever_comes(
    alpha: float, block: int, d: int
) -> None:
    for name, x in hostile(d).items():
        if x.any():
            y = send(Spherical(alpha, block), x)
            assert error(x, y) <= alpha * (1 + 1e-5), name


@pytest.mark.parametrize(("alpha", "block"), SETTINGS)
def test_the_bound_holds_and_is_nearly_attained_block_by_block(
    alpha: float, block: int
) -> None:
    """Directions near the edge of the cap with the worst scale come often enough."""
    c = Spherical(alpha, block)
    x = fll.rng.stream(1).normal(2000 * block).double()
    errors = block_errors(c, x, send(c, x))
    assert 0.95 * alpha < float(errors.max()) <= alpha * (1 + 1e-9)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40),
    st.floats(0.2, 0.95),
    st.integers(2, 8),
)
def test_error_is_at_most_alpha_for_any_vector(
    values: list[float], alpha: float, block: int
) -> None:
    x = torch.tensor(values)
    if x.any():
        slack = 1e-44 * len(values) / float(x.abs().max())
        assert error(x, send(Spherical(alpha, block), x)) <= alpha * (1 + 1e-5) + slack


@pytest.mark.parametrize("magnitude", [1e-310, 1e-200, 1e-44, 1e30, 1e200, 1e306])
def test_magnitude_does_not_matter(magnitude: float) -> None:
    for name, x in hostile(200).items():
        scaled = x.double() / x.abs().max() * magnitude
        smallest = 5e-324 * math.sqrt(200) / float(scaled.abs().max())
        allowed = (math.sqrt(0.3) + smallest) ** 2 * (1 + 1e-9)
        assert error(scaled, send(Spherical(0.3, 4), scaled)) <= allowed, name


def test_half_precision_near_its_largest_number() -> None:
    for name, x in hostile(200).items():
        big = (x / x.abs().max() * 65000).to(torch.float16)
        assert error(big, send(Spherical(), big)) <= 0.5 + 1e-3, name
    with pytest.raises(InputError, match="spherical_unbiased: entries up to"):
        send(SphericalUnbiased(), big)


# --- bits ----------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [Spherical, SphericalUnbiased])
@pytest.mark.parametrize(
    ("alpha", "block"), [(0.5, 8), (0.5, 16), (0.3, 8), (0.2, 10), (0.1, 6), (0.05, 4)]
)
def test_bits_are_within_three_of_the_cap(
    cls: type[Spherical] | type[SphericalUnbiased], alpha: float, block: int
) -> None:
    """The whole message but the scales, over 600 blocks.

    Its standard deviation is below 2 bits a block, so 0.08 for their mean; the largest
    found is 2.6.
    """
    count = 600
    x = fll.rng.stream(2).normal(count * block)
    payload, _ = cls(alpha, block).encode(x, {}, fll.rng.stream(3))
    scales = len(encode_symbols(payload.tensor("scales")))
    bits = 8 * (len(fll.pack(payload)) - scales) / count
    assert bits <= bounds.spherical_cap_bits(block, alpha) + 3.0
    # Eight bits are what the paper's blocks would give the norm.
    assert 8 * scales / count < 5.0


@pytest.mark.parametrize(("alpha", "block"), [(0.5, 16), (0.1, 8)])
def test_fewer_bits_than_the_paper_counts(alpha: float, block: int) -> None:
    """Per entry, with its own norm of 31 bits a block and with one of 8."""
    x = fll.rng.stream(2).normal(600 * block)
    payload, _ = Spherical(alpha, block).encode(x, {}, fll.rng.stream(3))
    bits = 8 * len(fll.pack(payload)) / 600
    assert bits < bounds.spherical_bits(block, alpha, norm_bits=8.0)
    # Nothing with this error can be shorter.
    nmse = error(x, fll.decode(payload))
    assert bits * 600 > bounds.uncertainty_bits(600 * block, nmse)


@pytest.mark.parametrize(("alpha", "block"), [(0.5, 8), (0.2, 5)])
def test_the_first_direction_near_enough_is_taken(alpha: float, block: int) -> None:
    """Waiting times are geometric with the cap's probability; 3,000 at 5 sigma."""
    rows = fll.rng.stream(4).normal(3000, block).double()
    rows /= rows.norm(dim=1, keepdim=True)
    found = covering.cover(rows, fll.rng.stream(5), alpha)
    assert torch.equal(found.coded, torch.arange(3000))
    p = math.exp(bounds.log_cap_probability(block, alpha))
    waits = found.numbers.double() + 1
    # All rows see the same directions, which makes waits nearly independent only.
    assert abs(float(waits.mean()) * p - 1) < 2 * 5 / math.sqrt(3000)
    first = (waits == 1).double().mean()
    assert abs(float(first) - p) < 0.05
    assert float(found.cosines.min()) >= math.sqrt(1 - alpha) - 1e-12
    mean = bounds.cap_mean_cosine(block, alpha)
    assert float(found.cosines.mean()) == pytest.approx(mean, abs=0.01)


# --- the unbiased form ---------------------------------------------------------------


@pytest.mark.parametrize(("alpha", "block"), [(0.5, 8), (0.2, 3), (0.05, 4)])
def test_second_moment_is_attained_at_the_worst_norm(alpha: float, block: int) -> None:
    """``(1 + v) / k^2`` where scales are rounded with the largest variance.

    2,000 blocks in each of 20 messages, at 5 sigma.
    """
    c = SphericalUnbiased(alpha, block)
    _, steps = Spherical(alpha, block), c.encode(torch.ones(1), {}, fll.rng.stream(0))
    steps = int(steps[0].tensor("settings")[2])
    ratio = 2.0 ** (1.0 / steps)
    shrinkage = bounds.cap_mean_cosine(block, alpha)
    x = fll.rng.stream(7).normal(2000, block).double()
    x *= shrinkage * 2 * ratio / (1 + ratio) / x.norm(dim=1, keepdim=True)
    mean, sigma = moments(c, x, 20)
    guarantee = c.guarantee(tuple(x.shape))
    assert isinstance(guarantee, fll.Unbiased)
    assert guarantee.zeta == (1 + relative_variance(steps)) / shrinkage**2
    assert mean == pytest.approx(guarantee.omega, abs=5 * sigma)
    assert 20 * sigma < guarantee.omega


def test_the_mean_is_x_in_every_entry() -> None:
    """120 messages of 60 entries: 60 numbers at 5 sigma, 4e-5 by chance."""
    x = fll.rng.stream(8).normal(60).double()
    c = SphericalUnbiased(0.2, 3)
    sample = torch.stack([send(c, x, i) for i in range(120)])
    sigma = sample.std(0) / math.sqrt(120)
    assert bool(((sample.mean(0) - x).abs() < 5 * sigma).all())
    assert float((sigma / x.norm()).mean()) < 0.02


# --- blocks that find no direction ---------------------------------------------------


@pytest.mark.parametrize("cls", [Spherical, SphericalUnbiased])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_blocks_without_a_direction_are_sent_as_they_are(
    cls: type[Caps], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    c = cls(0.5, 8)
    x = fll.rng.stream(9).normal(805).to(dtype)  # the last block is not full
    x[16:24] = 0.0
    monkeypatch.setattr(covering, "PATIENCE", 1)
    payload, _ = c.encode(x, {}, fll.rng.stream(1))
    y = fll.decode(fll.unpack(fll.pack(payload)))
    plain = payload.tensor("plain")
    assert 10 < len(plain) < 90  # e^-1 of all for the unbiased form
    padded = [torch.nn.functional.pad(t, (0, 3)).reshape(-1, 8) for t in (x, y)]
    assert torch.equal(padded[0][plain], padded[1][plain])
    assert not bool(padded[1][2].any())
    coded = payload.tensor("scales").nonzero().reshape(-1)
    assert not set(coded.tolist()) & set(plain.tolist())
    assert len(coded) + len(plain) == 100  # all but the zero block
    monkeypatch.setattr(covering, "PATIENCE", 0)
    assert torch.equal(send(c, x), x)


# --- settings ------------------------------------------------------------------------


def test_impossible_settings() -> None:
    for cls in (Spherical, SphericalUnbiased):
        for alpha in (0.0, 0.005, 1.0, -1.0, math.nan):
            with pytest.raises(SettingError, match=f"{cls.name}: expected alpha in"):
                cls(alpha=alpha)
        for block in (1, 0, 65, -3, 10**30):
            with pytest.raises(SettingError, match=f"{cls.name}: expected a block of"):
                cls(block=block)


@pytest.mark.parametrize("cls", [Spherical, SphericalUnbiased])
def test_settings_that_would_wait_too_long_say_what_fits(cls: type[Caps]) -> None:
    with pytest.raises(SettingError, match=r"e\+12 on average.*fits") as caught:
        fll.parse(f"{cls.name}(alpha=0.1, block=24)")
    fit = int(str(caught.value).split("; block=")[1].split()[0])
    assert fit == 12
    assert cls(alpha=0.1, block=fit).block == 12
    # The experiments of the paper are possible.
    assert cls(alpha=0.15, block=14).guarantee((14,)) is not None
    assert cls(alpha=0.2, block=10).guarantee((10,)) is not None
