"""Who decodes which kind of payload; `decoders` fills the table.

It stands below the compressors, so that one of them may decode what it sends.
"""

from __future__ import annotations

from torch import Tensor

from .types import Coding, Compressor, Field, Kind, Payload

DECODERS: dict[Kind, type[Compressor]] = {}


def decode(payload: Payload) -> Tensor:
    """Rebuild the tensor, in the payload's shape and dtype.

    Raises
    ------
    WireError
        If the fields of the payload contradict each other.
    """
    return DECODERS[payload.kind].decode(resolved(payload))


def resolved(payload: Payload) -> Payload:
    """Replace nested payloads by what they decode to."""
    if not any(f.coding == Coding.NESTED for f in payload.fields.values()):
        return payload
    fields = {
        name: Field(Coding.RAW, decode(field.value).reshape(-1))
        if isinstance(field.value, Payload)
        else field
        for name, field in payload.fields.items()
    }
    return Payload(payload.kind, payload.shape, payload.dtype, fields)
