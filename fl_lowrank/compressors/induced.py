"""A biased compressor made unbiased: `Induced`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .. import registry
from ..errors import SettingError
from ..linalg import working_dtype
from ..rng import Rng
from ..types import (
    Coding,
    Compressor,
    Exact,
    Field,
    Guarantee,
    Kind,
    NoGuarantee,
    Payload,
    Shape,
    State,
    Unbiased,
)
from .common import finish, need
from .wrappers import parts, relative_error, sub_state

INDUCED = Kind(
    22, "induced", ("first", "second"), (Coding.NESTED, Coding.NESTED), copies=2
)


@dataclass(frozen=True)
class Induced(Compressor):
    """A biased compressor made unbiased: ``C(x) + Q(x - C(x))``.

    Q compresses what the receiver of C lacks. S. Horvath, P. Richtarik, "A Better
    Alternative to Error Feedback for Communication-Efficient Distributed Learning",
    ICLR 2021, arXiv 2006.11077, theorem 3.

    Guarantee: ``Unbiased(1 + omega (1 - delta))`` for ``biased`` in
    ``Contractive(delta)`` and ``unbiased`` with variance omega. It is unbiased
    whatever ``biased`` does.
    Wire cost: that of both, and some 20 bytes.

    Parameters
    ----------
    biased : Compressor
        C, such as ``topk(fraction=0.01)``.
    unbiased : Compressor
        Q, such as ``randk(fraction=0.01)``.

    Raises
    ------
    SettingError
        If a part holds another ``induced``; while encoding, if ``unbiased`` is not
        unbiased.
    """

    name: ClassVar[str] = "induced"

    biased: Compressor
    unbiased: Compressor

    def __post_init__(self) -> None:
        if any(
            isinstance(c, Induced) for c in (*parts(self.biased), *parts(self.unbiased))
        ):
            msg = (
                f"induced: expected parts without another induced, found {self}; put "
                "the unbiased compressor of the inner one outside"
            )
            raise SettingError(msg)

    def guarantee(self, shape: Shape) -> Guarantee:
        """Horvath and Richtarik (2021), theorem 3."""
        omega = self._omega(shape)
        first = self.biased.guarantee(shape)
        error = relative_error(first)
        if isinstance(first, Exact):
            return first
        if math.isinf(error) and omega > 0.0:
            wild = isinstance(first, NoGuarantee) and first.expands
            expands = wild or Unbiased(1.0 + omega).expands
            return NoGuarantee(f"nothing bounds the error of {self.biased}", expands)
        return Unbiased(1.0 + (omega * error if omega > 0.0 else 0.0))

    def _omega(self, shape: Shape) -> float:
        match self.unbiased.guarantee(shape):
            case Exact():
                return 0.0
            case Unbiased() as found:
                return found.omega
        msg = (
            f"induced: expected an unbiased compressor for the rest, found "
            f"{self.unbiased}; use for example randk(fraction=0.01)"
        )
        raise SettingError(msg)

    def init(self, shape: Shape) -> State:
        """States of both."""
        first, second = self.biased.init(shape), self.unbiased.init(shape)
        return {f"first.{k}": v for k, v in first.items()} | {
            f"second.{k}": v for k, v in second.items()
        }

    def encode(self, x: Tensor, state: State, rng: Rng) -> tuple[Payload, State]:
        """Compress, decode, and compress what is missing."""
        self._omega(tuple(x.shape))
        first, after = self.biased.encode(
            x, sub_state(state, "first."), rng.child("first")
        )
        rest = x.detach() - registry.decode(first).to(x.device)
        second, later = self.unbiased.encode(
            rest, sub_state(state, "second."), rng.child("second")
        )
        fields = {
            "first": Field(Coding.NESTED, first),
            "second": Field(Coding.NESTED, second),
        }
        result = {f"first.{k}": v for k, v in after.items()} | {
            f"second.{k}": v for k, v in later.items()
        }
        return Payload(INDUCED, tuple(x.shape), x.dtype, fields), result

    @staticmethod
    def decode(payload: Payload) -> Tensor:
        """Add both parts."""
        first, second = payload.tensor("first"), payload.tensor("second")
        need(
            first.numel() == second.numel() == payload.numel,
            payload,
            f"parts of {first.numel()} and {second.numel()} entries",
        )
        work = working_dtype(payload.dtype)
        return finish(payload, first.to(work) + second.to(first.device, work))
