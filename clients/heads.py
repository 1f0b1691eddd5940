"""Heads of memories: all but the numbers, read as strictly as if from a stranger.

A head is framed: ``FLM1``, its length, JSON, CRC-32.
"""

from __future__ import annotations

import json
import struct
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from fl_lowrank.errors import InputError, WireError
from fl_lowrank.framing import DTYPES

from .turns import REFERENCE, Memory

_T = TypeVar("_T")

FRAME = struct.Struct("<4sI")
CRC = struct.Struct("<I")
_MAGIC = b"FLM1"
_ALIGNMENT = 8
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

#: Name, dtype and shape of a tensor.
Entry: TypeAlias = tuple[str, torch.dtype, list[int]]


@dataclass(frozen=True)
class Head:
    """All of a memory but its numbers.

    Attributes
    ----------
    ident : str
        Of the bytes that hold the numbers.
    owner : str
        Client key; empty where it is known otherwise.
    state : Memory
        Without tensors; the pending payload is empty.
    tensors, codec : list
        What the body holds.
    payload : int
        Bytes of the pending payload, which come last.
    """

    ident: str
    owner: str
    state: Memory
    tensors: list[Entry]
    codec: list[Entry]
    payload: int

    @property
    def body_size(self) -> int:
        """Bytes that follow the head, checksum included."""
        entries = (*self.tensors, *self.codec)
        return sum(room(size_of(e)) for e in entries) + self.payload + CRC.size


def to_head(
    memory: Memory,
    *,
    owner: str,
    ident: str,
    sizes: Mapping[str, object] | None = None,
) -> bytes:
    """Write the state of a memory; without ``sizes``, for a head without a body."""
    head = {
        "ident": ident,
        "owner": owner,
        "fid": memory.fid.hex(),
        "feedback": memory.feedback,
        "epoch": memory.epoch,
        "seen": memory.seen,
        "base": memory.base,
        "unsettled": memory.unsettled,
        "gave_up": memory.gave_up,
        "pending": 0 if memory.pending is None else memory.pending[0],
        **(sizes or {}),
    }
    text = json.dumps(head).encode()
    framed = FRAME.pack(_MAGIC, len(text)) + text
    return framed + CRC.pack(zlib.crc32(framed))


def head_size(frame: bytes) -> int:
    """Give the size of a head from its first bytes, all of it included."""
    if len(frame) != FRAME.size or frame[: len(_MAGIC)] != _MAGIC:
        msg = f"memory: expected {_MAGIC!r} and a length, found {frame[:8]!r}"
        raise WireError(msg)
    length: int = FRAME.unpack(frame)[1]
    return FRAME.size + length + CRC.size


def read_head(data: bytes) -> Head:
    """Read a head, of the size that `head_size` gives."""
    check(data, "head")
    try:
        return _parse(json.loads(data[FRAME.size : -CRC.size]))
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        msg = f"memory: the head makes no sense: {error!r}"
        raise WireError(msg) from error


def check(data: bytes | bytearray, what: str) -> None:
    """Refuse bytes that do not end with their checksum."""
    view = memoryview(data)
    if zlib.crc32(view[: -CRC.size]) != int.from_bytes(view[-CRC.size :], "little"):
        msg = f"memory: the checksum of its {what} is wrong; it is cut or damaged"
        raise WireError(msg)


def describe(
    tensors: Mapping[str, Tensor], feedback: str
) -> list[tuple[str, str, list[int]]]:
    """Give names, dtypes and shapes as a head of this feedback has them."""
    names = {dtype: name for name, dtype in _dtypes(feedback).items()}
    wrong = {t.dtype for t in tensors.values()} - names.keys()
    if wrong:
        msg = f"memory: expected tensors of {', '.join(names.values())}, found {wrong}"
        raise InputError(msg)
    return [(k, names[t.dtype], list(t.shape)) for k, t in tensors.items()]


def _dtypes(feedback: str) -> dict[str, torch.dtype]:
    """Give the dtypes by name: what is remembered is real, models have integers."""
    dtypes = DTYPES.values() if feedback == REFERENCE else _FLOATS
    return {str(dtype).removeprefix("torch."): dtype for dtype in dtypes}


def _parse(head: Mapping[str, Any]) -> Head:
    """Take a head apart; some `ValueError`, or such, if it makes no sense."""
    if head.get("order", sys.byteorder) != sys.byteorder:
        raise ValueError("written by a machine of the other byte order")
    inc, seq = head["seen"]
    turn = _whole(head["pending"])
    fid = bytes.fromhex(head["fid"])
    if len(fid) != 16:
        raise ValueError(f"a training id of {len(fid)} bytes")
    state = Memory(
        fid=fid,
        feedback=_typed(head["feedback"], str),
        epoch=_whole(head["epoch"]),
        seen=(_whole(inc), _whole(seq)),
        base=_whole(head["base"]),
        unsettled=_whole(head["unsettled"]),
        gave_up=_typed(head["gave_up"], bool),
        pending=(turn, b"") if turn else None,
    )
    dtypes = _dtypes(state.feedback)
    return Head(
        ident=_typed(head["ident"], str),
        owner=_typed(head["owner"], str),
        state=state,
        tensors=_entries(head.get("tensors", []), dtypes),
        codec=_entries(head.get("codec", []), dtypes),
        payload=_whole(head.get("payload", 0)),
    )


def _entries(described: list[Any], dtypes: Mapping[str, torch.dtype]) -> list[Entry]:
    return [
        (_typed(name, str), dtypes[dtype], [_whole(n) for n in shape])
        for name, dtype, shape in described
    ]


def _whole(value: object) -> int:
    """Check a number of the protocol: 64 bits."""
    number = _typed(value, int)
    if not 0 <= number < 2**64:
        raise ValueError(f"{number} is no number of 64 bits")
    return number


def _typed(value: object, kind: type[_T]) -> _T:
    """Check a value's type; a bool is no int."""
    if isinstance(value, kind) and type(value) is kind:
        return value
    raise TypeError(f"expected {kind.__name__}, found {value!r}")


def size_of(entry: Entry) -> int:
    """Give the bytes of a tensor."""
    return prod(entry[2]) * entry[1].itemsize


def room(size: int) -> int:
    """Give the bytes that a tensor of some bytes takes in a body."""
    return -(-size // _ALIGNMENT) * _ALIGNMENT
