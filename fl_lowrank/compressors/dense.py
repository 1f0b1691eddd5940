"""Every entry is sent: `Identity` exactly, `F16` with 11 bits of precision.

Wire cost: 8, 16, 32 or 64 bits an entry for `Identity`, by the input's dtype, and
16 bits for `F16`, with about 12 bytes of frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..rng import Rng
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
from .common import fault, finish, need, shift

DENSE = Kind(0, "dense", ("values",), (Coding.RAW,), inner=("values",))
HALF = Kind(1, "half", ("values", "exponent"), (Coding.RAW, Coding.VARINTS))

#: Below it in magnitude, 2^power times any finite float16 is a normal float32.
_EXACT_POWER = 100


def dense_payload(x: Tensor) -> Payload:
    """Wrap a whole tensor, also of integers, as it is."""
    field = Field(Coding.RAW, x.reshape(-1))
    return Payload(DENSE, tuple(x.shape), x.dtype, {"values": field})


@dataclass(frozen=True)
class Identity(Compressor):
    """Send the tensor as it is; integer and boolean tensors too.

    Guarantee: ``Exact()``. Wire cost: the tensor's own bits.
    """

    name: ClassVar[str] = "identity"
    norm_nonincreasing: ClassVar[bool] = True
    composable: ClassVar[bool] = True
    orthogonal: ClassVar[bool] = True
    elementwise: ClassVar[bool] = True

    def guarantee(self, shape: Shape) -> Guarantee:
        """Nothing is lost."""
        del shape
        return Exact()

    def inner_shapes(self, shape: Shape) -> tuple[Shape, ...]:
        """Every entry."""
        return ((math.prod(shape),),)

    def encode(self, x: Tensor, state: State, rng: Rng) -> tuple[Payload, State]:
        """Wrap the tensor."""
        del rng
        if x.is_floating_point():
            check_input(self.name, x)
        return dense_payload(x.detach()), state

    @staticmethod
    def decode(payload: Payload) -> Tensor:
        """Give the values their shape."""
        values = payload.tensor("values")
        need(values.numel() == payload.numel, payload, f"{values.numel()} values")
        return finish(payload, values)


@dataclass(frozen=True)
class F16(Compressor):
    """Round every entry to float16 after scaling by one power of two.

    The scale puts the largest magnitude into [2^14, 2^15), so nothing overflows,
    and entries down to 2^-28 of the largest keep 11 bits.

    Guarantee: ``Contractive(delta)`` with ``1 - delta = 2^-22 + d 2^-78``: half a
    unit in the last place, squared, and the same for subnormal entries.
    Wire cost: 16 bits an entry.
    """

    name: ClassVar[str] = "f16"
    elementwise: ClassVar[bool] = True

    def guarantee(self, shape: Shape) -> Guarantee:
        """Half a unit in the last place of a binary float with 11 bits."""
        return Contractive(1.0 - 2.0**-22 - math.prod(shape) * 2.0**-78)

    def encode(self, x: Tensor, state: State, rng: Rng) -> tuple[Payload, State]:
        """Scale by a power of two and round."""
        del rng
        work = check_input(self.name, x).reshape(-1).to(torch.float64)
        peak = float(work.abs().max()) if work.numel() else 0.0
        exponent = math.frexp(peak)[1] - 15 if peak > 0.0 else 0
        half = shift(work, -exponent).to(torch.float16)
        fields = {
            "values": Field(Coding.RAW, half),
            "exponent": Field(Coding.VARINTS, torch.tensor([exponent])),
        }
        return Payload(HALF, tuple(x.shape), x.dtype, fields), state

    @staticmethod
    def decode(payload: Payload) -> Tensor:
        """Undo the scale."""
        values, exponent = payload.tensor("values"), payload.tensor("exponent")
        if values.dtype != torch.float16 or values.numel() != payload.numel:
            raise fault(payload, f"{values.numel()} values of {values.dtype}")
        if exponent.numel() != 1:
            raise fault(payload, f"{exponent.numel()} exponents")
        power = int(exponent)
        if not -1100 < power < 1024:
            raise fault(payload, f"exponent {power}")
        if payload.dtype == torch.float32 and abs(power) < _EXACT_POWER:
            return shift(values.to(torch.float32), power).reshape(payload.shape)
        return finish(payload, shift(values.to(torch.float64), power))
