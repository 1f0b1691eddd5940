"""svd, rsvd, powersgd: optimality, attained bounds, hostile warm starts."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

import fl_lowrank as fll
from fl_lowrank import Contractive, Exact, PowerSgd, Rsvd, Svd
from fl_lowrank.errors import SettingError
from fl_lowrank.linalg import orthonormal
from fl_lowrank.types import Compressor, State
from tests.fl_lowrank.compressing import error, moments, send

METHODS = (Svd(4), Rsvd(4), PowerSgd(4))


def spectrum(values: Tensor, m: int, n: int, key: int = 0) -> Tensor:
    """A random m x n matrix with these singular values."""
    r = len(values)
    rng = fll.rng.stream(30, key)
    u = orthonormal(rng.child("u").normal(m, r).to(torch.float64))
    v = orthonormal(rng.child("v").normal(n, r).to(torch.float64))
    return (u * values) @ v.T


def harmonic(m: int, n: int) -> Tensor:
    return spectrum(1.0 / torch.arange(1, min(m, n) + 1, dtype=torch.float64), m, n)


@pytest.mark.parametrize("shape", [(32, 32), (20, 48), (48, 20), (200, 9), (9, 200)])
def test_svd_bound_is_attained_by_a_flat_spectrum(shape: tuple[int, int]) -> None:
    x = spectrum(torch.ones(min(shape), dtype=torch.float64), *shape)
    for rank in (1, 4):
        expected = 1 - rank / min(shape)
        assert error(x, send(Svd(rank), x)) == pytest.approx(expected, abs=1e-9)
        assert Svd(rank).guarantee(shape) == Contractive(rank / min(shape))


@pytest.mark.parametrize("shape", [(32, 32), (20, 48), (48, 20)])
def test_svd_is_the_best(shape: tuple[int, int]) -> None:
    x = fll.rng.stream(31).normal(*shape).to(torch.float64)
    values = torch.linalg.svdvals(x)
    best = float((values[4:] ** 2).sum() / (values**2).sum())
    assert error(x, send(Svd(4), x)) == pytest.approx(best, abs=1e-9)
    for other in METHODS:
        assert error(x, send(other, x)) >= best - 1e-9


@pytest.mark.parametrize(
    "compressor", [PowerSgd(4), Rsvd(4, oversampling=0, num_iterations=0)], ids=str
)
@pytest.mark.parametrize("shape", [(32, 32), (20, 48), (48, 20)])
def test_a_random_start_keeps_the_share_of_a_flat_spectrum(
    compressor: Compressor, shape: tuple[int, int]
) -> None:
    """In the mean exactly 1 - r / min(m, n); 100 draws at 5 sigma."""
    x = spectrum(torch.ones(min(shape), dtype=torch.float64), *shape)
    mean, sigma = moments(compressor, x, 100)
    assert mean == pytest.approx(1 - 4 / min(shape), abs=5 * sigma + 1e-9)


def test_rsvd_is_near_the_best() -> None:
    x = harmonic(60, 48)
    best = error(x, send(Svd(6), x))
    assert error(x, send(Rsvd(6), x)) <= 1.02 * best
    assert error(x, send(Rsvd(6, num_iterations=3), x)) <= 1.001 * best


def test_warm_powersgd_comes_to_the_best() -> None:
    x = harmonic(60, 48)
    best = error(x, send(Svd(6), x))
    c = PowerSgd(6)
    state: State = c.init((60, 48))
    errors = []
    for turn in range(30):
        payload, state = c.encode(x, state, fll.rng.stream(turn))
        errors.append(error(x, fll.decode(payload)))
    assert errors[0] > 1.5 * best
    assert errors[29] <= 1.03 * best
    assert all(after <= before + 1e-9 for before, after in pairwise(errors))


@pytest.mark.parametrize("shape", [(32, 32), (20, 48), (48, 20)])
@pytest.mark.parametrize("num_iterations", [1, 3])
def test_powersgd_leaves_a_start_that_lost_touch(
    shape: tuple[int, int], num_iterations: int
) -> None:
    """The state is orthogonal to all rows of the next input: nothing would be sent."""
    m, n = shape
    basis = orthonormal(fll.rng.stream(32).normal(n, n).to(torch.float64))
    seen = fll.rng.stream(33).normal(m, n // 2).to(torch.float64) @ basis[:, : n // 2].T
    rest = n - n // 2
    unseen = fll.rng.stream(34).normal(m, rest).to(torch.float64) @ basis[:, -rest:].T
    c = PowerSgd(4, num_iterations)
    _, state = c.encode(seen, c.init(shape), fll.rng.stream(0))
    state = {"right": state["right"].double() @ torch.eye(4, dtype=torch.float64)}
    state["right"] -= basis[:, -rest:] @ (basis[:, -rest:].T @ state["right"])
    assert float((unseen @ state["right"]).norm()) < 1e-6
    share = 4 / min(shape)
    errors = [
        error(unseen, fll.decode(c.encode(unseen, state, fll.rng.stream(i))[0]))
        for i in range(50)
    ]
    assert sum(errors) / 50 <= 1 - share


@pytest.mark.parametrize("bad", ["zeros", "huge", "rank one", "tiny"])
def test_powersgd_with_any_start(bad: str) -> None:
    x = harmonic(40, 24).to(torch.float32)
    start = fll.rng.stream(35).normal(24, 4)
    if bad == "zeros":
        start.zero_()
    if bad == "huge":
        start *= 1e30
    if bad == "rank one":
        start = start[:, :1].repeat(1, 4)
    if bad == "tiny":
        start *= 1e-38
    payload, state = PowerSgd(4).encode(x, {"right": start}, fll.rng.stream(0))
    assert error(x, fll.decode(payload)) <= 1 - 4 / 24
    assert bool(torch.isfinite(state["right"]).all())


@pytest.mark.parametrize("compressor", METHODS, ids=str)
@pytest.mark.parametrize("shape", [(32, 32), (20, 48), (48, 20)])
def test_low_rank_matrices_are_sent_exactly(
    compressor: Compressor, shape: tuple[int, int]
) -> None:
    for rank in (0, 1, 3, 4):
        x = spectrum(torch.ones(rank, dtype=torch.float64), *shape)
        y = send(compressor, x)
        assert torch.allclose(x, y, atol=1e-9), rank


@pytest.mark.parametrize("compressor", METHODS, ids=str)
def test_zero_rows_and_columns_stay_zero(compressor: Compressor) -> None:
    x = harmonic(40, 30)
    x[::3] = 0
    x[:, 5:20] = 0
    y = send(compressor, x)
    assert float(y[::3].abs().max()) < 1e-12
    assert float(y[:, 5:20].abs().max()) < 1e-12


@pytest.mark.parametrize("compressor", METHODS, ids=str)
@pytest.mark.parametrize("shape", [(1000, 10), (10, 1000), (16, 3, 5, 5)])
def test_tall_wide_and_convolution(
    compressor: Compressor, shape: tuple[int, ...]
) -> None:
    """Of 20 draws, the mean is below the bound by far more than its error."""
    x = fll.rng.stream(36).normal(*shape)
    x[0] *= 10
    share = 4 / min(shape[0], x[0].numel())
    assert moments(compressor, x, 20)[0] <= 1 - share


@pytest.mark.parametrize("compressor", METHODS, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (1009,), (1, 50), (6, 6), (3, 0)])
def test_where_factors_do_not_pay_the_tensor_is_sent(
    compressor: Compressor, shape: tuple[int, ...]
) -> None:
    x = fll.rng.stream(37).normal(*shape)
    assert compressor.guarantee(shape) == Exact()
    assert compressor.init(shape) == {}
    assert torch.equal(send(compressor, x), x)


@pytest.mark.parametrize("compressor", METHODS, ids=str)
@pytest.mark.parametrize(
    ("dtype", "magnitude", "slack"),
    [
        (torch.float16, 3e-6, 0.1),
        (torch.float16, 60000.0, 1e-2),
        (torch.bfloat16, 1e30, 5e-2),
        (torch.float32, 1e-40, 1e-3),
        (torch.float32, 1e30, 1e-5),
        (torch.float64, 1e-300, 1e-9),
        (torch.float64, 1e300, 1e-9),
    ],
)
def test_magnitudes(
    compressor: Compressor, dtype: torch.dtype, magnitude: float, slack: float
) -> None:
    x = harmonic(40, 24)
    plain = error(x, send(compressor, x))
    scaled = (x / x.abs().max() * magnitude).to(dtype)
    assert error(scaled, send(compressor, scaled)) <= plain + slack


def test_sums_are_one_product() -> None:
    xs = [fll.rng.stream(38, i).normal(40, 24) for i in range(5)]
    payloads = [Svd(2).encode(x, {}, fll.rng.stream(0))[0] for x in xs]
    weights = [0.1, -1.0, 2.0, 0.0, 1.0]
    out = torch.ones(40, 24, dtype=torch.float64)
    fll.accumulate(payloads, weights, out)
    expected = 1.0 + sum(
        w * fll.decode(p).double() for w, p in zip(weights, payloads, strict=True)
    )
    assert torch.allclose(out, torch.as_tensor(expected), atol=1e-5)


def test_impossible_settings() -> None:
    with pytest.raises(SettingError, match="svd: expected a rank of at least 1"):
        Svd(0)
    with pytest.raises(SettingError, match="rsvd: expected oversampling"):
        Rsvd(2, oversampling=-1)
    with pytest.raises(SettingError, match="powersgd: expected num_iterations"):
        PowerSgd(2, num_iterations=0)
