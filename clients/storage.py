"""Where a client's memory lives between messages.

A memory is one byte string: a JSON head and the raw numbers. `load` and `save` keep
it in Flower's ``Context.state``; a loss is noticed by the protocol and mended by a
reset. A home on disk would read and write the same bytes.
"""

from __future__ import annotations

import json
from math import prod

import torch
from flwr.app import Array, ArrayRecord, Context
from torch import Tensor

from fl_lowrank.codecs import floats
from fl_lowrank.errors import WireError

from .turns import Memory

STATE_KEY = "fl-lowrank"
_STYPE = "fl-lowrank-memory/1"
_DTYPES = {"float32": torch.float32, "float64": torch.float64}


def load(context: Context) -> Memory | None:
    """Give the memory that `save` left in the context, or none.

    Raises
    ------
    WireError
        If there is something else under our key.
    """
    record = context.state.get(STATE_KEY)
    if record is None:
        return None
    array = record.get("memory") if isinstance(record, ArrayRecord) else None
    if array is None or array.stype != _STYPE:
        msg = (
            f"context.state[{STATE_KEY!r}] is not a memory of CompressionMod; "
            "use another key for your own state"
        )
        raise WireError(msg)
    return from_bytes(array.data)


def save(context: Context, memory: Memory) -> None:
    """Keep the memory in the context."""
    data = to_bytes(memory)
    array = Array(dtype="uint8", shape=(len(data),), stype=_STYPE, data=data)
    context.state[STATE_KEY] = ArrayRecord({"memory": array})


def to_bytes(memory: Memory) -> bytes:
    """Write a memory; `from_bytes` reads it."""
    turn, payload = memory.pending or (0, b"")
    head = {
        "fid": memory.fid.hex(),
        "feedback": memory.feedback,
        "epoch": memory.epoch,
        "seen": memory.seen,
        "base": memory.base,
        "unsettled": memory.unsettled,
        "gave_up": memory.gave_up,
        "pending": [turn, len(payload)],
        "tensors": _describe(memory.tensors),
        "codec": _describe(memory.codec),
    }
    text = json.dumps(head).encode()
    parts = [len(text).to_bytes(4, "little"), text, payload]
    for tensors in (memory.tensors, memory.codec):
        parts += [floats.encode_raw(t.reshape(-1)) for t in tensors.values()]
    return b"".join(parts)


def from_bytes(data: bytes) -> Memory:
    """Read a memory that `to_bytes` wrote."""
    start = 4 + int.from_bytes(data[:4], "little")
    head = json.loads(data[4:start])
    turn, length = head["pending"]
    payload = data[start : start + length]
    tensors, end = _read(head["tensors"], data, start + length)
    codec, _ = _read(head["codec"], data, end)
    return Memory(
        fid=bytes.fromhex(head["fid"]),
        feedback=head["feedback"],
        epoch=head["epoch"],
        seen=(head["seen"][0], head["seen"][1]),
        base=head["base"],
        unsettled=head["unsettled"],
        gave_up=head["gave_up"],
        pending=(turn, payload) if turn else None,
        tensors=tensors,
        codec=codec,
    )


def _describe(tensors: dict[str, Tensor]) -> list[tuple[str, str, list[int]]]:
    return [
        (name, str(t.dtype).removeprefix("torch."), list(t.shape))
        for name, t in tensors.items()
    ]


def _read(
    described: list[tuple[str, str, list[int]]], data: bytes, pos: int
) -> tuple[dict[str, Tensor], int]:
    out = {}
    for name, dtype_name, shape in described:
        dtype = _DTYPES[dtype_name]
        end = pos + prod(shape) * dtype.itemsize
        out[name] = floats.decode_raw(data[pos:end], dtype).reshape(shape)
        pos = end
    return out, pos
