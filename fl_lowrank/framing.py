"""The frame of a message: magic, format version, checksum, bounded reading.

A message is ``b"FL"``, the format version, a body and the CRC-32 of all that.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterable
from typing import TypeAlias

import torch

from .codecs.varint import read_varint
from .errors import InputError, VersionError, WireError

MAGIC = b"FL"
VERSION = 1
_CRC_BYTES = 4

#: Numbers of dtypes on the wire; never renumber.
DTYPES: dict[int, torch.dtype] = {
    0: torch.float32,
    1: torch.float16,
    2: torch.bfloat16,
    3: torch.float64,
    4: torch.int64,
    5: torch.int32,
    6: torch.int16,
    7: torch.int8,
    8: torch.uint8,
    9: torch.bool,
}
#: A message, or a part of one that is not copied.
Buffer: TypeAlias = bytes | memoryview
_DTYPE_CODES = {dtype: code for code, dtype in DTYPES.items()}


def dtype_code(dtype: torch.dtype) -> int:
    """Give the number of a dtype; `InputError` if it cannot travel."""
    if dtype not in _DTYPE_CODES:
        names = ", ".join(str(d).removeprefix("torch.") for d in _DTYPE_CODES)
        msg = f"wire: expected a dtype out of {names}, found {dtype}; convert it first"
        raise InputError(msg)
    return _DTYPE_CODES[dtype]


def checksum(parts: Iterable[bytes | memoryview]) -> int:
    """Give the CRC-32 of parts as if they were joined."""
    return functools.reduce(lambda crc, part: zlib.crc32(part, crc), parts, 0)


def seal(*body: bytes) -> bytes:
    """Put magic, version and checksum around a body, which may come in parts."""
    parts = (MAGIC, bytes([VERSION]), *body)
    return b"".join((*parts, checksum(parts).to_bytes(_CRC_BYTES, "little")))


def open_sealed(data: Buffer) -> Reader:
    """Check magic, version and checksum, and give a reader of the body."""
    if len(data) < len(MAGIC) + 1 + _CRC_BYTES or data[: len(MAGIC)] != MAGIC:
        msg = (
            f"wire: expected a message that starts with {MAGIC!r}, found "
            f"{len(data)} bytes starting with {bytes(data[:4])!r}; was it sent by "
            "fl-lowrank?"
        )
        raise WireError(msg)
    version = data[len(MAGIC)]
    if version != VERSION:
        msg = (
            f"wire: expected format version {VERSION}, found {version}; install the "
            "same major version of fl-lowrank on both ends"
        )
        raise VersionError(msg)
    crc = int.from_bytes(data[-_CRC_BYTES:], "little")
    if zlib.crc32(memoryview(data)[:-_CRC_BYTES]) != crc:
        msg = "wire: checksum does not match; the message was damaged on its way"
        raise WireError(msg)
    return Reader(data, len(MAGIC) + 1, len(data) - _CRC_BYTES)


class Reader:
    """Bounded reading of bytes from front to back.

    Parameters
    ----------
    data : Buffer
        Not copied before it is taken.
    start, end : int
        What of it is read; all by default.
    """

    def __init__(self, data: Buffer, start: int = 0, end: int | None = None) -> None:
        self._data = data
        self._pos = start
        self._end = len(data) if end is None else end

    @property
    def left(self) -> int:
        """How many bytes there are still."""
        return self._end - self._pos

    def byte(self) -> int:
        """Take one byte."""
        return self._data[self._skip(1)]

    def take(self, count: int) -> bytes:
        """Take exactly ``count`` bytes."""
        start = self._skip(count)
        return bytes(self._data[start : self._pos])

    def passes(self, expected: bytes) -> bool:
        """Whether these bytes come next; if so, take them."""
        end = self._pos + len(expected)
        if end > self._end or self._data[self._pos : end] != expected:
            return False
        self._pos = end
        return True

    def part(self, count: int) -> Reader:
        """Give a reader of exactly the next ``count`` bytes."""
        start = self._skip(count)
        return Reader(self._data, start, self._pos)

    def varint(self, at_most: int, what: str) -> int:
        """Read a number that may not exceed ``at_most``."""
        start = self._pos
        value, end = read_varint(self._data, start)
        self._skip(end - start)
        if value > at_most:
            msg = f"wire: {what} is {value}, at most {at_most} is possible here"
            raise WireError(msg)
        return value

    def rest(self) -> bytes:
        """Take all that is left."""
        return self.take(self.left)

    def finish(self) -> None:
        """Refuse bytes that nobody announced."""
        if self._pos != self._end:
            msg = f"wire: {self.left} bytes left over at the end"
            raise WireError(msg)

    def _skip(self, count: int) -> int:
        start = self._pos
        if count > self._end - start:
            msg = (
                f"wire: expected {count} more bytes, found {self.left}; the message "
                "is truncated"
            )
            raise WireError(msg)
        self._pos = start + count
        return start
