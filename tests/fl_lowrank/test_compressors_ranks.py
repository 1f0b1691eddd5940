"""Ranks by energy and by budget; factors that are coded further."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

import fl_lowrank as fll
from fl_lowrank import (
    Atomo,
    Contractive,
    Exact,
    LowRankUnbiased,
    NoGuarantee,
    PowerSgd,
    Rsvd,
    Svd,
    Unbiased,
)
from fl_lowrank.compressors import Then
from fl_lowrank.compressors.dense import dense_payload
from fl_lowrank.compressors.ranks import Ranked
from fl_lowrank.errors import SettingError, SpecError
from fl_lowrank.rng import Rng
from fl_lowrank.types import Compressor, Guarantee, Payload, Shape, State
from tests.fl_lowrank.compressing import error, moments, send
from tests.fl_lowrank.test_compressors_lowrank import harmonic, spectrum

SHAPES: list[Shape] = [(64, 48), (30, 100), (100, 30), (16, 3, 5, 5), (960,)]


def payload_of(compressor: Compressor, x: Tensor) -> Payload:
    return compressor.encode(x, compressor.init(tuple(x.shape)), fll.rng.stream(0))[0]


def numbers(payload: Payload) -> int:
    """Real numbers that are sent."""
    return sum(payload.tensor(name).numel() for name in payload.kind.inner)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("cls", [Svd, Rsvd, PowerSgd, Atomo, LowRankUnbiased])
def test_budgets_are_kept_and_used(cls: type[Ranked], shape: Shape) -> None:
    x = fll.rng.stream(40).normal(*shape)
    cost = cls.column_cost(shape)
    for budget in (cost, 2 * cost + 1, x.numel() // 2):
        sent = numbers(payload_of(cls(floats=budget), x))
        assert budget - cost < sent <= budget
        by_ratio = cls(ratio=(budget + 0.5) / x.numel())
        assert numbers(payload_of(by_ratio, x)) == sent
    assert numbers(payload_of(cls(floats=1), x)) == cost  # one column at least
    assert cls(ratio=1e-9).columns(shape) == 1
    assert torch.equal(send(cls(floats=10**30), x), x)
    assert cls(floats=10**30).guarantee(shape) == Exact()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("shape", [(64, 48), (30, 100)])
def test_svd_by_energy_takes_the_least_rank(
    shape: tuple[int, int], share: float, dtype: torch.dtype
) -> None:
    x = harmonic(*shape).to(dtype)
    squares = torch.linalg.svdvals(x.double()).square()
    enough = squares.cumsum(0) >= share * squares.sum()
    least = int(enough.to(torch.int8).argmax()) + 1
    payload = payload_of(Svd(energy=share), x)
    cost = Svd.column_cost(shape)
    expected = least * cost if least * cost < x.numel() else x.numel()
    assert numbers(payload) == expected
    assert error(x, send(Svd(energy=share), x)) <= 1 - share + 1e-5


@pytest.mark.parametrize("iterations", [0, 1])
@pytest.mark.parametrize("share", [0.3, 0.9, 0.9999])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rsvd_by_energy_keeps_it_in_every_message(
    shape: Shape, share: float, iterations: int
) -> None:
    """Also of a flat spectrum, where a random subspace holds least."""
    noise = fll.rng.stream(41).normal(*shape)
    m, n = fll.shapes.matrix_shape(shape)
    flat = spectrum(torch.ones(min(m, n), dtype=torch.float64), m, n).reshape(shape)
    decaying = harmonic(m, n).reshape(shape)
    c = Rsvd(energy=share, num_iterations=iterations)
    for x in (noise.double(), flat, decaying):
        for key in range(3):
            assert error(x, send(c, x, key)) <= 1 - share + 1e-12
    if iterations and share < 0.5:
        best = numbers(payload_of(Svd(energy=share), decaying))
        assert numbers(payload_of(c, decaying)) <= 2 * best


def test_energies_are_declared_where_they_can_be_lost() -> None:
    assert Svd(energy=0.9).guarantee((40, 30)) == Contractive(0.9)
    assert Rsvd(energy=0.25).guarantee((40, 30)) == Contractive(0.25)
    assert Svd(energy=0.9).guarantee((1009,)) == Exact()
    assert payload_of(Svd(energy=0.9), torch.zeros(40, 30)).kind.name == "lowrank"
    # Twenty equal singular values: 99% of them in factors are more than the matrix.
    x = torch.eye(20)
    assert payload_of(Svd(energy=0.99), x).kind.name == "dense"
    assert torch.equal(send(Svd(energy=0.99), x), x)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("svd(rank=2, energy=0.5)", "expected one of rank, ratio, floats, energy, f"),
        ("powersgd(ratio=0.1, floats=9)", "found ratio=0.1 and floats=9"),
        ("svd(energy=1.0)", r"an energy in \(0, 1\), found 1.0"),
        ("rsvd(energy=0.0)", r"an energy in \(0, 1\), found 0.0"),
        ("svd(ratio=0.0)", r"a ratio in \(0, 1\], found 0.0"),
        ("atomo(ratio=1.5)", r"a ratio in \(0, 1\], found 1.5"),
        ("lowrank_unbiased(floats=0)", "floats of at least 1, found 0"),
        ("atomo(rank=0)", "a rank of at least 1, found 0"),
    ],
)
def test_impossible_settings(text: str, what: str) -> None:
    with pytest.raises(SettingError, match=what):
        fll.parse(text)


def test_rank_four_is_the_default() -> None:
    for name in ("svd", "rsvd", "powersgd", "atomo", "lowrank_unbiased"):
        default, four = fll.parse(f"{name}()"), fll.parse(f"{name}(rank=4)")
        assert default.guarantee((40, 24)) == four.guarantee((40, 24))
        assert default.inner_shapes((40, 24)) == four.inner_shapes((40, 24))
    assert str(Svd(energy=0.5)) == "svd(energy=0.5)"
    with pytest.raises(SpecError, match="no setting 'energy'"):
        fll.parse("powersgd(energy=0.5)")


@pytest.mark.parametrize("c", [Svd(4), Rsvd(4), PowerSgd(4), Atomo(4)], ids=str)
@pytest.mark.parametrize("shape", [(60, 48), (48, 60)])
def test_columns_are_orthogonal_and_of_equal_lengths(
    c: Compressor, shape: tuple[int, int]
) -> None:
    payload = payload_of(c, harmonic(*shape))
    left = payload.tensor("left").reshape(shape[0], -1)
    right = payload.tensor("right").reshape(shape[1], -1)
    grams = left.T @ left, right.T @ right
    assert torch.allclose(*grams, atol=1e-9)
    assert torch.allclose(grams[0], torch.diag(torch.diag(grams[0])), atol=1e-9)


@dataclass(frozen=True)
class Off(Compressor):
    """Add an error of a given relative square to the first entry, for the worst."""

    name: ClassVar[str] = "off"

    square: float
    random: bool = False

    def guarantee(self, shape: Shape) -> Guarantee:
        del shape
        if self.random:
            return Unbiased(1.0 + self.square)
        return Contractive(1.0 - self.square)

    def encode(self, x: Tensor, state: State, rng: Rng) -> tuple[Payload, State]:
        sign = 1.0 if not self.random or float(rng.uniform(1)[0]) < 0.5 else -1.0
        y = x.clone()
        y[0] += sign * math.sqrt(self.square) * float(x.norm())
        return dense_payload(y), state


@pytest.mark.parametrize("rank", [1, 2, 4])
@pytest.mark.parametrize("square", [1e-6, 1e-4, 1e-3])
def test_svd_with_coded_factors_contracts_as_stated(rank: int, square: float) -> None:
    """Singular vectors are unit vectors, so the errors lie in the largest column."""
    weak = 1.0 / (1.0 + math.sqrt(rank))  # where that column weighs most
    c = Then(Svd(rank), Off(square))
    stated = c.guarantee((40, 24))
    assert isinstance(stated, Contractive)
    for tail in (0.0, 0.5, 1.0):
        values = torch.full((24,), weak * tail, dtype=torch.float64)
        values[:rank] = weak
        values[0] = 1.0
        x = torch.diag(values)[torch.arange(40) % 24] * (torch.arange(40) < 24)[:, None]
        off, plain = error(x, send(c, x)), error(x, send(Svd(rank), x))
        assert plain < off <= 1 - stated.delta
        if rank == 1:  # both factors are longer by the root of the relative square
            longer = 2 * math.sqrt(square) + square
            shorter = 2 * math.sqrt(square) - square
            found = math.sqrt((off - plain) / (1 - plain))
            assert min(abs(found - longer), abs(found - shorter)) < 1e-9
    assert isinstance(Then(Svd(rank), Off(0.3)).guarantee((40, 24)), NoGuarantee)


def test_statements_on_coded_factors() -> None:
    shape = (1024, 1024)
    fine = Then(Svd(4), fll.SparseDithering(nu=1e-4)).guarantee(shape)
    assert isinstance(fine, Contractive)
    assert 0.9 * 4 / 1024 < fine.delta < 4 / 1024
    for text in (
        "svd(rank=4) >> sparse_dithering(nu=0.1)",
        "svd(energy=0.9) >> sparse_dithering(nu=0.0001)",
        "rsvd(rank=4) >> sparse_dithering(nu=0.0001)",
        "powersgd(rank=4) >> sparse_dithering(nu=0.0001)",
        "atomo(rank=4) >> natural()",
        "tucker(rank=4) >> natural()",
        "tensor_train(rank=4) >> natural()",
    ):
        assert isinstance(fll.parse(text).guarantee(shape), NoGuarantee), text
    noisy = fll.parse("atomo(rank=4) >> natural_stochastic()").guarantee(shape)
    assert noisy == Unbiased(256 * (1 + 3 / 8 + 4 / 64))
    once = fll.parse("lowrank_unbiased(rank=4) >> natural_stochastic()")
    assert once.guarantee(shape) == Unbiased(256 * 9 / 8)
    assert fll.parse("svd(rank=4) >> identity()").guarantee(shape) == Contractive(
        4 / 1024
    )


@pytest.mark.parametrize("square", [0.01, 0.3])
def test_atomo_with_coded_factors_stays_below_its_second_moment(square: float) -> None:
    """Variance of 100 draws on flat and steep spectra, at 5 sigma."""
    c = Then(Atomo(3), Off(square, random=True))
    stated = c.guarantee((20, 12))
    assert isinstance(stated, Unbiased)
    for decay in (0.0, 2.0):
        values = torch.arange(1, 13, dtype=torch.float64) ** -decay
        mean, sigma = moments(c, spectrum(values, 20, 12), 100)
        assert mean <= stated.omega + 5 * sigma
        assert mean > 0
