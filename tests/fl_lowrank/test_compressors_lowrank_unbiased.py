"""lowrank_unbiased and atomo: exact constants, both ends' draws, sampling."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fl_lowrank as fll
from fl_lowrank import Atomo, Exact, LowRankUnbiased, Unbiased, decoders, wire
from fl_lowrank.compressors.atomo import probabilities, systematic_sample
from fl_lowrank.compressors.projected import PROJECTED, hartley
from fl_lowrank.errors import InputError, WireError
from fl_lowrank.types import Coding, Field, Payload, Shape
from tests.fl_lowrank.compressing import moments, send
from tests.fl_lowrank.test_compressors_lowrank import harmonic, spectrum

SHAPES: list[Shape] = [(20, 48), (48, 20), (31, 31), (97,), (6, 2, 3, 3)]


def inputs(shape: Shape) -> dict[str, Tensor]:
    """Dense, concentrated, and aligned with the transform."""
    count = fll.rng.stream(50).normal(*shape).numel()
    one_hot = torch.zeros(count)
    one_hot[count // 3] = 1.0
    wave = hartley(torch.eye(shape[-1]))[shape[-1] // 2].expand(shape)
    return {
        "normal": fll.rng.stream(50).normal(*shape),
        "one hot": one_hot.reshape(shape),
        "all equal": torch.ones(shape),
        "wave": wave.clone(),
    }


@pytest.mark.parametrize("n", [1, 2, 7, 12, 97, 1024])
def test_hartley_is_orthonormal_and_its_own_inverse(n: int) -> None:
    h = hartley(torch.eye(n, dtype=torch.float64))
    k = torch.arange(n, dtype=torch.float64)
    angle = 2 * torch.pi * torch.outer(k, k) / n
    assert torch.allclose(h, (angle.cos() + angle.sin()) / n**0.5, atol=1e-10)
    assert torch.allclose(h @ h, torch.eye(n, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("rank", [1, 5])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_second_moment_is_n_over_r_for_every_input(shape: Shape, rank: int) -> None:
    """An equality: 100 draws, 40 numbers at 5 sigma on both sides."""
    m, n = fll.shapes.matrix_shape(shape)
    zeta = max(m, n) / rank
    assert LowRankUnbiased(rank).guarantee(shape) == Unbiased(zeta)
    for name, x in inputs(shape).items():
        mean, sigma = moments(LowRankUnbiased(rank), x, 100)
        assert mean == pytest.approx(zeta - 1, abs=5 * sigma + 1e-5), name


def test_one_draw_is_a_projection_of_the_rows() -> None:
    """C(C(x)) by the same seed is n / r C(x), and rows in the kernel vanish."""
    c, n = LowRankUnbiased(6), 40
    basis = torch.eye(n, dtype=torch.float64)[:30]
    payload, _ = c.encode(basis, {}, fll.rng.stream(0))
    once = fll.decode(payload)
    again = fll.decode(c.encode(once, {}, fll.rng.stream(0))[0])
    assert torch.allclose(again, n / 6 * once, atol=1e-9)
    assert int(torch.linalg.matrix_rank(once)) == 6


def test_the_longer_side_is_sketched() -> None:
    for shape in ((10, 90), (90, 10)):
        payload, _ = LowRankUnbiased(3).encode(
            fll.rng.stream(51).normal(*shape), {}, fll.rng.stream(0)
        )
        assert payload.tensor("sketch").numel() == 30
        assert len(fll.pack(payload)) <= 4 * 30 + 40
    assert LowRankUnbiased(9).guarantee((9, 9)) == Exact()
    assert LowRankUnbiased(8).guarantee((9, 9)) == Unbiased(9 / 8)


def test_a_sketch_near_the_end_of_the_dtype_is_refused_or_finite() -> None:
    x = torch.full((50, 80), 30000.0, dtype=torch.float16)
    with pytest.raises(InputError, match="lowrank_unbiased: entries up to 3e"):
        LowRankUnbiased(2).encode(x, {}, fll.rng.stream(0))
    # A sketch beyond the halves travels in float32.
    wide = torch.zeros(50, 8000, dtype=torch.float16)
    wide[:, ::4] = 300.0
    payload, _ = LowRankUnbiased(4).encode(wide, {}, fll.rng.stream(0))
    assert bool(torch.isfinite(fll.decode(payload)).all())


@pytest.mark.parametrize(
    ("seed", "count", "shape"),
    [
        ([1], 0, (4, 6)),
        ([1], 7, (4, 6)),
        ([1], 24, (4, 6)),
        ([1], 28, (4, 6)),
        ([-1], 8, (4, 6)),
        ([1, 2], 8, (4, 6)),
        ([], 8, (4, 6)),
        ([1], 0, (0, 6)),
        ([1], 1, ()),
    ],
)
def test_forged_sketches(seed: list[int], count: int, shape: Shape) -> None:
    fields = {
        "seed": Field(Coding.VARINTS, torch.tensor(seed, dtype=torch.int64)),
        "sketch": Field(Coding.RAW, torch.ones(count)),
    }
    payload = Payload(PROJECTED, shape, torch.float32, fields)
    with pytest.raises(WireError, match="projected"):
        decoders.decode(decoders.unpack(wire.pack(payload)))


def test_integers_are_no_sketch() -> None:
    fields = {
        "seed": Field(Coding.VARINTS, torch.tensor([1])),
        "sketch": Field(Coding.RAW, torch.ones(8, dtype=torch.int64)),
    }
    with pytest.raises(WireError, match="8 numbers of a sketch"):
        decoders.decode(Payload(PROJECTED, (4, 6), torch.float32, fields))


@pytest.mark.parametrize("count", [1, 3, 7, 12, 20])
@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0, 4.0])
def test_probabilities_are_capped_proportions(count: int, decay: float) -> None:
    values = torch.arange(1, 13, dtype=torch.float64) ** -decay
    chances = probabilities(values, count)
    assert float(chances.sum()) == pytest.approx(min(count, 12))
    assert float(chances.max()) <= 1.0
    free = chances < 1.0 - 1e-9
    if bool(free.any()):
        factors = (chances / values)[free]
        assert torch.allclose(factors, factors[0])
        assert bool((values[~free] * factors[0] >= 1 - 1e-9).all())


def test_probabilities_of_few_positive_values() -> None:
    values = torch.tensor([3.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    assert probabilities(values, 3).tolist() == [1.0, 1.0, 0.0, 0.0]
    assert probabilities(0 * values, 3).tolist() == [0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0, 4.0])
def test_systematic_samples_have_the_size_and_the_probabilities(decay: float) -> None:
    """Over all starts, an evenly spaced 1,024, a position comes as often as stated."""
    values = torch.arange(1, 14, dtype=torch.float64) ** -decay
    for count in (1, 4, 9):
        chances = probabilities(values, count)
        seen = torch.zeros(13, dtype=torch.float64)
        for i in range(1024):
            kept = systematic_sample(chances, i / 1024)
            assert kept.numel() == count
            seen[kept] += 1 / 1024
        assert torch.allclose(seen, chances, atol=2 / 1024)


@pytest.mark.parametrize("decay", [0.0, 0.5, 2.0])
def test_atomo_has_the_moment_of_its_probabilities(decay: float) -> None:
    """``sum s^2 / p``: 100 draws at 5 sigma; for a flat spectrum min(m, n) / r."""
    values = torch.arange(1, 25, dtype=torch.float64) ** -decay
    x = spectrum(values, 40, 24)
    chances = probabilities(values, 4)
    zeta = float((values**2 / chances).sum() / (values**2).sum())
    mean, sigma = moments(Atomo(4), x, 100)
    assert mean == pytest.approx(zeta - 1, abs=5 * sigma + 1e-9)
    assert zeta <= 6 + 1e-9
    assert (zeta > 6 - 1e-9) == (decay == 0.0)
    assert Atomo(4).guarantee((40, 24)) == Unbiased(6.0)


def test_atomo_sends_low_ranks_exactly_and_zero_as_nothing() -> None:
    x = spectrum(torch.tensor([3.0, 2.0, 0.5], dtype=torch.float64), 30, 20)
    assert torch.allclose(send(Atomo(3), x), x, atol=1e-7)
    payload, _ = Atomo(3).encode(torch.zeros(30, 20), {}, fll.rng.stream(0))
    assert payload.tensor("left").numel() == 0


def test_atomo_beats_the_oblivious_sketch_on_decaying_spectra() -> None:
    x = harmonic(48, 48)
    adaptive, _ = moments(Atomo(6), x, 50)
    oblivious, _ = moments(LowRankUnbiased(12), x, 50)  # as many numbers
    assert adaptive < 0.6 * oblivious
