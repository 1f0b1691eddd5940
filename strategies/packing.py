"""Plain values <-> bytes, for checkpoints: a JSON head, then arrays, then a CRC-32.

Plain values are None, booleans, numbers, texts, lists, dicts with text keys, numpy and
torch arrays, and Flower's records of arrays and metrics. Tuples come back as lists.
Nothing is executed when they are read.
"""

from __future__ import annotations

import json
import struct
import zlib
from math import prod
from typing import Any, TypeAlias

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, MetricRecord

from fl_lowrank.errors import WireError
from fl_lowrank.framing import checksum

Plain: TypeAlias = Any

_MAGIC = b"FC"
VERSION = 1
_HEAD = struct.Struct("<2sHQ")
_CRC = struct.Struct("<I")
_TYPE = "__type__"


def is_plain(value: Plain) -> bool:
    """Whether `pack` can write a value."""
    if value is None or isinstance(value, bool | int | float | str):
        return True
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.kind in "biuf"
    if isinstance(value, torch.Tensor | ArrayRecord | MetricRecord):
        return True
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    if isinstance(value, dict):
        return _TYPE not in value and all(
            isinstance(k, str) and is_plain(v) for k, v in value.items()
        )
    return False


def pack(value: Plain) -> list[bytes]:
    """Write a plain value; gives the pieces of the bytes, to spare a copy."""
    blobs: list[bytes] = []
    head = json.dumps(_described(value, blobs)).encode()
    parts = [_HEAD.pack(_MAGIC, VERSION, len(head)), head, *blobs]
    return [*parts, _CRC.pack(checksum(parts))]


def unpack(data: bytes) -> Plain:
    """Read what `pack` has written.

    Raises
    ------
    WireError
        If the bytes are anything else, or damaged.
    """
    body, crc = data[: -_CRC.size], data[-_CRC.size :]
    if len(body) < _HEAD.size or _CRC.pack(zlib.crc32(body)) != crc:
        msg = "checkpoint: its checksum does not match; it is damaged or none of ours"
        raise WireError(msg)
    magic, version, length = _HEAD.unpack_from(body)
    if (magic, version) != (_MAGIC, VERSION):
        msg = (
            f"checkpoint: expected version {VERSION}, found {version}; it was written "
            "by another version of fl-lowrank"
        )
        raise WireError(msg)
    start = _HEAD.size + length
    return _Reader(memoryview(body)[start:]).value(json.loads(body[_HEAD.size : start]))


def _described(value: Plain, blobs: list[bytes]) -> Any:
    """Give the JSON of a value, arrays appended to ``blobs``."""
    match value:
        case np.generic():
            return value.item()
        case np.ndarray():
            blobs.append(np.ascontiguousarray(value).tobytes())
            return {_TYPE: "numpy", "dtype": value.dtype.str, "shape": value.shape}
        case torch.Tensor():
            return _described(value.numpy(), blobs) | {_TYPE: "torch"}
        case ArrayRecord():
            arrays = []
            for name, array in value.items():
                blobs.append(array.data)
                about = (array.dtype, list(array.shape), array.stype, len(array.data))
                arrays.append([name, *about])
            return {_TYPE: "arrays", "arrays": arrays}
        case MetricRecord():
            return {_TYPE: "metrics", "metrics": dict(value.items())}
        case list() | tuple():
            return [_described(v, blobs) for v in value]
        case dict():
            return {k: _described(v, blobs) for k, v in value.items()}
    return value


class _Reader:
    """Takes the arrays in the order in which they were appended."""

    def __init__(self, blobs: memoryview) -> None:
        self._blobs = blobs

    def value(self, found: Any) -> Plain:
        """Rebuild one value."""
        match found:
            case list():
                return [self.value(v) for v in found]
            case {"__type__": "numpy" | "torch" as kind}:
                array = self._array(np.dtype(found["dtype"]), found["shape"])
                return array if kind == "numpy" else torch.from_numpy(array)
            case {"__type__": "arrays"}:
                return ArrayRecord(
                    {
                        name: Array(dtype, tuple(shape), stype, bytes(self._take(size)))
                        for name, dtype, shape, stype, size in found["arrays"]
                    }
                )
            case {"__type__": "metrics"}:
                return MetricRecord(found["metrics"])
            case dict():
                return {k: self.value(v) for k, v in found.items()}
        return found

    def _take(self, size: int) -> memoryview:
        taken, self._blobs = self._blobs[:size], self._blobs[size:]
        return taken

    def _array(
        self, dtype: np.dtype[Any], shape: list[int]
    ) -> np.ndarray[Any, np.dtype[Any]]:
        data = self._take(prod(shape) * dtype.itemsize)
        return np.frombuffer(data, dtype).reshape(shape).copy()
