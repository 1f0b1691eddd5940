"""The search: one step size for each domain, and gradients alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from ..errors import InputError, SettingError
from ..linalg import working_dtype
from .domains import Domain, Simplex

Tensors: TypeAlias = Mapping[str, Tensor]
#: Gives the gradient of the loss at the given parameters, by the same names.
Gradient: TypeAlias = Callable[[dict[str, Tensor]], Tensors]

#: What a step size is multiplied by: after a trial that is taken and did not go too
#: far for the domain, that is taken and did, that is not taken.
GROW, SHRINK, REJECT = 2.0, 0.5, 0.25


@dataclass(frozen=True)
class Solution:
    """Weights, in the shapes of the step, and what they took.

    Attributes
    ----------
    weights : dict
        By name.
    num_gradients : int
        Calls of the gradient function.
    """

    weights: dict[str, Tensor]
    num_gradients: int


def solve(
    x: Tensors,
    step: Tensors,
    gradient: Gradient,
    *,
    domain: Domain | None = None,
    start: Tensors | None = None,
    num_gradients: int = 50,
    per_tensor: bool = True,
) -> Solution:
    """Minimise ``f(x + w * step)`` over w in a domain, with gradients of f alone.

    Parameters
    ----------
    x : Mapping
        The point, by names; names that are not in ``step`` stay as they are.
    step : Mapping
        The plain step u.
    gradient : callable
        Gives grad f at a dict like ``x``, for all names of ``step`` at least. It must
        be the same function at each call: one fixed batch.
    domain : Domain, optional
        `Simplex` by default, with as many as the entries as the sum.
    start : Mapping, optional
        Weights to start from, such as those of an earlier step; ones by default.
    num_gradients : int
        Calls of ``gradient`` at most, at least 2. Good weights need about 10; the
        exact optimum of a small problem some hundreds.
    per_tensor : bool
        The domain is each tensor's own (thesis), or one for all of them.

    Returns
    -------
    Solution
        Weights in float32, or float64 for a step in it.

    Raises
    ------
    InputError
        If gradients are missing, of other shapes, or not finite at the start.
    """
    if num_gradients < 2:
        msg = f"solve: expected num_gradients of at least 2, found {num_gradients}"
        raise SettingError(msg)
    solver = _Solver(x, step, gradient, domain or Simplex(), per_tensor)
    return solver.run(start or {}, num_gradients)


class _Solver:
    """One problem; a block is a list of names whose weights share a domain."""

    def __init__(
        self,
        x: Tensors,
        step: Tensors,
        gradient: Gradient,
        domain: Domain,
        per_tensor: bool,
    ) -> None:
        self.x, self.gradient, self.domain = x, gradient, domain
        self.step = {n: u.detach().to(working_dtype(u.dtype)) for n, u in step.items()}
        names = [name for name, u in self.step.items() if u.numel()]
        self.blocks = [[name] for name in names] if per_tensor else [names]
        self.blocks = [block for block in self.blocks if block]

    def run(self, start: Tensors, budget: int) -> Solution:
        """Go on until the gradients are spent or nothing moves."""
        domain = self.domain
        points = [domain.enter(block) for block in self._joined(start)]
        slopes = self._slopes(points)
        spent = 1
        if not all(bool(torch.isfinite(s).all()) for s in slopes):
            msg = "solve: the gradient function gave NaN or infinity at the start"
            raise InputError(msg)
        etas = [domain.first_eta(s) for s in slopes]
        while spent < budget:
            trial = [
                domain.move(z, g, eta)
                for z, g, eta in zip(points, slopes, etas, strict=True)
            ]
            moves = [
                domain.weights(a) - domain.weights(b)
                for a, b in zip(trial, points, strict=True)
            ]
            if not any(bool(move.any()) for move in moves):
                break
            ahead = self._slopes(trial)
            spent += 1
            along = [
                float((domain.slope(z, g) * move).sum())
                for z, g, move in zip(trial, ahead, moves, strict=True)
            ]
            short = [value <= 0.0 for value in along]  # NaN is not
            if sum(along) <= 0.0:
                points, slopes = trial, ahead
                rates = [GROW if ok else SHRINK for ok in short]
            else:
                rates = [1.0 if ok else REJECT for ok in short]
            etas = [eta * rate for eta, rate in zip(etas, rates, strict=True)]
        return Solution(self._weights(points), spent)

    def _joined(self, weights: Tensors) -> list[Tensor]:
        """Give flat weights of each block; ones where there are none."""
        return [
            torch.cat(
                [
                    weights[name].to(self.step[name]).reshape(-1)
                    if name in weights
                    else torch.ones_like(self.step[name]).reshape(-1)
                    for name in block
                ]
            )
            for block in self.blocks
        ]

    def _weights(self, points: list[Tensor]) -> dict[str, Tensor]:
        """Cut the points into tensors."""
        out = {name: torch.ones_like(u) for name, u in self.step.items()}
        for block, point in zip(self.blocks, points, strict=True):
            sizes = [self.step[name].numel() for name in block]
            parts = torch.split(self.domain.weights(point), sizes)
            for name, part in zip(block, parts, strict=True):
                out[name] = part.reshape(self.step[name].shape)
        return out

    def _slopes(self, points: list[Tensor]) -> list[Tensor]:
        """Give grad phi for each block, with one call."""
        weights = self._weights(points)
        moved = {n: self.x[n].to(u) + weights[n] * u for n, u in self.step.items()}
        # Copies: a normalisation layer would change its statistics in place.
        rest = {n: x.clone() for n, x in self.x.items() if n not in self.step}
        found = self.gradient(rest | moved)
        for name, u in self.step.items():
            if name not in found or found[name].shape != u.shape:
                there = tuple(found[name].shape) if name in found else "nothing"
                msg = (
                    f"solve: expected a gradient of shape {tuple(u.shape)} for "
                    f"{name!r}, found {there}; give one for every parameter"
                )
                raise InputError(msg)
        return [
            torch.cat(
                [
                    (
                        found[name].detach().to(self.step[name]) * self.step[name]
                    ).reshape(-1)
                    for name in block
                ]
            )
            for block in self.blocks
        ]
