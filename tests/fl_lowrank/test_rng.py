"""Random numbers: portable, keyed, uniform, and alike on every device."""

from __future__ import annotations

import math

import pytest
import torch

from fl_lowrank.errors import SettingError
from fl_lowrank.rng import Rng, _hash_device, stream


def test_the_numbers_never_change() -> None:
    """They are part of the wire format: both ends draw the positions of randk."""
    assert stream(7, "client", 3).key == 0xD7B44BFEC6A4B9D8
    assert stream(7, "client", 3).bits32(4).tolist() == [
        1456402317,
        724252601,
        1800380028,
        -1849715317,
    ]
    assert stream(0).uniform(2).tolist() == [0.48866403102874756, 0.355535089969635]
    assert Rng(12345).subset(5, 100).tolist() == [3, 4, 37, 40, 43]


@pytest.mark.parametrize("start", [0, 1, 40_000, 2**31 - 5, 2**32 - 100])
def test_torch_arithmetic_equals_numpy_arithmetic(start: int) -> None:
    """The torch form runs on CUDA; here it runs on the CPU."""
    rng = stream(1, start)
    count = min(70_000, 2**32 - start)
    on_device = _hash_device(start, rng.key, count, torch.device("cpu"))
    assert torch.equal(on_device, rng.bits32(count, start=start))


@pytest.mark.gpu
def test_cuda_draws_the_same() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    rng = stream(2)
    assert torch.equal(rng.bits32(100_001, "cuda").cpu(), rng.bits32(100_001))
    assert torch.equal(rng.uniform(999, "cuda").cpu(), rng.uniform(999))
    assert torch.equal(rng.subset(99, 9999, "cuda").cpu(), rng.subset(99, 9999))


def test_start_jumps() -> None:
    rng = stream(3)
    whole = rng.bits32(100_000)
    assert torch.equal(rng.bits32(30_000, start=70_000), whole[70_000:])


def test_any_counters() -> None:
    rng = stream(3)
    counters = torch.tensor([[70_000, 3], [99_999, 0]])
    kept = counters.clone()
    assert torch.equal(rng.bits32_at(counters), rng.bits32(100_000)[counters])
    last = torch.tensor([2**32 - 1], dtype=torch.int64)
    assert torch.equal(rng.bits32_at(last), rng.bits32(1, start=2**32 - 1))
    small = counters.to(torch.int32)
    assert torch.equal(rng.bits32_at(small), rng.bits32_at(counters))
    assert torch.equal(counters, kept)
    assert torch.equal(small, kept.to(torch.int32))


def test_counters_end() -> None:
    with pytest.raises(SettingError, match="counters below 2\\^32"):
        stream(3).bits32(2, start=2**32 - 1)


def test_streams_are_values() -> None:
    assert torch.equal(stream(4).bits32(99), stream(4).bits32(99))
    assert stream(4, "a", 1) == stream(4, "a", 1)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((1,), ("1",)),
        (("ab", "c"), ("a", "bc")),
        ((1, 2), (2, 1)),
        ((0,), ()),
        ((-1,), (2**64 - 1,)),
        ((255,), (-1,)),
    ],
)
def test_different_keys_give_different_streams(
    one: tuple[int | str, ...], other: tuple[int | str, ...]
) -> None:
    assert stream(5, *one).key != stream(5, *other).key
    assert stream(5).child(*one).key != stream(5).child(*other).key


def test_bits_are_uniform() -> None:
    """Each of 32 bits and 256 byte values: 288 tests at 5 sigma, 2e-4 by chance."""
    n = 1 << 20
    bits = stream(6).bits32(n).to(torch.int64) & 0xFFFFFFFF
    for i in range(32):
        ones = int((bits >> i & 1).sum())
        assert abs(ones - n / 2) < 5 * math.sqrt(n / 4), f"bit {i}"
    counts = torch.bincount(bits >> 24, minlength=256).to(torch.float64)
    assert float((counts - n / 256).abs().max()) < 5 * math.sqrt(n / 256)


def test_neighbouring_counters_and_streams_are_uncorrelated() -> None:
    """Six correlations at 5 sigma: 4e-6 by chance."""
    n = 1 << 18
    draws = stream(8).normal(n).to(torch.float64)
    others = [stream(8).child(i).normal(n).to(torch.float64) for i in range(3)]
    others += [draws.roll(shift) for shift in (1, 2, n // 2)]
    for other in others:
        assert abs(float(draws @ other)) / n < 5 / math.sqrt(n)


def test_uniform_is_in_the_unit_interval() -> None:
    u = stream(9).uniform(1 << 20).to(torch.float64)
    assert float(u.min()) >= 0.0
    assert float(u.max()) < 1.0
    assert abs(float(u.mean()) - 0.5) < 5 * math.sqrt(1 / 12 / u.numel())


def test_normal_has_the_moments_of_a_normal() -> None:
    """Mean, variance and fourth moment at 5 sigma: 2e-6 by chance."""
    z = stream(10).normal(1000, 1001).to(torch.float64)
    assert z.shape == (1000, 1001)
    n = z.numel()
    assert abs(float(z.mean())) < 5 / math.sqrt(n)
    assert abs(float(z.square().mean()) - 1) < 5 * math.sqrt(2 / n)
    assert abs(float((z**4).mean()) - 3) < 5 * math.sqrt(96 / n)


@pytest.mark.parametrize(("k", "d"), [(0, 0), (0, 5), (5, 5), (1, 7), (100, 1009)])
def test_subset_is_increasing_and_distinct(k: int, d: int) -> None:
    chosen = stream(11).subset(k, d)
    assert chosen.numel() == k
    assert bool((chosen[1:] > chosen[:-1]).all())
    assert all(0 <= i < d for i in chosen.tolist())


def test_subset_is_uniform() -> None:
    """Each of 20 positions as often as the others, at 5 sigma: 1e-5 by chance."""
    n, k, d = 4000, 3, 20
    counts = torch.zeros(d)
    for i in range(n):
        counts[stream(12, i).subset(k, d)] += 1
    p = k / d
    assert float((counts - n * p).abs().max()) < 5 * math.sqrt(n * p * (1 - p))


def test_uniform_numbers_can_be_drawn_from_any_place() -> None:
    rng = stream(5)
    whole = rng.uniform(200_000)
    for start in (0, 1, 65_536, 131_071):
        assert torch.equal(rng.uniform(1000, start=start), whole[start : start + 1000])
