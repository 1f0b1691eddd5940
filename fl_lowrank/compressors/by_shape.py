"""Compressors that look at shapes alone: `Flat` and `BySize`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..errors import SettingError
from ..rng import Rng
from ..types import (
    Coding,
    Compressor,
    Field,
    Guarantee,
    Importance,
    Payload,
    Shape,
    State,
)
from .dense import DENSE


@dataclass(frozen=True)
class Flat(Compressor):
    """The inner compressor on the entries as one vector, whatever the shape.

    Under a rule of a whole model it joins all tensors of the rule (of one dtype) to one
    vector: ``flat(inner=topk(fraction=0.01))`` keeps the largest 1% of all layers
    together instead of 1% of each.

    Guarantee and wire cost: those of ``inner`` for the vector; about 10 bytes more
    for a single tensor that is no vector.
    """

    name: ClassVar[str] = "flat"
    joins: ClassVar[bool] = True

    inner: Compressor

    def guarantee(self, shape: Shape) -> Guarantee:
        """Give what holds for the vector."""
        return self.inner.guarantee((math.prod(shape),))

    def init(self, shape: Shape) -> State:
        """State for the vector."""
        return self.inner.init((math.prod(shape),))

    def encode(self, x: Tensor, state: State, rng: Rng) -> tuple[Payload, State]:
        """Encode the vector, inside a payload that has the shape."""
        inner, state = self.inner.encode(x.reshape(-1), state, rng)
        if x.dim() == 1:
            return inner, state
        fields = {"values": Field(Coding.NESTED, inner)}
        return Payload(DENSE, tuple(x.shape), x.dtype, fields), state


@dataclass(frozen=True)
class BySize(Compressor):
    """One compressor for small tensors, another for large ones.

    Guarantee and wire cost: those of the one that is used.

    Parameters
    ----------
    threshold : int
        Tensors of at least so many entries are large.
    small, large : Compressor
        What to use.
    """

    name: ClassVar[str] = "by_size"

    threshold: int
    small: Compressor
    large: Compressor

    def __post_init__(self) -> None:
        if self.threshold < 0:
            msg = f"by_size: expected a threshold of at least 0, found {self.threshold}"
            raise SettingError(msg)

    def choose(self, shape: Shape) -> Compressor:
        """Give the compressor for tensors of this shape."""
        return self.large if math.prod(shape) >= self.threshold else self.small

    def guarantee(self, shape: Shape) -> Guarantee:
        """Give what holds for the chosen one."""
        return self.choose(shape).guarantee(shape)

    def init(self, shape: Shape) -> State:
        """State of the chosen one."""
        return self.choose(shape).init(shape)

    def importance(self, shape: Shape) -> Importance | None:
        """Weights of the chosen one."""
        return self.choose(shape).importance(shape)

    def encode(self, x: Tensor, state: State, rng: Rng) -> tuple[Payload, State]:
        """Encode with the chosen one."""
        return self.choose(tuple(x.shape)).encode(x, state, rng)
