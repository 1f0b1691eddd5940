"""Two thin factors instead of a matrix: `Svd`, `Rsvd`, `PowerSgd`.

A tensor is viewed as an m x n matrix (`shapes.matrix_shape`) and sent as
``left`` (m, r) and ``right`` (n, r), with ``C(x) = left right^T``.

Wire cost: ``r (m + n)`` numbers in the input's dtype. Where that is no less than
``m n`` the tensor itself is sent, exactly.

References
----------
C. Eckart, G. Young, "The approximation of one matrix by another of lower rank",
Psychometrika 1936. N. Halko, P.-G. Martinsson, J. Tropp, "Finding Structure with
Randomness", SIAM Review 2011, arXiv 0909.4061. T. Vogels, S. P. Karimireddy, M. Jaggi,
"PowerSGD: Practical Low-Rank Gradient Compression for Distributed Optimization",
NeurIPS 2019, arXiv 1905.13727.

Differences: PowerSGD averages its factors over the workers in two all-reduces; a
client of a federation sends its own two factors in one message, and the server sums
the products. A warm start that has lost touch with the input is replaced by a
Gaussian one, so that the guarantee of a cold start holds for every message.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import SettingError
from ..linalg import normalised, orthonormal, range_finder, truncated_svd, working_dtype
from ..rng import Rng
from ..shapes import as_matrix, matrix_shape
from ..types import (
    Coding,
    Compressor,
    Contractive,
    Exact,
    Field,
    Guarantee,
    Kind,
    Payload,
    Shape,
    State,
    check_input,
)
from .common import check_range, finish, need
from .dense import dense_payload

LOWRANK = Kind(
    6, "lowrank", ("left", "right"), (Coding.RAW, Coding.RAW), inner=("left", "right")
)

#: Texts come from the network: none may keep a client busy for ever.
MAX_ITERATIONS = 100


def _pays(shape: Shape, rank: int) -> bool:
    """Whether two factors have fewer numbers than the tensor."""
    m, n = matrix_shape(shape)
    return rank * (m + n) < m * n


def _factors(payload: Payload) -> tuple[Tensor, Tensor]:
    left, right = payload.tensor("left"), payload.tensor("right")
    m, n = matrix_shape(payload.shape)
    rank = left.numel() // m if m else 0
    need(
        left.numel() == rank * m
        and right.numel() == rank * n
        and _pays(payload.shape, rank),
        payload,
        f"factors of {left.numel()} and {right.numel()} numbers",
    )
    work = working_dtype(payload.dtype)
    return left.to(work).reshape(m, rank), right.to(work).reshape(n, rank)


@dataclass(frozen=True)
class LowRank(Compressor):
    """What all factorisations share: wire form, decoding, guarantee.

    Parameters
    ----------
    rank : int
        Columns of each factor, at least 1.
    """

    composable: ClassVar[bool] = True

    rank: int = 4

    def __post_init__(self) -> None:
        if self.rank < 1:
            msg = f"{self.name}: expected a rank of at least 1, found {self.rank}"
            raise SettingError(msg)

    def guarantee(self, shape: Shape) -> Guarantee:
        """Rank r keeps at least the share r / min(m, n) of the squared norm."""
        return (
            Contractive(self.rank / min(matrix_shape(shape)))
            if _pays(shape, self.rank)
            else Exact()
        )

    def inner_shapes(self, shape: Shape) -> tuple[Shape, ...]:
        """Both factors, or the tensor where factors do not pay."""
        m, n = matrix_shape(shape)
        if not _pays(shape, self.rank):
            return ((m * n,),)
        return ((m * self.rank,), (n * self.rank,))

    def encode(self, x: Tensor, state: State, rng: Rng) -> tuple[Payload, State]:
        """Factorise the matrix, scaled so that nothing overflows."""
        check_input(self.name, x)
        if not _pays(tuple(x.shape), self.rank):
            return dense_payload(x.detach()), state
        # Both factors together may be so much larger than the tensor, and a
        # compressor of them may double each.
        room = 4.0 * self.rank * math.sqrt(x.numel())
        check_range(self.name, x.to(working_dtype(x.dtype)), room)
        matrix, peak = normalised(as_matrix(x.detach()))
        left, right, state = self.factorise(matrix, state, rng)
        # The scale is split, so that neither factor leaves the range of its dtype.
        root = peak**0.5
        fields = {
            name: Field(Coding.RAW, (factor * root).to(x.dtype).reshape(-1))
            for name, factor in (("left", left), ("right", right))
        }
        return Payload(LOWRANK, tuple(x.shape), x.dtype, fields), state

    @abstractmethod
    def factorise(
        self, matrix: Tensor, state: State, rng: Rng
    ) -> tuple[Tensor, Tensor, State]:
        """Give ``left`` (m, r), ``right`` (n, r) and the next state."""

    @staticmethod
    def decode(payload: Payload) -> Tensor:
        """Multiply the factors."""
        left, right = _factors(payload)
        return finish(payload, left @ right.T)

    @classmethod
    def accumulate_many(
        cls, payloads: Sequence[Payload], weights: Sequence[float], out: Tensor
    ) -> None:
        """Add all products as one: stacked factors, one matrix product."""
        pairs = [_factors(p) for p in payloads]
        left = torch.cat([a * w for (a, _), w in zip(pairs, weights, strict=True)], 1)
        right = torch.cat([b for _, b in pairs], 1)
        product = left.to(out.device) @ right.to(out.device).T
        need(bool(torch.isfinite(product).all()), payloads[0], "the sum overflows")
        out.add_(product.reshape(out.shape).to(out.dtype))


@dataclass(frozen=True)
class Svd(LowRank):
    """Truncated singular value decomposition: the best approximation of its rank.

    Guarantee: ``Contractive(r / min(m, n))``, attained for a flat spectrum (Eckart
    and Young, 1936). Wire cost: r (m + n) numbers. Time: O(m n min(m, n)).
    """

    name: ClassVar[str] = "svd"
    norm_nonincreasing: ClassVar[bool] = True

    def factorise(
        self, matrix: Tensor, state: State, rng: Rng
    ) -> tuple[Tensor, Tensor, State]:
        """Truncate."""
        del rng
        return *truncated_svd(matrix, self.rank), state


@dataclass(frozen=True)
class Rsvd(LowRank):
    """Randomised singular value decomposition, truncated to its rank.

    Halko et al. (2011), algorithms 4.4 and 5.1.

    Guarantee: ``Contractive(r / min(m, n))`` in expectation over the Gaussian start;
    close to the best approximation in practice. Wire cost: r (m + n) numbers. Time:
    O(m n (r + oversampling) (num_iterations + 1)).

    Parameters
    ----------
    rank : int
        Columns of each factor, at least 1.
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
        self, matrix: Tensor, state: State, rng: Rng
    ) -> tuple[Tensor, Tensor, State]:
        """Find the range, then truncate inside it."""
        columns = min(self.rank + self.oversampling, *matrix.shape)
        basis = range_finder(matrix, columns, self.num_iterations, rng)
        left, right = truncated_svd(basis.T @ matrix, self.rank)
        return basis @ left, right, state


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
    rank : int
        Columns of each factor, at least 1.
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
        if not _pays(shape, self.rank):
            return {}
        return {"right": torch.zeros(matrix_shape(shape)[1], self.rank)}

    def factorise(
        self, matrix: Tensor, state: State, rng: Rng
    ) -> tuple[Tensor, Tensor, State]:
        """Iterate from the warm start, or from a Gaussian one."""
        n = matrix.shape[1]
        start = state.get("right")
        share = self.rank / min(matrix.shape)
        enough = share * float(matrix.square().sum())
        if start is not None and start.shape == (n, self.rank) and bool(start.any()):
            left, right = self._iterate(matrix, start.to(matrix))
            if float(right.square().sum()) >= enough:
                return left, right, {"right": _unit(right)}
        cold = rng.normal(n, self.rank, device=matrix.device).to(matrix.dtype)
        left, right = self._iterate(matrix, cold)
        return left, right, {"right": _unit(right)}

    def _iterate(self, matrix: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        left = matrix[:, : self.rank]
        for _ in range(self.num_iterations):
            left = orthonormal(matrix @ right)
            right = matrix.T @ left
        return left, right


def _unit(right: Tensor) -> Tensor:
    """Scale to norm 1, as float32: a start needs a direction only."""
    norm = float(right.norm())
    return (right / norm if norm > 0.0 else right).to(torch.float32)
