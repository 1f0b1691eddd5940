"""Compressors made of compressors.

`Then` (``>>``), `Shrunk`, `Induced`, `BySize`, `Flat`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .. import registry
from ..errors import SettingError
from ..linalg import working_dtype
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
from .dense import DENSE
from .sparse import Threshold

SHRUNK = Kind(7, "shrunk", ("factor", "inner"), (Coding.RAW, Coding.NESTED))
INDUCED = Kind(
    22, "induced", ("first", "second"), (Coding.NESTED, Coding.NESTED), copies=2
)


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
        if isinstance(self.outer, Threshold) and not self.inner.elementwise:
            return NoGuarantee(
                f"how many numbers {self.outer} hands on to {self.inner} depends on "
                "the tensor"
            )
        if self.outer.orthogonal and isinstance(first, Contractive):
            error = max(_relative_error(part) for part in parts)
            if error < 1.0:
                return Contractive(first.delta * (1.0 - error))
        single = parts[0] if len(parts) == 1 else None
        if isinstance(first, Unbiased) and isinstance(single, Unbiased):
            return Unbiased(first.zeta * single.zeta)
        unbiased = all(isinstance(part, Unbiased | Exact) for part in parts)
        error = max(_relative_error(part) for part in parts)
        own = self.outer.chained(shape, error, unbiased)
        if own is not None:
            return own
        return NoGuarantee(
            f"no bound is known for {self.inner} on the numbers of {self.outer}"
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
        payload, outer = self.outer.encode(x, _sub(state, "outer."), rng)
        fields = dict(payload.fields)
        result = {f"outer.{k}": v for k, v in outer.items()}
        for i, name in enumerate(payload.kind.inner):
            inner, after = self.inner.encode(
                payload.tensor(name), _sub(state, f"inner{i}."), rng.child("then", i)
            )
            fields[name] = Field(Coding.NESTED, inner)
            result |= {f"inner{i}.{k}": v for k, v in after.items()}
        return Payload(payload.kind, payload.shape, payload.dtype, fields), result


def _parts(compressor: Compressor) -> Iterator[Compressor]:
    """Give a compressor and all that it is made of."""
    yield compressor
    for value in vars(compressor).values():
        if isinstance(value, Compressor):
            yield from _parts(value)


def _sub(state: State, prefix: str) -> State:
    return {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}


def _relative_error(part: Guarantee) -> float:
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
            isinstance(c, Induced)
            for c in (*_parts(self.biased), *_parts(self.unbiased))
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
        error = _relative_error(first)
        if isinstance(first, Exact):
            return first
        if math.isinf(error) and omega > 0.0:
            return NoGuarantee(f"nothing bounds the error of {self.biased}")
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
        first, after = self.biased.encode(x, _sub(state, "first."), rng.child("first"))
        rest = x.detach() - registry.decode(first).to(x.device)
        second, later = self.unbiased.encode(
            rest, _sub(state, "second."), rng.child("second")
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
