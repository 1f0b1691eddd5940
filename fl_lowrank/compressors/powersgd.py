"""Subspace iteration with a warm start: `PowerSgd`.

References
----------
T. Vogels, S. P. Karimireddy, M. Jaggi, "PowerSGD: Practical Low-Rank Gradient
Compression for Distributed Optimization", NeurIPS 2019, arXiv 1905.13727.

Differences: PowerSGD averages its factors over the workers in two all-reduces; a
client of a federation sends its own two factors in one message, and the server sums
the products. Within their product the factors are turned so that the columns of each
are orthogonal, and of equal lengths in both, which costs O(n r^2) and serves those
who code them further. A warm start that has lost touch with the input is replaced by
a Gaussian one, so that the guarantee of a cold start holds for every message.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import SettingError
from ..linalg import orthonormal, truncated_svd
from ..rng import Rng
from ..shapes import matrix_shape
from ..types import Shape, State
from .lowrank import LowRank
from .ranks import MAX_ITERATIONS


@dataclass(frozen=True)
class PowerSgd(LowRank):
    """Subspace iteration that starts from the last message's right factor.

    Vogels et al. (2019), algorithm 1, with the differences named in the module.
    The right factor, (n, r), is kept as state; over rounds the subspace follows
    that of the updates, and one iteration comes close to the truncated SVD.

    Guarantee: ``Contractive(r / min(m, n))`` in expectation: a start that captures
    less than this share is replaced by a Gaussian one. Wire cost: r (m + n) numbers.
    Time: O(m n r num_iterations).

    Parameters
    ----------
    rank, ratio, floats
        Columns of each factor, see `Ranked`.
    num_iterations : int
        Power steps for each message, at least 1.
    """

    name: ClassVar[str] = "powersgd"
    norm_nonincreasing: ClassVar[bool] = True

    num_iterations: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.num_iterations <= MAX_ITERATIONS:
            msg = (
                f"{self.name}: expected num_iterations of 1 to {MAX_ITERATIONS}, found "
                f"{self.num_iterations}"
            )
            raise SettingError(msg)

    def init(self, shape: Shape) -> State:
        """Zeros, (n, r): no start is known yet."""
        rank = self.columns(shape)
        if not self.pays(shape, rank):
            return {}
        return {"right": torch.zeros(matrix_shape(shape)[1], rank)}

    def factorise(
        self, matrix: Tensor, rank: int, state: State, rng: Rng
    ) -> tuple[Tensor, Tensor, State]:
        """Iterate from the warm start, or from a Gaussian one."""
        n = matrix.shape[1]
        start = state.get("right")
        share = rank / min(matrix.shape)
        enough = share * float(matrix.square().sum())
        if start is not None and start.shape == (n, rank) and bool(start.any()):
            left, right = self._iterate(matrix, start.to(matrix))
            if float(right.square().sum()) >= enough:
                return *_balanced(left, right), {"right": _unit(right)}
        cold = rng.normal(n, rank, device=matrix.device).to(matrix.dtype)
        left, right = self._iterate(matrix, cold)
        return *_balanced(left, right), {"right": _unit(right)}

    def _iterate(self, matrix: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        left = matrix[:, : right.shape[1]]
        for _ in range(self.num_iterations):
            left = orthonormal(matrix @ right)
            right = matrix.T @ left
        return left, right


def _balanced(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Turn factors of which ``left`` is orthonormal; their product stays."""
    turn, right = truncated_svd(right.T, left.shape[1])
    return left @ turn, right


def _unit(right: Tensor) -> Tensor:
    """Scale to norm 1, as float32: a start needs a direction only."""
    norm = float(right.norm())
    return (right / norm if norm > 0.0 else right).to(torch.float32)
