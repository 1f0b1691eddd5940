from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

import fl_lowrank as fll
from fl_lowrank.feedback import EF, EF21, EF21SGDM, Dasha, Diana, Feedback, Plain
from simulations.quadratics import (
    Problem,
    heterogeneous_quadratics,
    logistic_regression,
    run_feedback,
)


def _logistic() -> Problem:
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(60, 8)))
    y = (x[:, 0] + 0.5 * torch.from_numpy(rng.normal(size=60)) > 0).long()
    return logistic_regression(x, y, 6, l2=0.1)


PROBLEMS = {
    "quadratics": lambda: heterogeneous_quadratics(10, 20, condition=10.0),
    "logistic": _logistic,
}


@pytest.fixture(params=PROBLEMS)
def problem(request: pytest.FixtureRequest) -> Problem:
    return PROBLEMS[request.param]()


def test_stated_smoothness_bounds_the_gradients(problem: Problem) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        x, y = torch.randn(2, problem.dimension, generator=generator).double()
        change = problem.gradients(x) - problem.gradients(y)
        distance = (x - y).norm()
        assert (change.norm(dim=1) <= problem.local_smoothness * distance).all()
        assert change.mean(dim=0).norm() <= problem.smoothness * distance
    assert problem.smoothness <= problem.local_smoothness.mean() + 1e-12


def test_logistic_gradient_equals_that_of_autograd() -> None:
    x = torch.tensor([[1.0, 2.0], [0.5, -1.0], [-1.0, 0.3], [2.0, 1.0]]).double()
    y = torch.tensor([1, 0, 1, 0])
    problem = logistic_regression(x, y, 2, l2=0.05)
    point = torch.tensor([0.3, -0.7], dtype=torch.float64, requires_grad=True)
    signs = (y * 2 - 1).double()
    loss = torch.log1p(torch.exp(-signs * (x @ point))).mean()
    (expected,) = torch.autograd.grad(loss + 0.025 * point.square().sum(), point)
    found = problem.gradients(point.detach()).mean(dim=0)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("feedback", "compressor"),
    [
        (EF21(), fll.TopK(fraction=0.25)),
        (EF21(), fll.Shrunk(fll.RandK(fraction=0.25))),
        pytest.param(  # its step is a tenth of EF21's
            EF21SGDM(momentum=0.5), fll.TopK(fraction=0.5), marks=pytest.mark.slow
        ),
        (Diana(), fll.RandK(fraction=0.25)),
        (Diana(), fll.NaturalStochastic()),
        (Dasha(), fll.RandK(fraction=0.25)),
    ],
    ids=str,
)
def test_it_converges_linearly_with_the_step_of_its_theorem(
    problem: Problem, feedback: Feedback, compressor: fll.Compressor
) -> None:
    step = problem.safe_step(feedback, compressor)
    history = run_feedback(
        problem, feedback, compressor, step=step, num_rounds=6000, tolerance=1e-20
    )
    assert history[-1] <= 1e-20
    # Linear: each quarter of the rounds takes about a quarter of the digits.
    quarters = np.log10(history)[:: len(history) // 4][:5]
    drops = [a - b for a, b in pairwise(quarters)]
    assert min(drops) > 0.5 * max(drops)


@pytest.mark.parametrize("feedback", [Plain(), EF()])
def test_others_stop_at_a_floor(problem: Problem, feedback: Feedback) -> None:
    history = run_feedback(
        problem, feedback, fll.TopK(fraction=0.25), step=0.1, num_rounds=600
    )
    assert history[-1] > 1e-8


def test_identity_equals_gradient_descent(problem: Problem) -> None:
    x = torch.zeros(problem.dimension, dtype=torch.float64)
    expected = []
    for _ in range(20):
        gradient = problem.gradients(x).mean(dim=0)
        expected.append(float(gradient.square().sum()))
        x -= 0.1 * gradient
    for feedback in (Plain(), EF(), EF21()):
        found = run_feedback(problem, feedback, fll.Identity(), step=0.1, num_rounds=19)
        assert found == pytest.approx(expected, rel=1e-9)
