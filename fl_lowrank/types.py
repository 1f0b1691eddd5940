"""The nouns: payloads, guarantees, compressors, and the one convention for each.

Conventions, fixed here for the whole package, for a vector ``x`` and a random
map ``C``:

========================  ====================================================
``Unbiased(zeta)``        ``E C(x) = x`` and ``E|C(x)|^2 <= zeta |x|^2``;
                          ``omega = zeta - 1`` bounds the variance
``Contractive(delta)``    ``E|C(x) - x|^2 <= (1 - delta) |x|^2``, 0 < delta <= 1
``Exact()``               ``C(x) = x``
``NoGuarantee(reason)``   none of the above holds for every input
========================  ====================================================

The literature uses the same letters for other things: in Albasyoni et al.,
"Optimal Gradient Compression for Distributed and Federated Learning" (2020,
arXiv 2010.03246) ``alpha`` is the *error* ``1 - delta`` and ``omega`` the
variance; in Beznosikov et al., "On Biased Compression for Distributed
Learning" (JMLR 2023, arXiv 2002.12410) ``delta`` is ``1 / delta`` of ours.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from enum import IntEnum
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from .addends import Addend, Dense
from .codecs.bits import unpack_mask
from .errors import InputError
from .rng import Rng

State: TypeAlias = dict[str, Tensor]
Shape: TypeAlias = tuple[int, ...]

#: What a compressor accepts; integers travel through ``identity()`` alone.
FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Coding(IntEnum):
    """How the values of a field become bytes; the numbers are wire format."""

    RAW = 0  #: little-endian numbers of the tensor's own dtype
    BITS = 1  #: booleans, eight a byte
    INDICES = 2  #: strictly increasing positions in the flattened tensor
    SYMBOLS = 3  #: small integers of any sign, entropy coded
    VARINTS = 4  #: a handful of integers of any size and sign
    NESTED = 5  #: a payload of its own


@dataclass(frozen=True)
class Field:
    """One named part of a payload: a flat tensor, or a payload, and its coding."""

    coding: Coding
    value: Tensor | Payload

    @property
    def tensor(self) -> Tensor:
        """The value as a tensor; an inner payload must have been decoded before."""
        if isinstance(self.value, Tensor):
            return self.value
        msg = f"Field: expected a tensor, found an undecoded {self.value.kind.name}"
        raise TypeError(msg)


@dataclass(frozen=True)
class PackedBits(Field):
    """Booleans as they travel: a tensor of bytes on the CPU, lowest bit first.

    Who can use them so does; everyone else finds booleans in ``tensor``.
    """

    count: int

    @property
    def tensor(self) -> Tensor:
        """The booleans, unpacked anew each time."""
        return torch.from_numpy(unpack_mask(super().tensor.numpy(), self.count))


@dataclass(frozen=True)
class Kind:
    """A form of payload: its number on the wire and its fields in wire order.

    The number, once released, never changes its meaning.
    """

    code: int
    name: str
    fields: tuple[str, ...]
    #: The one coding of each field, which a decoder may rely on.
    codings: tuple[Coding, ...]
    #: Fields of real numbers that ``>>`` may hand to another compressor.
    inner: tuple[str, ...] = ()
    #: Nested payloads of the full size that it holds; none of more than one may stand
    #: inside another, so that short bytes never mean many tensors.
    copies: int = 1


@dataclass(frozen=True)
class Payload:
    """What a compressor yields: everything that is needed to decode, and no more.

    Attributes
    ----------
    kind : Kind
        Says who can decode it.
    shape, dtype
        Of the tensor that decoding gives back.
    fields : Mapping[str, Field]
        Exactly the names in ``kind.fields``.
    """

    kind: Kind
    shape: Shape
    dtype: torch.dtype
    fields: Mapping[str, Field]

    @property
    def numel(self) -> int:
        """Entries of the tensor that decoding gives back."""
        return math.prod(self.shape)

    def tensor(self, name: str) -> Tensor:
        """Values of the field ``name``."""
        return self.fields[name].tensor

    @property
    def num_bytes(self) -> int:
        """Memory of all fields."""
        return sum(
            value.nbytes if isinstance(value, Tensor) else value.num_bytes
            for value in (field.value for field in self.fields.values())
        )

    def packed(self, name: str) -> tuple[Tensor, int]:
        """Bytes of the field ``name`` of packed bits, and how many bits they hold."""
        field = self.fields[name]
        if isinstance(field, PackedBits) and isinstance(field.value, Tensor):
            return field.value, field.count
        msg = f"Payload: expected packed bits in {name!r}, found {field}"
        raise TypeError(msg)


@dataclass(frozen=True)
class Exact:
    """``C(x) = x`` for every x."""


@dataclass(frozen=True)
class Unbiased:
    """``E C(x) = x`` and ``E|C(x)|^2 <= zeta |x|^2``."""

    zeta: float

    @property
    def omega(self) -> float:
        """Bound of the relative variance, ``zeta - 1``."""
        return self.zeta - 1.0

    @property
    def expands(self) -> bool:
        """Whether the error may be as large as the input: a memory of it would grow."""
        return self.omega >= 1.0


@dataclass(frozen=True)
class Contractive:
    """``E|C(x) - x|^2 <= (1 - delta) |x|^2``."""

    delta: float


@dataclass(frozen=True)
class NoGuarantee:
    """Nothing holds for every input; ``reason`` says why.

    ``expands`` where the error is known to be larger than the input for some: a memory
    of such errors would grow.
    """

    reason: str
    expands: bool = False


Guarantee: TypeAlias = Exact | Unbiased | Contractive | NoGuarantee


#: A relative error of at most so much, such as that of 16-bit floats, counts as none.
NEGLIGIBLE_ERROR = 1e-6


def weakest(guarantees: Iterable[Guarantee]) -> Guarantee:
    """Give what holds for parts side by side, each with its own guarantee.

    Variances and squared errors add up over the parts, so the worst constant holds for
    the whole. Of unbiased beside contractive parts nothing is known, unless the error
    of the latter is negligible. What expands one part expands the whole.
    """
    zeta, delta, biased = 1.0, 1.0, None
    none: NoGuarantee | None = None
    for found in guarantees:
        match found:
            case NoGuarantee():
                none = found if none is None or found.expands else none
            case Unbiased():
                zeta = max(zeta, found.zeta)
            case Contractive() if 1.0 - found.delta > NEGLIGIBLE_ERROR:
                delta, biased = min(delta, found.delta), found
    expands = Unbiased(zeta).expands
    if none is not None:
        return NoGuarantee(none.reason, none.expands or expands)
    if biased is None:
        return Unbiased(zeta) if zeta > 1.0 else Exact()
    if zeta > 1.0:
        reason = f"parts with {Unbiased(zeta)} beside others with {biased}"
        return NoGuarantee(reason, expands)
    return Contractive(delta)


@dataclass(frozen=True)
class Importance:
    """Where a state holds importance weights, and what renewing them may cost.

    Attributes
    ----------
    weights : str
        Name of the weights in the state: flat, one for each entry of the input.
    age : str
        Name of the number of messages since the weights were due; they are due at 0.
    steps : int
        Gradients that may be taken to renew them.
    """

    weights: str = "weights"
    age: str = "age"
    steps: int = 10

    def inside(self, prefix: str) -> Importance:
        """Give the same, in a state that holds this one under a prefix."""
        return Importance(prefix + self.weights, prefix + self.age, self.steps)


class Compressor(ABC):
    """A pure lossy map with a declared guarantee.

    Subclasses are small frozen dataclasses, so that ``parse(str(c)) == c``.
    ``decode`` is static: it sees the payload and cannot reach a setting.
    """

    #: The name in texts such as ``topk(fraction=0.01)``.
    name: ClassVar[str]
    #: True if ``|C(x)| <= |x|`` in every realisation.
    norm_nonincreasing: ClassVar[bool] = False
    #: True if ``>>`` may hand real numbers of its payload to another compressor.
    composable: ClassVar[bool] = False
    #: True if these numbers are the kept part of x itself, with an error orthogonal
    #: to them: then the errors of the two sides of ``>>`` add up.
    orthogonal: ClassVar[bool] = False
    #: True if an entry's code depends on no other entry but through a common scale.
    elementwise: ClassVar[bool] = False
    #: True if a model's tensors of one rule and dtype are compressed as one vector.
    joins: ClassVar[bool] = False

    def init(self, shape: Shape) -> State:
        """State before the first message; most compressors remember nothing."""
        del shape
        return {}

    @abstractmethod
    def encode(self, x: Tensor, state: State, rng: Rng) -> tuple[Payload, State]:
        """Compress ``x``; gives the payload and the state for the next call."""

    @staticmethod
    def decode(payload: Payload) -> Tensor:
        """Rebuild the tensor from a payload whose fields are all tensors.

        Wrappers that only choose or chain others send payloads of those, and have
        nothing to decode.
        """
        msg = f"{payload.kind.name}: this class makes no payloads of its own"
        raise TypeError(msg)

    @abstractmethod
    def guarantee(self, shape: Shape) -> Guarantee:
        """State what holds for every tensor of this shape."""

    def inner_shapes(self, shape: Shape) -> tuple[Shape, ...]:
        """Shapes of what ``>>`` hands on, for an input of this shape."""
        del shape
        return ()

    def chained(self, shape: Shape, error: float, unbiased: bool) -> Guarantee | None:
        """State what holds for ``self >> inner``, if more than follows in general.

        ``error`` bounds the relative squared error, or variance, of the inner one on
        each part handed on; ``unbiased`` says whether its mean is exact.
        """
        del shape, error, unbiased
        return None

    def importance(self, shape: Shape) -> Importance | None:
        """Say where the state holds importance weights; most need none."""
        del shape
        return None

    @classmethod
    def addend(cls, payload: Payload) -> Addend:
        """Prepare a payload, whose fields are all tensors, for a dense sum.

        Overridden where a sum is possible without a dense tensor for each.

        Raises
        ------
        WireError
            If the fields of the payload contradict each other.
        """
        return Dense(cls.decode(payload))

    def __str__(self) -> str:
        settings = (
            f"{f.name}={format_setting(getattr(self, f.name))}"
            for f in fields(self)  # type: ignore[arg-type]  # subclasses are dataclasses
            if f.default is MISSING or getattr(self, f.name) != f.default
        )
        return f"{self.name}({', '.join(settings)})"


def format_setting(value: object) -> str:
    """Write a setting as the parser reads it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{value}"'
    return str(value)


def all_finite(x: Tensor) -> bool:
    """Whether no entry is NaN or infinite.

    A finite sum has finite terms only: one fast pass is enough, unless it overflows.
    """
    sums = torch.float64 if x.dtype == torch.float64 else torch.float32
    total = x.detach().sum(dtype=sums)
    return math.isfinite(float(total)) or bool(torch.isfinite(x).all())


def check_dtype(who: str, x: Tensor) -> Tensor:
    """Refuse all but floating-point numbers; gives ``x`` back, detached.

    Raises
    ------
    InputError
        If ``x`` is not a floating-point tensor.
    """
    if x.dtype not in FLOAT_DTYPES:
        msg = (
            f"{who}: expected float16, bfloat16, float32 or float64, found "
            f"{x.dtype}; integers travel through identity()"
        )
        raise InputError(msg)
    return x.detach()


def check_input(who: str, x: Tensor) -> Tensor:
    """Refuse what no lossy compressor can take; gives ``x`` back, detached.

    Raises
    ------
    InputError
        If ``x`` is not a floating-point tensor or holds NaN or infinity.
    """
    check_dtype(who, x)
    if not all_finite(x):
        bad = int((~torch.isfinite(x)).sum())
        msg = (
            f"{who}: expected finite numbers, found {bad} NaN or infinite entries "
            f"of {x.numel()}; training has probably diverged, lower the step"
        )
        raise InputError(msg)
    return x.detach()


class Additive(Compressor):
    """A compressor whose payloads are summed as they are, and decoded once.

    ``decode(add([a, b]))`` is ``decode(a) + decode(b)`` up to the rounding of the
    dtype, or a `WireError` that says why the sum cannot be decoded.
    """

    @staticmethod
    @abstractmethod
    def add(payloads: Sequence[Payload]) -> Payload:
        """Sum at least one payload of equal kind, shape and dtype, undecoded.

        Raises
        ------
        WireError
            If they were made with other settings, or the sum does not fit.
        """
