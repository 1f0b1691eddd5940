"""What the tensor formats, `Tucker` and `TensorTrain`, have in common.

A tensor is viewed with at least ``order`` dimensions (`shapes.tensor_shape`): a
convolution kernel as it is, a matrix or vector with its dimensions split. One
dimension after the other is projected on the leading singular vectors of what is left
of the tensor, so the errors of all steps are orthogonal and their squares add up.

Basis vectors have norm 1, which a message need not repeat: each is sent at the length
that its part has in the tensor, and the decoder normalises it. An error of a given
size in any of these numbers then costs the same, as in reverse water-filling: ``>>``
may code all with one step.
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
from ..linalg import normalised, squared_norm, working_dtype
from ..rng import Rng
from ..shapes import tensor_shape
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
from .common import check_range, narrowed, need
from .dense import dense_payload

#: Finer errors would drown in the rounding of Gram matrices.
LEAST_ACCURACY = 1e-6


def unit_columns(a: Tensor, dtype: torch.dtype) -> Tensor:
    """Give the columns norm 1, in ``dtype``; those of zeros stay zero."""
    wide, _ = normalised(a.to(torch.float64))
    norms = wide.norm(dim=0)
    return (wide / torch.where(norms > 0.0, norms, 1.0)).to(dtype)


def read_layout(payload: Payload, bonds: int) -> tuple[list[int], list[int]]:
    """Give the N dimensions of the view and the N - ``bonds`` ranks.

    All are positive, and the dimensions have the payload's entries.
    """
    numbers = [int(v) for v in payload.tensor("layout").tolist()]
    order = (len(numbers) + bonds) // 2
    dims, ranks = numbers[:order], numbers[order:]
    need(
        len(ranks) == order - bonds
        and order >= 2
        and min(numbers) >= 1
        and math.prod(dims) == payload.numel,
        payload,
        f"a layout of {numbers}",
    )
    return dims, ranks


@dataclass(frozen=True)
class TensorFormat(Compressor):
    """Settings, guarantee and dense fallback.

    Parameters
    ----------
    rank : int, optional
        Largest rank in each dimension, or between neighbours; at least 1.
    accuracy : float, optional
        Instead of ``rank``: bound of ``|C(x) - x| / |x|``, in [1e-6, 1), with the
        smallest ranks that keep it.
    order : int
        Least number of dimensions of the view, at least 2.
    """

    composable: ClassVar[bool] = True
    norm_nonincreasing: ClassVar[bool] = True
    #: Form of the messages.
    kind: ClassVar[Kind]

    rank: int | None = None
    accuracy: float | None = None
    order: int = 3

    def __post_init__(self) -> None:
        if (self.rank is None) == (self.accuracy is None):
            msg = (
                f"{self.name}: expected either rank or accuracy, found rank={self.rank}"
                f" and accuracy={self.accuracy}; write {self.name}(rank=8) or "
                f"{self.name}(accuracy=0.3)"
            )
            raise SettingError(msg)
        if self.rank is not None and self.rank < 1:
            msg = f"{self.name}: expected a rank of at least 1, found {self.rank}"
            raise SettingError(msg)
        if self.accuracy is not None and not LEAST_ACCURACY <= self.accuracy < 1.0:
            msg = (
                f"{self.name}: expected an accuracy in [{LEAST_ACCURACY}, 1), found "
                f"{self.accuracy}"
            )
            raise SettingError(msg)
        if self.order < 2:
            msg = f"{self.name}: expected an order of at least 2, found {self.order}"
            raise SettingError(msg)

    @staticmethod
    @abstractmethod
    def steps(dims: Shape, most: int) -> list[tuple[int, int]]:
        """Give for each step its rank, at most ``most``, and that without a limit."""

    @staticmethod
    @abstractmethod
    def sizes(dims: Sequence[int], ranks: Sequence[int]) -> tuple[int, ...]:
        """Give the count of numbers in each field that is handed on."""

    @staticmethod
    @abstractmethod
    def factorise(
        x: Tensor, most: int, allowed: float
    ) -> tuple[list[int], tuple[Tensor, ...]]:
        """Give the ranks, at most ``most``, and the flat fields.

        The ranks are the least ones with a squared error of ``allowed``. ``x`` is of
        float64 and has the view's shape.
        """

    def _plan(self, shape: Shape) -> tuple[Shape, list[tuple[int, int]]] | None:
        """Give the view and the steps for it; none where the tensor itself is sent."""
        dims = tensor_shape(shape, self.order)
        count = math.prod(dims)
        if len(dims) < 2 or count == 0:
            return None
        # By accuracy the ranks depend on the tensor; whether any pay, on the shape.
        steps = self.steps(dims, self.rank or 1)
        if sum(self.sizes(dims, [rank for rank, _ in steps])) >= count:
            return None
        return dims, steps

    def guarantee(self, shape: Shape) -> Guarantee:
        """Each step keeps at least its share of the squared norm that is left.

        A step by rank keeps r of at most b singular values, the largest ones; so
        ``delta`` is the product of all r / b.
        """
        plan = self._plan(shape)
        if plan is None:
            return Exact()
        if self.accuracy is not None:
            return Contractive(1.0 - self.accuracy**2)
        return Contractive(math.prod(rank / bound for rank, bound in plan[1]))

    def inner_shapes(self, shape: Shape) -> tuple[Shape, ...]:
        """All fields of numbers; by accuracy, no more numbers than the tensor has."""
        plan = self._plan(shape)
        if plan is None or self.accuracy is not None:
            return ((math.prod(shape),),)
        dims, steps = plan
        return tuple((n,) for n in self.sizes(dims, [rank for rank, _ in steps]))

    def encode(self, x: Tensor, state: State, rng: Rng) -> tuple[Payload, State]:
        """Factorise in float64, scaled so that nothing overflows."""
        del rng
        check_input(self.name, x)
        shape = tuple(x.shape)
        plan = self._plan(shape)
        if plan is None:
            return dense_payload(x.detach()), state
        dims, _ = plan
        work = working_dtype(x.dtype)
        # A part is as long as the tensor at most; a compressor of it may double it.
        check_range(self.name, x.to(work), 4.0 * math.sqrt(x.numel()))
        scaled, peak = normalised(x.detach().to(torch.float64))
        allowed = (self.accuracy or 0.0) ** 2 * squared_norm(scaled)
        most = x.numel() if self.rank is None else self.rank
        ranks, parts = self.factorise(scaled.reshape(dims), most, allowed)
        if sum(part.numel() for part in parts) >= x.numel():
            return dense_payload(x.detach()), state
        layout = torch.tensor([*dims, *ranks])
        fields = {"layout": Field(Coding.VARINTS, layout)}
        for name, part in zip(self.kind.inner, parts, strict=True):
            values = narrowed((part * peak).to(work), x.dtype)
            fields[name] = Field(Coding.RAW, values)
        return Payload(self.kind, shape, x.dtype, fields), state
