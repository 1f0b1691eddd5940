"""What a payload adds to a dense sum, without a dense tensor where that is possible.

A sum of many messages goes in three steps, so that a bad message costs nobody else:
each payload becomes an `Addend`, which checks all that can be wrong with it; addends of
one type are merged, which only sums of sketches can fail at; then they are added,
which cannot fail.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self, TypeAlias

import torch
from torch import Tensor

#: Entries that are cast at a time.
_SLICE = 2**18

Weighted: TypeAlias = "tuple[Addend, float]"


class Addend(ABC):
    """One payload, ready to be added to a float tensor of its shape."""

    #: True if the payload's decoded tensor is added, bit for bit.
    exact: ClassVar[bool] = True
    #: True if `squared_norm` is known before anything is summed.
    tells_norm: ClassVar[bool] = True

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """Memory that it holds until it is added."""

    @abstractmethod
    def squared_norm(self) -> float:
        """Squared Euclidean norm of what is added; infinite if float64 overflows."""

    @abstractmethod
    def scaled(self, factor: float) -> Addend:
        """Give the addend of a payload that decodes to ``factor`` times as much."""

    @classmethod
    def merged(cls, parts: Sequence[tuple[Self, float]]) -> Sequence[Weighted]:
        """Join weighted addends of this type and one tensor, where that helps."""
        return parts

    @classmethod
    @abstractmethod
    def add_many(cls, parts: Sequence[tuple[Self, float]], out: Tensor) -> None:
        """Add the weighted addends to ``out``, in place."""


@dataclass(frozen=True)
class Dense(Addend):
    """All entries.

    Attributes
    ----------
    values : Tensor
        In the shape of the sum.
    """

    values: Tensor

    @property
    def num_bytes(self) -> int:
        """See `Addend`."""
        return self.values.nbytes

    def squared_norm(self) -> float:
        """See `Addend`."""
        return _squared_norm(self.values)

    def scaled(self, factor: float) -> Dense:
        """See `Addend`."""
        return Dense(self.values * factor)

    @classmethod
    def add_many(cls, parts: Sequence[tuple[Self, float]], out: Tensor) -> None:
        """See `Addend`."""
        for part, weight in parts:
            if part.values.numel() <= _SLICE:
                out.add_(part.values.to(out), alpha=weight)
                continue
            # In slices: a copy in the dtype of the sum may be twice as large.
            pieces = torch.split(part.values.reshape(-1), _SLICE)
            places = torch.split(out.view(-1), _SLICE)
            for piece, place in zip(pieces, places, strict=True):
                place.add_(piece.to(out), alpha=weight)


@dataclass(frozen=True)
class Sparse(Addend):
    """Few entries.

    Attributes
    ----------
    indices, values : Tensor
        Positions in the flattened tensor, each at most once, and what stands there.
    """

    indices: Tensor
    values: Tensor

    @property
    def num_bytes(self) -> int:
        """See `Addend`."""
        return self.indices.nbytes + self.values.nbytes

    def squared_norm(self) -> float:
        """See `Addend`."""
        return _squared_norm(self.values)

    def scaled(self, factor: float) -> Sparse:
        """See `Addend`."""
        return replace(self, values=self.values * factor)

    @classmethod
    def add_many(cls, parts: Sequence[tuple[Self, float]], out: Tensor) -> None:
        """See `Addend`."""
        flat = out.view(-1)
        for part, weight in parts:
            values = part.values.to(out)
            # Four times as fast as index_add_ where the sum is not in the cache.
            flat.scatter_add_(
                0,
                part.indices.to(out.device),
                values if weight == 1.0 else values * weight,
            )


@dataclass(frozen=True)
class Factors(Addend):
    """Two thin factors of a matrix; many of them are added by one matrix product.

    Attributes
    ----------
    left, right : Tensor
        (m, r) and (n, r); all entries of ``left right^T`` are finite in float64.
    """

    exact: ClassVar[bool] = False

    left: Tensor
    right: Tensor

    @property
    def num_bytes(self) -> int:
        """See `Addend`."""
        return self.left.nbytes + self.right.nbytes

    def squared_norm(self) -> float:
        """See `Addend`."""
        left, right = self.left.to(torch.float64), self.right.to(torch.float64)
        # Rounding may make the sum a little negative.
        return max(float(((left.T @ left) * (right.T @ right)).sum()), 0.0)

    def scaled(self, factor: float) -> Factors:
        """See `Addend`."""
        return replace(self, left=self.left * factor)

    @classmethod
    def add_many(cls, parts: Sequence[tuple[Self, float]], out: Tensor) -> None:
        """See `Addend`."""
        left = torch.cat([part.left.to(out) * weight for part, weight in parts], 1)
        right = torch.cat([part.right.to(out) for part, _ in parts], 1)
        (m, _), (n, _) = left.shape, right.shape
        out.view(m, n).addmm_(left, right.T)


def _squared_norm(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x, dtype=torch.float64)) ** 2


def merge(parts: Sequence[Weighted]) -> list[Weighted]:
    """Join what adds to one tensor, by type.

    Raises
    ------
    SketchError
        If a sum of sketches cannot be decoded; each of them alone may be.
    """
    return [joint for cls, same in _by_type(parts) for joint in cls.merged(same)]


def add_all(parts: Sequence[Weighted], out: Tensor) -> None:
    """Add merged parts to a float tensor, in place."""
    for cls, same in _by_type(parts):
        cls.add_many(same, out)


def _by_type(parts: Sequence[Weighted]) -> list[tuple[type[Addend], list[Weighted]]]:
    groups: dict[type[Addend], list[Weighted]] = {}
    for part in parts:
        groups.setdefault(type(part[0]), []).append(part)
    return list(groups.items())
