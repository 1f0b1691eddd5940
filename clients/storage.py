"""A memory as bytes, and where Flower keeps it: in the Context.

======  ==========================================================================
bytes   what
======  ==========================================================================
8       ``FLM1`` and the length n of the head, little-endian
n       head: JSON, with the state of the protocol and the sizes of all that follows
4       CRC-32 of the above, little-endian
...     body: tensors as they lie in the machine, each filled up to 8 bytes; payload
4       CRC-32 of the body
======  ==========================================================================

A head without a body tells how the state has changed since: its ``ident`` is that of
the memory to which it belongs. Reading allocates no more than there are bytes, and
refuses by `WireError` whatever is cut, damaged or of another kind.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from math import prod

import torch
from flwr.app import Array, ArrayRecord, Context
from torch import Tensor

from fl_lowrank.errors import WireError
from fl_lowrank.framing import checksum

from . import heads
from .heads import Entry, Head
from .turns import Memory

STATE_KEY = "fl-lowrank"
REFERENCE_KEY = "fl-lowrank-reference"
_STYPE = "fl-lowrank-memory/1"


def load(context: Context, key: str = STATE_KEY) -> Memory | None:
    """Give the memory that `save` left in the context, or none.

    Raises
    ------
    WireError
        If there is something else under our key.
    """
    data = _bytes_in(context, key)
    return None if data is None else from_bytes(data, checked=False)


def load_state(context: Context) -> Memory | None:
    """Give what `load` gives, but without its tensors."""
    data = _bytes_in(context, STATE_KEY)
    if data is None:
        return None
    return heads.read_head(data[: heads.head_size(data[: heads.FRAME.size])]).state


def save(context: Context, memory: Memory, key: str = STATE_KEY) -> None:
    """Keep the memory in the context."""
    data = b"".join(to_parts(memory, checked=False))
    array = Array(dtype="uint8", shape=(len(data),), stype=_STYPE, data=data)
    context.state[key] = ArrayRecord({"memory": array})


def to_bytes(memory: Memory) -> bytes:
    """Write a memory; `from_bytes` reads it."""
    return b"".join(to_parts(memory))


def to_parts(
    memory: Memory, *, owner: str = "", ident: str = "", checked: bool = True
) -> list[bytes | memoryview]:
    """Give the bytes of a memory in parts, those of its tensors without a copy.

    Unless ``checked``, the body's checksum is left at 0: for bytes that no disk and no
    network touches without a checksum of its own.

    Raises
    ------
    InputError
        If a tensor is of a dtype that memories do not have.
    """
    payload = b"" if memory.pending is None else memory.pending[1]
    body: list[bytes | memoryview] = []
    for tensor in (*memory.tensors.values(), *memory.codec.values()):
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        body += [raw.numpy().data, bytes(heads.room(raw.numel()) - raw.numel())]
    body.append(payload)
    sizes = {
        "order": sys.byteorder,
        "tensors": heads.describe(memory.tensors, memory.feedback),
        "codec": heads.describe(memory.codec, memory.feedback),
        "payload": len(payload),
    }
    head = heads.to_head(memory, owner=owner, ident=ident, sizes=sizes)
    return [head, *body, heads.CRC.pack(checksum(body if checked else ()))]


def read_body(head: Head, body: bytearray, *, checked: bool = True) -> Memory:
    """Read what follows a head; the tensors are views of ``body``."""
    if len(body) != head.body_size:
        msg = f"memory: the head announces {head.body_size} bytes, found {len(body)}"
        raise WireError(msg)
    if checked:
        heads.check(body, "body")
    tensors, pos = _read(head.tensors, body, 0)
    codec, pos = _read(head.codec, body, pos)
    pending = head.state.pending
    if pending is not None:
        pending = (pending[0], bytes(body[pos : -heads.CRC.size]))
    return replace(head.state, pending=pending, tensors=tensors, codec=codec)


def from_bytes(data: bytes, *, checked: bool = True) -> Memory:
    """Read a memory that `to_bytes` wrote.

    Raises
    ------
    WireError
        If it is anything else.
    """
    size = heads.head_size(data[: heads.FRAME.size])
    head = heads.read_head(data[:size])
    return read_body(head, bytearray(memoryview(data)[size:]), checked=checked)


def _bytes_in(context: Context, key: str) -> bytes | None:
    record = context.state.get(key)
    if record is None:
        return None
    array = record.get("memory") if isinstance(record, ArrayRecord) else None
    if array is None or array.stype != _STYPE:
        msg = (
            f"context.state[{key!r}] is not a memory of CompressionMod; "
            "use another key for your own state"
        )
        raise WireError(msg)
    return array.data


def _read(
    entries: list[Entry], body: bytearray, pos: int
) -> tuple[dict[str, Tensor], int]:
    out = {}
    for entry in entries:
        name, dtype, shape = entry
        count = prod(shape)
        if count:
            flat = torch.frombuffer(body, dtype=dtype, count=count, offset=pos)
        else:
            flat = torch.empty(0, dtype=dtype)
        try:
            out[name] = flat.reshape(shape)
        except (RuntimeError, TypeError) as error:
            msg = f"memory: no tensor {name!r} has the shape {shape}"
            raise WireError(msg) from error
        pos += heads.room(heads.size_of(entry))
    return out, pos
