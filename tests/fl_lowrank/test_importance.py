"""Weights from mirror descent, against optima that are known."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import fl_lowrank as fll
from fl_lowrank.errors import InputError, SettingError
from fl_lowrank.importance import Cube, Domain, Simplex, Solution, solve

Loss = Callable[[dict[str, Tensor]], Tensor]


def normal(*shape: int, key: int = 0) -> Tensor:
    return fll.rng.stream(40, key).normal(*shape).to(torch.float64)


def gradient_of(loss: Loss) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    def gradient(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        inputs = {k: v.detach().requires_grad_() for k, v in parameters.items()}
        found = torch.autograd.grad(loss(inputs), list(inputs.values()))
        return dict(zip(inputs, found, strict=True))

    return gradient


class Quadratic:
    """``phi(w) = sum c / 2 (w - b)^2``, written as a loss of w u."""

    def __init__(self, d: int, key: int) -> None:
        self.step = normal(d, key=key)
        self.step += 0.3 * self.step.sign()
        self.best = 1.0 + 2.0 * normal(d, key=key + 100)
        self.curvature = 0.5 + normal(d, key=key + 200).abs()

    def loss(self, p: dict[str, Tensor]) -> Tensor:
        w = p["x"] / self.step
        return (self.curvature / 2.0 * (w - self.best).square()).sum()

    def phi(self, w: Tensor) -> float:
        return float(self.loss({"x": w * self.step}))

    def solve(self, domain: Domain, num_gradients: int = 300) -> Solution:
        x = {"x": torch.zeros_like(self.step)}
        gradient = gradient_of(self.loss)
        return solve(
            x, {"x": self.step}, gradient, domain=domain, num_gradients=num_gradients
        )

    def water_filled(self, total: float) -> Tensor:
        """``max(0, b - nu / c)`` with the nu that gives the sum."""
        low, high = -1e4, 1e4
        for _ in range(200):
            nu = (low + high) / 2.0
            w = (self.best - nu / self.curvature).clamp(min=0.0)
            low, high = (nu, high) if float(w.sum()) > total else (low, nu)
        return w


@pytest.mark.parametrize("d", [1, 2, 7, 60])
@pytest.mark.parametrize("total", [None, 1.0, 3.5])
def test_a_separable_quadratic_is_solved_on_the_simplex(
    d: int, total: float | None
) -> None:
    problem = Quadratic(d, key=d)
    found = problem.solve(Simplex(total)).weights["x"]
    best = problem.water_filled(d if total is None else total)
    start = problem.phi(torch.full((d,), (total or d) / d, dtype=torch.float64))
    assert float(found.sum()) == pytest.approx(total or d, rel=1e-12)
    assert float(found.min()) >= 0.0
    gap = problem.phi(found) - problem.phi(best)
    assert -1e-12 <= gap <= 1e-5 * (start - problem.phi(best)) + 1e-12
    torch.testing.assert_close(found, best, rtol=0.0, atol=0.02)


@pytest.mark.parametrize("bounds", [(0.0, 2.0), (1.0, 2.0)])
def test_a_separable_quadratic_is_solved_on_the_cube(
    bounds: tuple[float, float],
) -> None:
    problem = Quadratic(50, key=1)
    found = problem.solve(Cube(*bounds)).weights["x"]
    torch.testing.assert_close(found, problem.best.clamp(*bounds), rtol=0, atol=1e-6)
    assert ((found == bounds[0]) | (found == bounds[1])).sum() > 10


@pytest.mark.parametrize("total", [None, 1.0])
def test_the_entropic_problem_of_a_linear_loss_has_the_softmax(
    total: float | None,
) -> None:
    slope, step, entropy = normal(40), normal(40, key=1), 0.3
    found = solve(
        {"x": torch.ones(40, dtype=torch.float64)},
        {"x": step},
        lambda p: {"x": slope.expand_as(p["x"])},
        domain=Simplex(total, entropy=entropy),
        num_gradients=60,
    ).weights["x"]
    best = torch.softmax(-slope * step / entropy, 0) * (total or 40)
    torch.testing.assert_close(found, best, rtol=1e-6, atol=1e-9)


def test_without_regulariser_a_linear_loss_has_a_vertex() -> None:
    slope, step = normal(40), normal(40, key=1)
    found = solve(
        {"x": torch.zeros(40)},
        {"x": step},
        lambda p: {"x": slope},
        num_gradients=40,
    ).weights["x"]
    assert int(found.argmax()) == int((slope * step).argmin())
    assert float(found.max()) == pytest.approx(40.0, rel=1e-6)


ROWS = normal(6, 3, key=9)


def coupled_loss(p: dict[str, Tensor]) -> Tensor:
    """Neither separable nor quadratic, convex; over two tensors."""
    z = torch.cat([p["a"].reshape(-1), p["b"].reshape(-1)])
    return torch.logaddexp(2.0 * (ROWS @ z), torch.zeros(6)).sum() + z.pow(4).sum() / 9


@pytest.mark.parametrize("per_tensor", [True, False])
def test_the_best_of_a_grid_is_not_better(per_tensor: bool) -> None:
    """Three entries in two tensors; the grid has 0.01 between its points."""
    x = {"a": normal(2, key=2), "b": normal(1, 1, key=3)}
    step = {"a": 1.5 * normal(2, key=4), "b": normal(1, 1, key=5)}

    def phi(w: Tensor) -> float:
        at = {
            "a": x["a"] + w[:2] * step["a"],
            "b": x["b"] + w[2:].reshape(1, 1) * step["b"],
        }
        return float(coupled_loss(at))

    found = solve(
        x, step, gradient_of(coupled_loss), num_gradients=200, per_tensor=per_tensor
    ).weights
    assert found["b"].shape == (1, 1)
    w = torch.cat([found["a"], found["b"].reshape(-1)])
    ticks = [i / 100 for i in range(301)]
    grid = (
        [(u, 2.0 - u, 1.0) for u in ticks[:201]]
        if per_tensor
        else [(u, v, 3.0 - u - v) for u, v in itertools.product(ticks[::4], repeat=2)]
    )
    least = min(phi(torch.tensor(g, dtype=torch.float64)) for g in grid if min(g) >= 0)
    ones = phi(torch.ones(3, dtype=torch.float64))
    assert phi(w) <= least + 1e-9
    assert phi(w) > least - 0.05 * (ones - least)  # the grid is near the optimum


@pytest.mark.parametrize(
    "domain", [Simplex(), Simplex(1.0), Cube(), Simplex(None, 0.1)]
)
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_units_of_the_loss_do_not_matter(domain: Domain, scale: float) -> None:
    """The raw steps of the sources, 1 to 1e7, are for one unit each."""
    if isinstance(domain, Simplex) and domain.entropy:
        domain = Simplex(None, domain.entropy * scale)
    problem = Quadratic(30, key=3)
    plain = solve(
        {"x": torch.zeros(30, dtype=torch.float64)},
        {"x": problem.step},
        gradient_of(lambda p: scale * problem.loss(p)),
        domain=domain,
        num_gradients=12,
    ).weights["x"]
    start = domain.weights(domain.enter(torch.ones(30, dtype=torch.float64)))
    if domain == Simplex(1.0):
        least = problem.water_filled(1.0)
    elif domain == Cube():
        least = problem.best.clamp(0.0, 2.0)
    else:
        least = problem.water_filled(30.0)
    gain = problem.phi(start) - problem.phi(plain)
    assert gain >= 0.8 * (problem.phi(start) - problem.phi(least))


def test_no_taken_trial_raises_a_convex_loss() -> None:
    problem = Quadratic(40, key=4)
    values = [
        problem.phi(problem.solve(Simplex(), num_gradients=n).weights["x"])
        for n in range(2, 40)
    ]
    start = problem.phi(torch.ones(40, dtype=torch.float64))
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise([start, *values]))
    assert values[-1] < 0.6 * start


def test_every_gradient_is_counted_and_none_is_wasted() -> None:
    calls = 0
    problem = Quadratic(20, key=5)

    def gradient(p: dict[str, Tensor]) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        return gradient_of(problem.loss)(p)

    x, step = {"x": torch.zeros(20, dtype=torch.float64)}, {"x": problem.step}
    found = solve(x, step, gradient, num_gradients=17)
    assert found.num_gradients == calls == 17
    calls = 0
    flat = solve(x, {"x": torch.zeros(20)}, gradient)
    assert flat.num_gradients == calls == 1  # a step of nothing: all weights are alike
    assert torch.equal(flat.weights["x"], torch.ones(20))


def test_a_warm_start_needs_fewer_gradients() -> None:
    problem = Quadratic(50, key=6)
    x, step = {"x": torch.zeros(50, dtype=torch.float64)}, {"x": problem.step}
    gradient = gradient_of(problem.loss)
    long = solve(x, step, gradient, num_gradients=100)
    warm = solve(x, step, gradient, num_gradients=4, start=long.weights).weights["x"]
    cold = solve(x, step, gradient, num_gradients=4).weights["x"]
    best = problem.phi(problem.water_filled(50.0))
    assert problem.phi(warm) - best < 0.2 * (problem.phi(cold) - best)


def test_a_weight_that_was_zero_comes_back() -> None:
    problem = Quadratic(10, key=7)
    start = torch.zeros(10)
    start[int(problem.best.argmin())] = 1.0
    found = solve(
        {"x": torch.zeros(10, dtype=torch.float64)},
        {"x": problem.step},
        gradient_of(problem.loss),
        start={"x": start},
        num_gradients=300,
    ).weights["x"]
    torch.testing.assert_close(found, problem.water_filled(10.0), rtol=0, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_tensors_of_any_shape_and_of_lower_precision(dtype: torch.dtype) -> None:
    step = {"m": normal(4, 3).to(dtype), "s": normal().to(dtype), "e": torch.ones(0, 2)}
    x = {k: torch.zeros_like(v) for k, v in step.items()} | {"n": torch.tensor(5)}
    seen: list[dict[str, Tensor]] = []

    def gradient(p: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(dict(p))
        p["n"].add_(1)  # as a normalisation layer does
        return {k: v - 1.0 for k, v in p.items()}

    found = solve(x, step, gradient, num_gradients=9)
    assert {k: v.shape for k, v in found.weights.items()} == {
        k: v.shape for k, v in step.items()
    }
    assert all(v.dtype == torch.float32 for v in found.weights.values())
    assert float(found.weights["m"].sum()) == pytest.approx(12.0, rel=1e-5)
    assert float(found.weights["s"]) == pytest.approx(1.0)
    assert len(seen) == found.num_gradients > 2
    assert int(x["n"]) == 5


def test_a_loss_that_explodes_on_the_way_is_a_step_too_far() -> None:
    def gradient(p: dict[str, Tensor]) -> dict[str, Tensor]:
        z = p["x"]
        return {"x": torch.where(z > 1.5, math.nan, -torch.ones_like(z) * (z.numel()))}

    step = torch.linspace(0.5, 1.0, 8, dtype=torch.float64)
    found = solve({"x": torch.zeros(8)}, {"x": step}, gradient, num_gradients=40)
    w = found.weights["x"]
    assert bool(torch.isfinite(w).all())
    assert float((w * step).max()) <= 1.5
    assert float((w * step).sum()) > float(step.sum())


@pytest.mark.parametrize(
    ("gradient", "text"),
    [
        (lambda p: {}, "for 'x', found nothing"),
        (lambda p: {"x": torch.ones(2)}, r"shape \(3,\) for 'x', found \(2,\)"),
        (lambda p: {"x": torch.full((3,), math.nan)}, "NaN or infinity at the start"),
    ],
)
def test_useless_gradients_are_named(
    gradient: Callable[..., dict[str, Tensor]], text: str
) -> None:
    with pytest.raises(InputError, match=text):
        solve({"x": torch.zeros(3)}, {"x": torch.ones(3)}, gradient)


def test_impossible_settings() -> None:
    for total in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(SettingError, match="positive sum"):
            Simplex(total)
    for entropy in (-1.0, math.inf, math.nan):
        with pytest.raises(SettingError, match="entropy of at least 0"):
            Simplex(entropy=entropy)
    for low, high in ((-1.0, 2.0), (2.0, 2.0), (0.0, math.inf), (math.nan, 1.0)):
        with pytest.raises(SettingError, match="0 <= low < high"):
            Cube(low, high)
    with pytest.raises(SettingError, match="at least 2"):
        solve({}, {}, lambda p: p, num_gradients=1)
