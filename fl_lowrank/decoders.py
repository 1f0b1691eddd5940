"""From payloads back to tensors: the one table, and what is done with it.

Nothing but the payload is looked at. Nested payloads are decoded first, so a
decoder sees fields that are tensors.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from torch import Tensor

from . import registry, wire
from .compressors.dense import DENSE, F16, HALF, Identity
from .compressors.dithered import DITHERED
from .compressors.dithering import LEVELS, SparseDithering
from .compressors.lowrank import LOWRANK, Svd
from .compressors.natural import POWERS, Natural
from .compressors.sparse import SEEDED, SPARSE, RandK, TopK
from .compressors.subtractive import Dither
from .compressors.wrappers import INDUCED, SHRUNK, Induced, Shrunk, shrink_factor
from .errors import WireError
from .types import Compressor, Kind, Payload, all_finite
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


def accumulate(
    payloads: Sequence[Payload], weights: Sequence[float], out: Tensor
) -> None:
    """Add the weighted payloads to the dense sum ``out``, in place.

    Sparse and low-rank payloads are added without a dense tensor for each.

    Raises
    ------
    WireError
        If the fields of a payload contradict each other, or the sum overflows;
        ``out`` is then spoilt.
    """
    groups: dict[Kind, list[tuple[Payload, float]]] = defaultdict(list)
    for outer, outer_weight in zip(payloads, weights, strict=True):
        payload, weight = outer, outer_weight
        while payload.kind == SHRUNK:
            inner = payload.fields["inner"].value
            if not isinstance(inner, Payload) or inner.shape != payload.shape:
                break
            payload, weight = inner, weight * shrink_factor(payload)
        groups[payload.kind].append((registry.resolved(payload), weight))
    for kind, group in groups.items():
        many, factors = zip(*group, strict=True)
        DECODERS[kind].accumulate_many(many, factors, out)
    if not all_finite(out):
        msg = (
            f"accumulate: the sum of {len(payloads)} payloads overflows {out.dtype}; "
            "a sender is at fault, decode them one by one to find it"
        )
        raise WireError(msg)
