"""Gradient descent along what one end knows of the other's gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import fl_lowrank as fll

from ..loopback import Faults
from ..quadratics import Problem
from .ends import Ends


@dataclass(frozen=True)
class Descent:
    """How a run went.

    Attributes
    ----------
    norms : list of float
        Euclidean norm of the mean gradient of all clients before each step, and after
        the last; it ends with the first one that is at most the tolerance.
    tolerance : float
        What was wanted.
    """

    norms: list[float]
    tolerance: float

    @property
    def reached(self) -> bool:
        """Whether the tolerance was reached."""
        return self.norms[-1] <= self.tolerance

    @property
    def num_rounds(self) -> int:
        """Rounds that were played."""
        return len(self.norms) - 1

    @property
    def floor(self) -> float:
        """The smallest norm of the second half of all rounds."""
        return min(self.norms[len(self.norms) // 2 :])


def descend(
    problem: Problem,
    ends: Ends,
    faults: Faults,
    *,
    step: float,
    num_rounds: int,
    share: float = 0.5,
    tolerance: float = 1e-10,
    seed: int = 0,
) -> Descent:
    """Descend from x = 0 in float64, a share of the clients asked in each round.

    Parameters
    ----------
    problem : Problem
        What to minimize.
    ends : Ends
        The memories.
    faults : Faults
        What is lost. Exchange n is round n, counted from 1, node i is client i.
    step : float
        The model moves by ``-step`` times the estimate.
    num_rounds : int
        At most so many rounds.
    share : float
        Of the clients, drawn anew for each round.
    tolerance : float
        Stop once the norm of the mean gradient is at most this.
    seed : int
        Of the draws.

    Returns
    -------
    Descent
        The norms.
    """
    n = problem.num_clients
    x = torch.zeros(problem.dimension, dtype=torch.float64)
    norms: list[float] = []
    for number in range(1, num_rounds + 2):
        gradients = problem.gradients(x)
        norms.append(float(gradients.mean(dim=0).norm()))
        if norms[-1] <= tolerance or number > num_rounds:
            break
        drawn = fll.rng.stream(seed, "asked", number).subset(round(share * n), n)
        fates = [faults.at(number, i, 0) for i in range(n)]
        estimate = ends.exchange(number, gradients, drawn.tolist(), fates)
        if estimate is not None:
            x = x - step * estimate
    return Descent(norms, tolerance)
