"""sign: one bit an entry, the exact error, and a norm that never grows."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

import fl_lowrank as fll
from fl_lowrank import Contractive, Sign
from fl_lowrank.errors import InputError, WireError
from fl_lowrank.types import Coding, Field, Payload
from tests.fl_lowrank.compressing import error, send, signs


def expected_error(x: torch.Tensor) -> float:
    """``1 - |x|_1^2 / (d |x|^2)``."""
    wide = x.double().abs() / float(x.abs().max())
    return 1 - float(wide.sum() ** 2 / (wide.numel() * wide.square().sum()))


@pytest.mark.parametrize("d", [1, 7, 1000])
def test_error_is_the_known_one(d: int) -> None:
    normal = fll.rng.stream(60).normal(d)
    for x in (normal, normal**3, signs(d), torch.arange(d) - 0.5, normal.double()):
        y = send(Sign(), x)
        assert error(x, y) == pytest.approx(expected_error(x), abs=1e-6)
        assert float(y.double().norm()) <= float(x.double().norm()) * (1 + 1e-6)
        assert len(y.abs().unique()) == 1


@pytest.mark.parametrize("block", [None, 64])
def test_bound_is_attained_by_one_entry_a_block(block: int | None) -> None:
    x = torch.zeros(512)
    x[5 :: block or 512] = -0.7
    m = block or 512
    assert error(x, send(Sign(block), x)) == pytest.approx(1 - 1 / m, abs=1e-7)
    guarantee = Sign(block).guarantee((512,))
    assert isinstance(guarantee, Contractive)
    assert guarantee.delta == pytest.approx(1 / m, rel=1e-6)
    assert guarantee.delta <= 1 / m
    assert error(x, send(Sign(block), x)) <= 1 - guarantee.delta + 1e-9


def test_zeros_have_signs() -> None:
    y = send(Sign(), torch.tensor([0.0, -0.0, 4.0, -8.0]))
    assert y.tolist() == [3.0, -3.0, 3.0, -3.0]
    assert not send(Sign(), torch.tensor([0.0, -0.0])).any()
    blocks = torch.tensor([0.0, 0.0, 0.0, 1.0, -2.0, 3.0, -5.0])
    assert send(Sign(3), blocks).tolist() == [0, 0, 0, 2, -2, 2, -5]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("block", [None, 100])
def test_every_dtype_and_memory_order(dtype: torch.dtype, block: int | None) -> None:
    x = fll.rng.stream(61).normal(40, 30).to(dtype)
    for given in (x, x.T, x[::2, 1::3]):
        y = send(Sign(block), given)
        assert torch.equal(torch.signbit(y), torch.signbit(given))
        assert error(given, y) < 0.45


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_beyond_the_dtype(dtype: torch.dtype) -> None:
    """The mean fits although the sum does not."""
    top = torch.finfo(dtype).max
    x = torch.linspace(0.1, 1.0, 3000, dtype=dtype) * signs(3000).to(dtype) * top
    for block in (None, 300):
        y = send(Sign(block), x)
        assert bool(y.isfinite().all())
        assert error(x, y) < 0.25
    for bad in (math.inf, math.nan):
        x[17] = bad
        with pytest.raises(InputError, match="sign: expected finite numbers, found 1"):
            Sign().encode(x, {}, fll.rng.stream(0))


def test_integers_are_refused() -> None:
    with pytest.raises(InputError, match="sign: expected float16"):
        Sign().encode(torch.arange(4), {}, fll.rng.stream(0))


@pytest.mark.parametrize("d", [1, 8, 1001, 300_000])
def test_longer_than_a_chunk_of_work(d: int) -> None:
    """Means are summed and signs taken a chunk at a time."""
    x = fll.rng.stream(62).normal(d)
    y = send(Sign(), x)
    assert torch.equal(y < 0, x < 0)
    assert float(y.abs().max()) == pytest.approx(float(x.double().abs().mean()))
    halves = send(Sign(d // 2 + 1), x)
    mean = float(x[: d // 2 + 1].double().abs().mean())
    assert float(halves[0].abs()) == pytest.approx(mean, rel=2.0**-10)


def test_bytes() -> None:
    d = 100_001
    x = fll.rng.stream(63).normal(d)
    payload, _ = Sign().encode(x, {}, fll.rng.stream(0))
    assert len(fll.pack(payload)) <= d / 8 + 40
    payload, _ = Sign(250).encode(x, {}, fll.rng.stream(0))
    assert len(fll.pack(payload)) <= d / 8 + 2 * 401 + 40


@pytest.mark.parametrize("block", [None, 1, 7, 64])
@pytest.mark.parametrize("numel", [1, 7, 8, 301])
def test_bits_stay_packed_from_the_encoder_to_the_table(
    block: int | None, numel: int
) -> None:
    x = torch.randn(numel, generator=torch.Generator().manual_seed(numel))
    payload, _ = fll.Sign(block).encode(x, {}, fll.rng.stream(0))
    read = fll.unpack(fll.pack(payload))
    for each in (payload, read):
        packed, count = each.packed("negative")
        assert (packed.numel(), count) == (-(-numel // 8), numel)
        assert torch.equal(each.tensor("negative"), torch.signbit(x))
        assert torch.equal(torch.signbit(fll.decode(each)), torch.signbit(x))


def test_scales_beyond_the_dtype_saturate_or_are_refused() -> None:
    x = torch.tensor([1.0, -1.0], dtype=torch.float16)
    payload, _ = fll.Sign().encode(x, {}, fll.rng.stream(0))

    def scaled(scale: float) -> Payload:
        values = torch.tensor([scale], dtype=torch.float32)
        fields = dict(payload.fields) | {"scales": Field(Coding.RAW, values)}
        layout = torch.tensor([2, 0])
        return replace(
            payload, fields=fields | {"layout": Field(Coding.VARINTS, layout)}
        )

    assert fll.decode(scaled(65504.0)).tolist() == [65504.0, -65504.0]
    assert fll.decode(scaled(1e30)).tolist() == [65504.0, -65504.0]
    with pytest.raises(WireError, match="NaN"):
        fll.decode(scaled(math.nan))


def test_packed_bits_are_asked_for_by_who_knows_of_them() -> None:
    payload, _ = fll.Sign().encode(torch.ones(3), {}, fll.rng.stream(0))
    with pytest.raises(TypeError, match="expected packed bits in 'scales'"):
        payload.packed("scales")
