"""From payloads back to tensors: the one table, and what is done with it.

Nothing but the payload is looked at. Nested payloads are decoded first, so a
decoder sees fields that are tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from . import registry, wire
from .addends import Addend, add_all, merge
from .compressors.blocks import BLOCKS
from .compressors.dense import DENSE, F16, HALF, Identity
from .compressors.dithered import DITHERED
from .compressors.dithering import LEVELS, SparseDithering
from .compressors.eden import Eden
from .compressors.eden_payload import EDEN
from .compressors.induced import INDUCED, Induced
from .compressors.lowrank import LOWRANK, Svd
from .compressors.natural import POWERS, Natural
from .compressors.natural_dithering import BINADES, NaturalDithering
from .compressors.projected import PROJECTED, LowRankUnbiased
from .compressors.rotated import ROTATED, Rotated
from .compressors.sign import SIGNS, Sign
from .compressors.sketch import Sketch
from .compressors.sketch_parts import SKETCH
from .compressors.sparse import SEEDED, SPARSE, RandK, TopK
from .compressors.spherical import SPHERICAL, Spherical
from .compressors.subtractive import Dither
from .compressors.tensor_train import TRAIN, TensorTrain
from .compressors.tucker import TUCKER, Tucker
from .compressors.uniform import Uniform
from .compressors.wrappers import SHRUNK, Shrunk, shrink_factor
from .errors import InputError, WireError
from .types import Additive, Compressor, Kind, Payload, all_finite
from .wire import TensorLayout

#: Who decodes a kind of payload. One line for each kind; numbers are never reused.
DECODERS: dict[Kind, type[Compressor]] = {
    DENSE: Identity,
    HALF: F16,
    SPARSE: TopK,
    SEEDED: RandK,
    POWERS: Natural,
    LEVELS: SparseDithering,
    LOWRANK: Svd,
    SHRUNK: Shrunk,
    PROJECTED: LowRankUnbiased,
    TUCKER: Tucker,
    TRAIN: TensorTrain,
    SKETCH: Sketch,
    BLOCKS: Uniform,
    SIGNS: Sign,
    BINADES: NaturalDithering,
    SPHERICAL: Spherical,
    EDEN: Eden,
    ROTATED: Rotated,
    INDUCED: Induced,
    DITHERED: Dither,
}
registry.DECODERS = DECODERS

KINDS: dict[int, Kind] = {kind.code: kind for kind in DECODERS}


def unpack(data: bytes, expect: TensorLayout | None = None) -> Payload:
    """Read a message that `wire.pack` wrote.

    Parameters
    ----------
    data : bytes
        From anyone: reading is strict and bounded.
    expect : TensorLayout, optional
        Shape and dtype that the tensor must have. Without it, up to 2^31 entries
        are believed.

    Raises
    ------
    WireError
        If the bytes are not exactly one well-formed message.
    """
    return wire.unpack(data, KINDS, expect)


def decode(payload: Payload) -> Tensor:
    """Rebuild the tensor, in the payload's shape and dtype.

    Raises
    ------
    WireError
        If the fields of the payload contradict each other.
    """
    return registry.decode(payload)


def addend(payload: Payload) -> Addend:
    """Prepare a payload for a dense sum.

    Raises
    ------
    WireError
        If the fields of the payload contradict each other.
    """
    if payload.kind == SHRUNK:
        inner = payload.fields["inner"].value
        if isinstance(inner, Payload) and inner.shape == payload.shape:
            return addend(inner).scaled(shrink_factor(payload))
    return DECODERS[payload.kind].addend(registry.resolved(payload))


def accumulate(
    payloads: Sequence[Payload], weights: Sequence[float], out: Tensor
) -> None:
    """Add the weighted payloads to the dense sum ``out``, in place.

    Sparse and low-rank payloads are added without a dense tensor for each, and sketches
    are summed before they are decoded.

    Raises
    ------
    WireError
        If the fields of a payload contradict each other, or a sum of sketches cannot
        be decoded; ``out`` is then as it was. If the sum overflows: ``out`` is spoilt.
    """
    parts = zip(map(addend, payloads), weights, strict=True)
    add_all(merge(list(parts)), out)
    if not all_finite(out):
        msg = (
            f"accumulate: the sum of {len(payloads)} payloads overflows {out.dtype}; "
            "a sender is at fault, decode them one by one to find it"
        )
        raise WireError(msg)


def add(payloads: Sequence[Payload]) -> Payload:
    """Sum payloads as they are; what comes out is a payload again.

    A relay may do so: no value is decoded, and the sum is packed like any other.

    Raises
    ------
    InputError
        If there are none.
    WireError
        If they differ in kind, shape, dtype or settings, if their kind is not
        `Additive`, or if the sum does not fit.
    """
    if not payloads:
        msg = "add: expected at least one payload, found none"
        raise InputError(msg)
    first = payloads[0]
    for i, other in enumerate(payloads):
        if (other.kind, other.shape, other.dtype) != (
            first.kind,
            first.shape,
            first.dtype,
        ):
            msg = (
                f"add: payload 0 is a {first.kind.name} of {first.dtype}, "
                f"{first.shape}, and payload {i} a {other.kind.name} of "
                f"{other.dtype}, {other.shape}; leave it out"
            )
            raise WireError(msg)
    cls = DECODERS[first.kind]
    if not issubclass(cls, Additive):
        msg = (
            f"add: payloads of kind {first.kind.name} cannot be summed undecoded; use "
            "accumulate, or send sketch(...)"
        )
        raise WireError(msg)
    return cls.add(payloads)
