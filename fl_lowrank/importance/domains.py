"""The sets that weights lie in, and a step in each."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SettingError

#: Weights below this share of the mean start from it, or they would never come back.
FLOOR = 1e-3


class Domain(ABC):
    """A set of weights and how to move in it; points are flat tensors of one block."""

    @abstractmethod
    def enter(self, weights: Tensor) -> Tensor:
        """Give the point of weights that need not lie in the set."""

    @abstractmethod
    def weights(self, point: Tensor) -> Tensor:
        """Give the weights of a point."""

    @abstractmethod
    def move(self, point: Tensor, gradient: Tensor, eta: float) -> Tensor:
        """Step against the gradient."""

    @abstractmethod
    def slope(self, point: Tensor, gradient: Tensor) -> Tensor:
        """Add the regulariser's gradient; constants do not matter on a simplex."""

    @abstractmethod
    def first_eta(self, gradient: Tensor) -> float:
        """Give the size of the first trial."""


@dataclass(frozen=True)
class Simplex(Domain):
    """Weights of at least 0 with a fixed sum; points are their logarithms.

    Parameters
    ----------
    total : float, optional
        The sum; by default the number of entries, so that w = 1 is the plain step.
    entropy : float
        Factor of ``sum w log w``, in units of the loss; it pulls towards equal weights.
    """

    total: float | None = None
    entropy: float = 0.0

    def __post_init__(self) -> None:
        if self.total is not None and not 0.0 < self.total < math.inf:
            msg = f"Simplex: expected a positive sum, found {self.total}"
            raise SettingError(msg)
        if not 0.0 <= self.entropy < math.inf:
            msg = f"Simplex: expected entropy of at least 0, found {self.entropy}"
            raise SettingError(msg)

    def enter(self, weights: Tensor) -> Tensor:
        """Lift what is nearly 0, and scale."""
        mean = weights.mean()
        if not bool(mean > 0.0):
            weights, mean = torch.ones_like(weights), torch.ones_like(mean)
        return self._scaled((weights / mean).clamp(min=FLOOR).log())

    def _scaled(self, logs: Tensor) -> Tensor:
        total = logs.numel() if self.total is None else self.total
        return torch.log_softmax(logs, 0) + math.log(total)

    def weights(self, point: Tensor) -> Tensor:
        """Give the exponentials."""
        return point.exp()

    def move(self, point: Tensor, gradient: Tensor, eta: float) -> Tensor:
        """Mirror step, implicit in the regulariser."""
        return self._scaled((point - eta * gradient) / (1.0 + eta * self.entropy))

    def slope(self, point: Tensor, gradient: Tensor) -> Tensor:
        """``grad phi + entropy log w``."""
        return gradient + self.entropy * point if self.entropy else gradient

    def first_eta(self, gradient: Tensor) -> float:
        """Let the ratio of two weights change by e at most."""
        return _inverse(float(gradient.max() - gradient.min()))


@dataclass(frozen=True)
class Cube(Domain):
    """Weights between two bounds; projected gradient.

    Parameters
    ----------
    low, high : float
        The bounds: [0, 2] in the experiments of the thesis, [1, 2] in its theorem.
    """

    low: float = 0.0
    high: float = 2.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.low < self.high < math.inf:
            msg = (
                f"Cube: expected bounds 0 <= low < high, found {self.low} and "
                f"{self.high}"
            )
            raise SettingError(msg)

    def enter(self, weights: Tensor) -> Tensor:
        """Clip."""
        return weights.clamp(self.low, self.high)

    def weights(self, point: Tensor) -> Tensor:
        """Points are weights."""
        return point

    def move(self, point: Tensor, gradient: Tensor, eta: float) -> Tensor:
        """Step and clip."""
        return (point - eta * gradient).clamp(self.low, self.high)

    def slope(self, point: Tensor, gradient: Tensor) -> Tensor:
        """There is no regulariser."""
        del point
        return gradient

    def first_eta(self, gradient: Tensor) -> float:
        """Let a weight change by half the width at most."""
        width = (self.high - self.low) / 2.0
        return width * _inverse(float(gradient.abs().max()))


def _inverse(value: float) -> float:
    return 1.0 / value if value > 0.0 else 1.0
