"""The rotation: orthonormal for any length, invertible, spreading, its bounds true."""

from __future__ import annotations

import math

import pytest
import torch

from fl_lowrank.hadamard import (
    hadamard_matrix,
    rotate,
    rotate_back,
    window_length,
)
from fl_lowrank.rng import Rng, stream

LENGTHS = (1, 2, 3, 7, 12, 13, 63, 64, 65, 100, 257, 960, 1009)
PALEY = (4, 8, 12, 20, 24, 32, 44, 60, 68, 72, 84, 104, 108)


def matrix_of(d: int, rng: Rng) -> torch.Tensor:
    """Rotate the unit vectors: the columns of R."""
    eye = torch.eye(d, dtype=torch.float64)
    return torch.stack([rotate(row, rng) for row in eye], dim=1)


@pytest.mark.parametrize("order", [1, 2, 16, 64, *PALEY])
def test_hadamard_matrices_are_orthonormal_and_flat(order: int) -> None:
    h = hadamard_matrix(order)
    eye = torch.eye(order, dtype=torch.float64)
    assert torch.allclose(h @ h.T, eye, atol=1e-12)
    flat = torch.full_like(h, order**-0.5)
    assert torch.allclose(h.abs(), flat, atol=1e-15)


@pytest.mark.parametrize("d", [1, 2, 3, 7, 13, 64, 100, 121])
def test_the_map_is_orthogonal(d: int) -> None:
    r = matrix_of(d, stream(1, d))
    assert torch.allclose(r @ r.T, torch.eye(d, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("d", LENGTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rotate_back_inverts(d: int, dtype: torch.dtype) -> None:
    x = stream(2, d).normal(d).to(dtype)
    before = x.clone()
    y = rotate(x, stream(3))
    z = rotate_back(y, stream(3))
    assert torch.equal(x, before)
    assert z.dtype == y.dtype == dtype
    bound = 20 * torch.finfo(dtype).eps * float(x.norm())
    assert float((z - x).norm()) <= bound
    assert float(y.norm()) == pytest.approx(float(x.norm()), abs=bound)


def test_the_empty_vector() -> None:
    empty = torch.zeros(0)
    assert rotate(empty, stream(0)).shape == (0,)
    assert rotate_back(empty, stream(0)).shape == (0,)


def test_another_seed_is_another_rotation() -> None:
    x = stream(4).normal(200)
    assert not torch.allclose(rotate(x, stream(1)), rotate(x, stream(2)), atol=0.1)
    assert torch.equal(rotate(x, stream(1)), rotate(x, stream(1)))


def test_signs_do_not_depend_on_how_they_are_chunked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """More entries than are drawn at a time: the same rotation."""
    x = stream(5).normal(1000)
    whole = rotate(x, stream(6))
    monkeypatch.setattr("fl_lowrank.hadamard._CHUNK", 96)
    assert torch.equal(rotate(x, stream(6)), whole)


def test_the_window_leaves_out_little() -> None:
    lengths = range(1, 1 << 14)
    windows = {d: window_length(d) for d in lengths}
    assert all(d / 2 < n <= d for d, n in windows.items())
    assert all(n > 0.89 * d for d, n in windows.items() if d >= 64)
    assert all(windows[1 << i] == 1 << i for i in range(14))
    for d in (10**5, 10**6, 11_173_962, 10**9):
        assert 0.89 * d < window_length(d) <= d


@pytest.mark.parametrize("d", [4096, 15_359, 10_007])
def test_a_power_law_becomes_normal(d: int) -> None:
    """Excess kurtosis of u below 5 of its standard errors, sqrt(24 / d), over 20 seeds.

    The entries before the
    window of the second transform, a tenth at worst, have seen only the first.
    """
    x = 1.0 / torch.arange(1, d + 1, dtype=torch.float64)
    head = d - window_length(d)
    excess = []
    for i in range(20):
        y = rotate(x, stream(7, i))[head:]
        u = y / y.square().mean().sqrt()
        excess.append(float(u.pow(4).mean()) - 3.0)
    mean = sum(excess) / 20
    assert abs(mean) < 5 * math.sqrt(24 / d / 20)


def test_one_transform_would_not_do() -> None:
    """It leaves the excess kurtosis of ``sum +-1/j``, which is -0.8."""
    x = 1.0 / torch.arange(1, 1025, dtype=torch.float64)
    u = hadamard_matrix(1024) @ (x * stream(13).normal(1024).sign())
    assert float(u.pow(4).mean() / u.square().mean() ** 2) < 2.5


def inputs(d: int) -> dict[str, torch.Tensor]:
    """Where the bounds are nearly attained, and others."""
    x = torch.zeros(4, d, dtype=torch.float64)
    x[0, 0] = 1.0
    x[1, -1] = 1.0
    x[2, [0, d // 2]] = 1.0
    x[3] = stream(8).normal(d)
    return dict(zip(("first", "last", "two", "normal"), x, strict=True))


@pytest.mark.parametrize("d", [2, 7, 11, 64])
def test_bounds_of_the_moments(d: int) -> None:
    """Means of 100 draws at 5 standard errors (3e-7 for each of 64 numbers)."""
    n = window_length(d)
    for name, x in inputs(d).items():
        x = x / x.norm()
        y = torch.stack([rotate(x, stream(9, i)) for i in range(100)])
        taxicab = y.abs().sum(1).square()
        fourth = d**2 * y.pow(4).sum(1)
        for values, low, high in (
            (taxicab, n / 2, float(d)),
            (fourth, float(d), 3 * d**2 / n),
        ):
            error = float(values.std()) / 10
            mean = float(values.mean())
            assert low - 5 * error - 1e-9 <= mean <= high + 5 * error + 1e-9, name


def test_the_bound_of_one_bit_is_attained() -> None:
    """Two entries: the rotation only permutes, so one entry stays alone."""
    y = rotate(torch.tensor([0.0, 1.0], dtype=torch.float64), stream(10))
    assert float(y.abs().sum()) ** 2 == pytest.approx(window_length(2) / 2)


@pytest.mark.gpu
@pytest.mark.parametrize("d", [1, 100, 1009, 1 << 17, 122_879])
def test_cuda_gives_the_same_rotation(d: int) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    x = stream(11).normal(d)
    y = rotate(x, stream(12))
    z = rotate(x.cuda(), stream(12))
    assert z.is_cuda
    assert float((z.cpu() - y).norm()) <= 1e-5 * float(x.norm())
    assert float((rotate_back(z, stream(12)).cpu() - x).norm()) <= 1e-5 * float(
        x.norm()
    )
