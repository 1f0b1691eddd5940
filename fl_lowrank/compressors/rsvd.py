"""A truncated singular value decomposition inside a random subspace: `Rsvd`.

References
----------
N. Halko, P.-G. Martinsson, J. Tropp, "Finding Structure with Randomness", SIAM Review
2011, arXiv 0909.4061: algorithms 4.4 and 5.1.

Differences: by energy, the subspace is drawn anew with twice the columns until it
holds enough (their algorithm 4.2 adds columns one by one, to a probable bound).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..errors import SettingError
from ..linalg import range_finder, squared_norm, truncated_svd
from ..rng import Rng
from ..types import State
from .lowrank import ByEnergy
from .ranks import MAX_ITERATIONS

#: Columns that are tried first when the rank is not known.
FIRST_COLUMNS = 8


@dataclass(frozen=True)
class Rsvd(ByEnergy):
    """Randomised singular value decomposition, truncated to its rank.

    Guarantee: ``Contractive(r / min(m, n))`` in expectation over the Gaussian start;
    close to the best approximation in practice. By energy, ``Contractive(energy)``
    for every message. Wire cost: r (m + n) numbers. Time: O(m n (r + oversampling)
    (num_iterations + 1)).

    Parameters
    ----------
    rank, ratio, floats, energy
        Columns of each factor, see `Ranked` and `ByEnergy`.
    oversampling : int
        Extra columns while searching; they are not sent.
    num_iterations : int
        Power steps; one suffices unless the spectrum decays slowly.
    """

    name: ClassVar[str] = "rsvd"
    norm_nonincreasing: ClassVar[bool] = True

    oversampling: int = 8
    num_iterations: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.oversampling < 0 or not 0 <= self.num_iterations <= MAX_ITERATIONS:
            msg = (
                f"{self.name}: expected oversampling of at least 0 and num_iterations "
                f"of 0 to {MAX_ITERATIONS}, found {self.oversampling} and "
                f"{self.num_iterations}"
            )
            raise SettingError(msg)

    def factorise(
        self, matrix: Tensor, rank: int, state: State, rng: Rng
    ) -> tuple[Tensor, Tensor, State]:
        """Find the range, then truncate inside it."""
        allowed = self.allowed(matrix)
        most = min(matrix.shape)
        wanted = rank if allowed is None else FIRST_COLUMNS
        while True:
            columns = min(wanted + self.oversampling, most)
            basis = range_finder(matrix, columns, self.num_iterations, rng)
            inside = basis.T @ matrix
            if allowed is None:
                break
            missed = squared_norm(matrix) - squared_norm(inside)
            if missed <= allowed or columns == most:
                allowed -= missed
                break
            wanted *= 2
        left, right = truncated_svd(inside, rank, allowed)
        return basis @ left, right, state
