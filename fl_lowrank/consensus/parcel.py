"""What the mail room sends to a vertex: the flow it is owed, and perhaps its model.

Inside `framing.seal` stand, for a model of T arrays::

    varint     T
    T times    varint length and UTF-8 name, byte dtype, varint dimensions, varints
    varint     length of the flow, then the flow; 0 for none
    rest       the public copy, whole; empty for none
"""

from __future__ import annotations

from dataclasses import dataclass

from ..codecs.varint import write_varint
from ..errors import WireError
from ..framing import DTYPES, Reader, dtype_code, open_sealed, seal
from ..grouping import MAX_TENSORS, Layout
from ..wire import MAX_DIMENSIONS, MAX_ENTRIES, TensorLayout

#: Key of the request in the config of a message of the mail room.
CONSENSUS_KEY = "fl-lowrank-consensus"
#: Keys in the config of a request to train: how many local steps (or local trainings,
#: whatever the app takes for one) are due, and the number of the first one, from 0.
STEPS_KEY, FIRST_STEP_KEY = "local-steps", "first-local-step"

_MAX_NAME = 4096


@dataclass(frozen=True)
class Parcel:
    """Arrays for one vertex.

    Attributes
    ----------
    layout : Layout
        Names, shapes and dtypes of the model, in order.
    flow : bytes
        The flow in float64, an update of `model.ModelCodec`; empty for none.
    model : bytes
        The vertex's public copy, where it may have no model that fits; else empty.
    """

    layout: Layout
    flow: bytes = b""
    model: bytes = b""

    def pack(self) -> bytes:
        """Write it."""
        parts = [write_varint(len(self.layout))]
        for name, tensor in self.layout.items():
            text = name.encode()
            parts += [write_varint(len(text)), text, bytes([dtype_code(tensor.dtype)])]
            parts += map(write_varint, (len(tensor.shape), *tensor.shape))
        parts += [write_varint(len(self.flow)), self.flow, self.model]
        return seal(*parts)

    @staticmethod
    def unpack(data: bytes) -> Parcel:
        """Read it; `WireError` if it is anything else."""
        reader = open_sealed(data)
        count = reader.varint(MAX_TENSORS, "number of arrays")
        layout = dict(_read_entry(reader) for _ in range(count))
        if len(layout) != count:
            msg = f"parcel: announces {count} arrays, their names are {len(layout)}"
            raise WireError(msg)
        flow = reader.take(reader.varint(reader.left, "length of the flow"))
        return Parcel(layout, flow, reader.rest())


def _read_entry(reader: Reader) -> tuple[str, TensorLayout]:
    try:
        name = reader.take(reader.varint(_MAX_NAME, "length of a name")).decode()
    except UnicodeDecodeError as error:
        msg = "parcel: a name is not UTF-8"
        raise WireError(msg) from error
    code = reader.byte()
    if code not in DTYPES:
        msg = f"parcel: array {name!r} has the unknown dtype {code}"
        raise WireError(msg)
    num_dimensions = reader.varint(MAX_DIMENSIONS, "number of dimensions")
    shape = tuple(reader.varint(MAX_ENTRIES, "size") for _ in range(num_dimensions))
    return name, TensorLayout(shape, DTYPES[code])
