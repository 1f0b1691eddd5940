"""Two thin factors instead of a matrix: what all have in common, and `Svd`.

A tensor is viewed as an m x n matrix (`shapes.matrix_shape`) and sent as
``left`` (m, r) and ``right`` (n, r), with ``C(x) = left right^T``. The columns of
each factor are orthogonal, and a column has the same length in both; so they can be
coded further by ``>>`` with one step for all.

Wire cost: ``r (m + n)`` numbers in the input's dtype. Where that is no less than
``m n`` the tensor itself is sent, exactly.

References
----------
C. Eckart, G. Young, "The approximation of one matrix by another of lower rank",
Psychometrika 1936.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..addends import Addend, Factors
from ..errors import SettingError
from ..linalg import (
    largest_magnitude,
    normalised,
    squared_norm,
    truncated_svd,
    working_dtype,
)
from ..rng import Rng
from ..shapes import as_matrix, matrix_shape
from ..types import (
    Coding,
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
from .common import check_range, finish, narrowed, need
from .dense import dense_payload
from .ranks import Ranked

LOWRANK = Kind(
    6, "lowrank", ("left", "right"), (Coding.RAW, Coding.RAW), inner=("left", "right")
)


def _factors(payload: Payload) -> tuple[Tensor, Tensor]:
    left, right = payload.tensor("left"), payload.tensor("right")
    m, n = matrix_shape(payload.shape)
    rank = left.numel() // m if m else 0
    need(
        left.numel() == rank * m
        and right.numel() == rank * n
        and rank * (m + n) < m * n,
        payload,
        f"factors of {left.numel()} and {right.numel()} numbers",
    )
    work = working_dtype(payload.dtype)
    return left.to(work).reshape(m, rank), right.to(work).reshape(n, rank)


@dataclass(frozen=True)
class LowRank(Ranked):
    """What all factorisations share: wire form, decoding, guarantee.

    The columns are chosen as `Ranked` says.
    """

    @staticmethod
    def column_cost(shape: Shape) -> int:
        """One column of each factor."""
        return sum(matrix_shape(shape))

    def guarantee(self, shape: Shape) -> Guarantee:
        """Rank r keeps at least the share r / min(m, n) of the squared norm."""
        rank = self.columns(shape)
        if not self.pays(shape, rank):
            return Exact()
        return Contractive(rank / min(matrix_shape(shape)))

    def inner_shapes(self, shape: Shape) -> tuple[Shape, ...]:
        """Both factors, or the tensor where factors do not pay."""
        m, n = matrix_shape(shape)
        rank = self.columns(shape)
        return ((m * rank,), (n * rank,)) if self.pays(shape, rank) else ((m * n,),)

    def encode(self, x: Tensor, state: State, rng: Rng) -> tuple[Payload, State]:
        """Factorise the matrix, scaled so that nothing overflows."""
        check_input(self.name, x)
        shape = tuple(x.shape)
        rank = self.columns(shape)
        if not self.pays(shape, rank):
            return dense_payload(x.detach()), state
        # The product of the factors' norms is at most the sum of the singular values,
        # and a compressor of them may double each.
        room = 4.0 * math.sqrt(x.numel() * min(matrix_shape(shape)))
        check_range(self.name, x.to(working_dtype(x.dtype)), room)
        matrix, peak = normalised(as_matrix(x.detach()))
        left, right, state = self.factorise(matrix, rank, state, rng)
        if not self.pays(shape, left.shape[1]):
            return dense_payload(x.detach()), state
        # The scale is split, so that neither factor leaves the range of its dtype.
        root = peak**0.5
        fields = {
            name: Field(Coding.RAW, narrowed(factor * root, x.dtype).reshape(-1))
            for name, factor in (("left", left), ("right", right))
        }
        return Payload(LOWRANK, shape, x.dtype, fields), state

    @abstractmethod
    def factorise(
        self, matrix: Tensor, rank: int, state: State, rng: Rng
    ) -> tuple[Tensor, Tensor, State]:
        """Give ``left`` (m, r), ``right`` (n, r) and the next state."""

    @staticmethod
    def decode(payload: Payload) -> Tensor:
        """Multiply the factors."""
        left, right = _factors(payload)
        return finish(payload, left @ right.T)

    @classmethod
    def addend(cls, payload: Payload) -> Addend:
        """Leave the product to the sum, unless it must saturate."""
        left, right = _factors(payload)
        peaks = [float(largest_magnitude(f)) for f in (left, right)]
        if left.shape[1] * math.prod(peaks) <= torch.finfo(payload.dtype).max:
            return Factors(left, right)
        return super().addend(payload)


@dataclass(frozen=True)
class ByEnergy(LowRank):
    """A factorisation that may choose its rank by what it keeps.

    Parameters
    ----------
    energy : float, optional
        Instead of the settings of `Ranked`: the share of the squared norm that every
        message keeps, in (0, 1). The rank is the smallest one that does; where it
        does not pay, the tensor itself is sent.
    """

    energy: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.energy is not None and not 0.0 < self.energy < 1.0:
            msg = f"{self.name}: expected an energy in (0, 1), found {self.energy}"
            raise SettingError(msg)

    def ways(self) -> dict[str, float | None]:
        """Give the settings of which one may be chosen."""
        return {**super().ways(), "energy": self.energy}

    def columns(self, shape: Shape) -> int:
        """By energy, one: whether any pays."""
        return 1 if self.energy is not None else super().columns(shape)

    def guarantee(self, shape: Shape) -> Guarantee:
        """By energy, the kept share itself."""
        if self.energy is None or not self.pays(shape, 1):
            return super().guarantee(shape)
        return Contractive(self.energy)

    def inner_shapes(self, shape: Shape) -> tuple[Shape, ...]:
        """By energy, no more numbers than the tensor has."""
        if self.energy is None:
            return super().inner_shapes(shape)
        return ((math.prod(shape),),)

    def allowed(self, matrix: Tensor) -> float | None:
        """Squared error that may be made; none if the rank is fixed."""
        if self.energy is None:
            return None
        return (1.0 - self.energy) * squared_norm(matrix)


@dataclass(frozen=True)
class Svd(ByEnergy):
    """Truncated singular value decomposition: the best approximation of its rank.

    Guarantee: ``Contractive(r / min(m, n))``, attained for a flat spectrum (Eckart
    and Young, 1936); by energy ``Contractive(energy)``, both for every message.
    ``svd(...) >> c`` contracts where the error of ``c`` is small: see `chained`.
    Wire cost: r (m + n) numbers. Time: O(m n min(m, n)).
    """

    name: ClassVar[str] = "svd"
    norm_nonincreasing: ClassVar[bool] = True

    def chained(self, shape: Shape, error: float, unbiased: bool) -> Guarantee | None:
        """Bound the error of coded factors ``L + A`` and ``R + B``.

        Let q >= r / min(m, n) be the kept share of ``|x|^2``. The columns of L and of
        R are orthogonal, of lengths s_i^(1/2) in both. So ``|A R^T|^2``, and likewise
        ``|L B^T|^2``, is at most ``error s_1 sum s_i <= error q |x|^2 (1 + sqrt r) /
        2``, and ``|A B^T| <= error sqrt(q r) |x|``. Only the last product is not
        orthogonal to the truncated part.
        """
        del unbiased
        rank = self.columns(shape)
        if self.energy is not None or not self.pays(shape, rank):
            return None
        q = rank / min(matrix_shape(shape))
        single = math.sqrt(error * (1.0 + math.sqrt(rank)) / 2.0)
        double = error * math.sqrt(rank)
        delta = q * (1.0 - (2.0 * single + double) ** 2)
        delta -= 2.0 * double * math.sqrt(q * (1.0 - q))
        return Contractive(delta) if delta > 0.0 else None

    def factorise(
        self, matrix: Tensor, rank: int, state: State, rng: Rng
    ) -> tuple[Tensor, Tensor, State]:
        """Truncate."""
        del rng
        return *truncated_svd(matrix, rank, self.allowed(matrix)), state
