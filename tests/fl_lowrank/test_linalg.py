"""Factorisations against their oracles, and where they are fragile."""

from __future__ import annotations

import pytest
import torch

from fl_lowrank.linalg import (
    normalised,
    orthonormal,
    range_finder,
    truncated_svd,
    working_dtype,
)
from fl_lowrank.rng import stream
from fl_lowrank.shapes import as_matrix, matrix_shape


def power_law(m: int, n: int, key: int = 0) -> torch.Tensor:
    """A matrix with singular values 1, 1/2, 1/3, ..."""
    r = min(m, n)
    u = orthonormal(stream(key, "u").normal(m, r).to(torch.float64))
    v = orthonormal(stream(key, "v").normal(n, r).to(torch.float64))
    return (u / torch.arange(1, r + 1)) @ v.T


@pytest.mark.parametrize("what", ["full", "dependent", "zero columns", "zero", "tiny"])
def test_orthonormal_whatever_the_columns(what: str) -> None:
    a = stream(1).normal(30, 4).to(torch.float64)
    if what == "dependent":
        a[:, 2] = a[:, 0] - 3 * a[:, 1]
    if what == "zero columns":
        a[:, 1:] = 0
    if what == "zero":
        a.zero_()
    if what == "tiny":
        a *= 1e-300
    q = orthonormal(a)
    assert torch.allclose(q.T @ q, torch.eye(4, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(q @ (q.T @ a), a, atol=1e-12 * float(a.norm()) + 1e-320)


@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (1, 9), (9, 1), (5, 5)])
def test_truncated_svd_is_the_best_approximation(shape: tuple[int, int]) -> None:
    a = stream(2).normal(*shape).to(torch.float64)
    values = torch.linalg.svdvals(a)
    for rank in range(1, min(shape) + 1):
        left, right = truncated_svd(a, rank)
        assert left.shape == (shape[0], rank)
        assert right.shape == (shape[1], rank)
        error = float((left @ right.T - a).square().sum())
        assert error == pytest.approx(float(values[rank:].square().sum()), abs=1e-9)
        assert float(left.norm()) == pytest.approx(float(right.norm()))


def test_range_finder_is_near_the_best_and_power_steps_help() -> None:
    a = power_law(60, 48)
    best = float((torch.linalg.svdvals(a)[6:] ** 2).sum())
    errors = []
    for power_steps in (0, 1, 3):
        q = range_finder(a, 6, power_steps, stream(3))
        assert torch.allclose(q.T @ q, torch.eye(6, dtype=torch.float64), atol=1e-10)
        errors.append(float((a - q @ (q.T @ a)).square().sum()))
    assert best <= errors[2] <= errors[1] <= errors[0]
    assert errors[2] < 1.02 * best


@pytest.mark.parametrize(
    ("shape", "matrix"),
    [
        ((), (1, 1)),
        ((0,), (0, 0)),
        ((0, 7), (0, 0)),
        ((1,), (1, 1)),
        ((1009,), (1, 1009)),
        ((960,), (30, 32)),
        ((36,), (6, 6)),
        ((5, 0), (0, 0)),
        ((64, 32, 5, 5), (64, 800)),
        ((3, 4), (3, 4)),
    ],
)
def test_matrix_shape(shape: tuple[int, ...], matrix: tuple[int, int]) -> None:
    assert matrix_shape(shape) == matrix
    assert tuple(as_matrix(torch.zeros(shape)).shape) == matrix


@pytest.mark.parametrize("peak", [1e-45, 1e-40, 1e-30, 1.0, 3.4e38])
def test_normalised_neither_overflows_nor_vanishes(peak: float) -> None:
    x = torch.tensor([1.0, -0.5, 0.0]) * torch.tensor(peak)
    work, scale = normalised(x)
    assert float(work.abs().max()) == 1.0
    assert scale == float(x.abs().max())
    assert torch.allclose(work * scale, x)


def test_normalised_zero_and_empty() -> None:
    assert normalised(torch.zeros(3))[1] == 0.0
    work, scale = normalised(torch.zeros(0, dtype=torch.float16))
    assert (work.numel(), work.dtype, scale) == (0, torch.float32, 0.0)


def test_working_dtype() -> None:
    assert working_dtype(torch.float64) == torch.float64
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert working_dtype(dtype) == torch.float32
