"""Compressors made of compressors: `Then` (``>>``) and `Shrunk`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import SettingError
from ..rng import Rng
from ..types import (
    Coding,
    Compressor,
    Contractive,
    Exact,
    Field,
    Guarantee,
    Importance,
    Kind,
    NoGuarantee,
    Payload,
    Shape,
    State,
    Unbiased,
)
from .common import finish, need
from .sparse import Threshold

SHRUNK = Kind(7, "shrunk", ("factor", "inner"), (Coding.RAW, Coding.NESTED))


@dataclass(frozen=True)
class Then(Compressor):
    """``outer >> inner``: the numbers that ``outer`` would send are compressed again.

    Guarantee, with ``outer`` keeping part of x exactly (``topk``) and error
    ``1 - delta``: ``Contractive(delta (1 - e))``, e the inner error or variance, since
    both errors are orthogonal. Two unbiased ones give ``Unbiased(zeta1 zeta2)``, if
    one part is handed on. Of pairs of factors see ``chained`` of the outer one; of
    others nothing is known.
    Wire cost: that of the outer positions or seeds, and of the inner values.

    Raises
    ------
    SettingError
        If ``outer`` has no real numbers to hand on.
    """

    name: ClassVar[str] = "then"

    outer: Compressor
    inner: Compressor

    def __post_init__(self) -> None:
        if not self.outer.composable:
            msg = (
                f">>: {self.outer} has no real numbers to hand on to {self.inner}; "
                "put topk, randk or a low-rank method on the left"
            )
            raise SettingError(msg)

    def __str__(self) -> str:
        return f"{self.outer} >> {self.inner}"

    def guarantee(self, shape: Shape) -> Guarantee:
        """Combine what holds for the two sides."""
        first = self.outer.guarantee(shape)
        parts = [self.inner.guarantee(s) for s in self.outer.inner_shapes(shape)]
        if all(isinstance(part, Exact) for part in parts):
            return first
        if isinstance(first, Exact) and len(parts) == 1:
            return parts[0]  # all of x is handed on
        expands = _expand(first) or _expand(*parts)
        if isinstance(self.outer, Threshold) and not self.inner.elementwise:
            return NoGuarantee(
                f"how many numbers {self.outer} hands on to {self.inner} depends on "
                "the tensor",
                expands,
            )
        if self.outer.orthogonal and isinstance(first, Contractive):
            error = max(relative_error(part) for part in parts)
            if error < 1.0:
                return Contractive(first.delta * (1.0 - error))
        single = parts[0] if len(parts) == 1 else None
        if isinstance(first, Unbiased) and isinstance(single, Unbiased):
            return Unbiased(first.zeta * single.zeta)
        unbiased = all(isinstance(part, Unbiased | Exact) for part in parts)
        error = max(relative_error(part) for part in parts)
        own = self.outer.chained(shape, error, unbiased)
        if own is not None:
            return own
        return NoGuarantee(
            f"no bound is known for {self.inner} on the numbers of {self.outer}",
            expands,
        )

    def init(self, shape: Shape) -> State:
        """Outer state, and one inner state for each part handed on."""
        state = {f"outer.{k}": v for k, v in self.outer.init(shape).items()}
        for i, part in enumerate(self.outer.inner_shapes(shape)):
            for key, value in self.inner.init(part).items():
                state[f"inner{i}.{key}"] = value
        return state

    def importance(self, shape: Shape) -> Importance | None:
        """Weights of the outer one; the entries that the inner one sees change."""
        found = self.outer.importance(shape)
        return None if found is None else found.inside("outer.")

    def encode(self, x: Tensor, state: State, rng: Rng) -> tuple[Payload, State]:
        """Encode with ``outer``, then replace its real numbers by payloads."""
        payload, outer = self.outer.encode(x, sub_state(state, "outer."), rng)
        fields = dict(payload.fields)
        result = {f"outer.{k}": v for k, v in outer.items()}
        for i, name in enumerate(payload.kind.inner):
            inner, after = self.inner.encode(
                payload.tensor(name),
                sub_state(state, f"inner{i}."),
                rng.child("then", i),
            )
            fields[name] = Field(Coding.NESTED, inner)
            result |= {f"inner{i}.{k}": v for k, v in after.items()}
        return Payload(payload.kind, payload.shape, payload.dtype, fields), result


def parts(compressor: Compressor) -> Iterator[Compressor]:
    """Give a compressor and all that it is made of."""
    yield compressor
    for value in vars(compressor).values():
        if isinstance(value, Compressor):
            yield from parts(value)


def sub_state(state: State, prefix: str) -> State:
    """Give the part of a state under a prefix, without it."""
    return {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}


def _expand(*factors: Guarantee) -> bool:
    """Whether errors of what is multiplied can be larger than the product."""
    if any(isinstance(found, NoGuarantee) and found.expands for found in factors):
        return True
    zetas = [found.zeta for found in factors if isinstance(found, Unbiased)]
    return Unbiased(math.prod(zetas)).expands


def relative_error(part: Guarantee) -> float:
    """Bound of the relative squared error; infinite where none is known."""
    match part:
        case Exact():
            return 0.0
        case Contractive(delta):
            return 1.0 - delta
        case Unbiased():
            return part.omega
    return math.inf


@dataclass(frozen=True)
class Shrunk(Compressor):
    """An unbiased compressor times ``1 / zeta``, so that it contracts.

    Guarantee: ``Contractive(1 / zeta)`` for ``inner`` in ``Unbiased(zeta)``. This is
    how an unbiased compressor enters error feedback (Richtarik, Sokolov, Fatkhullin,
    "EF21", NeurIPS 2021, arXiv 2106.05203, lemma 8).
    Wire cost: that of ``inner`` and some 15 bytes.

    Raises
    ------
    SettingError
        While encoding, if ``inner`` is not unbiased.
    """

    name: ClassVar[str] = "shrunk"

    inner: Compressor

    def guarantee(self, shape: Shape) -> Guarantee:
        """``1 - 1 / zeta`` is the least bound over all factors."""
        inner = self.inner.guarantee(shape)
        if isinstance(inner, Exact):
            return inner
        return Contractive(1.0 / self._zeta(shape))

    def _zeta(self, shape: Shape) -> float:
        inner = self.inner.guarantee(shape)
        if isinstance(inner, Exact):
            return 1.0
        if not isinstance(inner, Unbiased):
            msg = (
                f"shrunk: expected an unbiased compressor, found {self.inner} with "
                f"{inner}; it needs no shrinking, use it as it is"
            )
            raise SettingError(msg)
        return inner.zeta

    def init(self, shape: Shape) -> State:
        """State of the inner compressor."""
        return self.inner.init(shape)

    def importance(self, shape: Shape) -> Importance | None:
        """Weights of the inner compressor."""
        return self.inner.importance(shape)

    def encode(self, x: Tensor, state: State, rng: Rng) -> tuple[Payload, State]:
        """Send the inner payload and the factor."""
        factor = 1.0 / self._zeta(tuple(x.shape))
        inner, state = self.inner.encode(x, state, rng)
        fields = {
            "factor": Field(Coding.RAW, torch.tensor([factor], dtype=torch.float32)),
            "inner": Field(Coding.NESTED, inner),
        }
        return Payload(SHRUNK, inner.shape, inner.dtype, fields), state

    @staticmethod
    def decode(payload: Payload) -> Tensor:
        """Multiply."""
        values = payload.tensor("inner")
        need(values.numel() == payload.numel, payload, f"{values.numel()} values")
        return finish(payload, values * shrink_factor(payload))


def shrink_factor(payload: Payload) -> float:
    """Give the factor of a SHRUNK payload, in (0, 1]."""
    factor = payload.tensor("factor")
    ok = factor.numel() == 1 and 0.0 < float(factor) <= 1.0
    need(ok, payload, "no factor in (0, 1]")
    return float(factor)
