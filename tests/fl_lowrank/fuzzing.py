"""Damage that knows the form of a message: every length fits but the one it changes.

Bytes damaged at random mostly fail at the first length. Here a body is taken apart,
changed in one place (a field doubled, left out, exchanged, of another coding or size;
another kind, dtype or shape; a payload inside another; an extreme number) and written
again, so that the damage reaches the codecs and decoders.
"""

from __future__ import annotations

import random
import resource
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from fl_lowrank import decoders
from fl_lowrank.codecs.varint import write_varint, zigzag
from fl_lowrank.framing import Reader, open_sealed, seal
from fl_lowrank.types import Coding

from .hostility import DENSE, INDUCED, SENDERS, SHRUNK, honest, mutated, raw, read

_KINDS = sorted(decoders.KINDS)
_SIZES = [0, 1, 2, 3, 63, 64, 65, 255, 4096, 2**31, 2**31 + 1, 10**12, 2**63, 2**64 - 1]
#: Patterns of eight bytes that are NaN, infinite, huge, tiny or negative, in one of
#: the dtypes at least, and all zeros and ones.
_PATTERNS = [
    *(b"\0\0\0\0\0\0\xf0\x7f", b"\0\0\0\0\0\0\xf0\xff", b"\0\0\0\0\0\0\xf8\x7f"),
    *(b"\xff\xff\xff\xff\xff\xff\xef\x7f", b"\1\0\0\0\0\0\0\0"),
    *(b"\0\0\x80\x7f" * 2, b"\xff\xff\x7f\x7f" * 2, b"\0\x7c" * 4, b"\x80\x7f" * 4),
    *(b"\0\0\0\0\0\0\0\x80", b"\xff" * 8, b"\0" * 8),
]


@dataclass
class Part:
    """One field: its coding, what it announces, and its data."""

    coding: int
    data: bytes | Body
    length: int | None = None  # announced; None for the right one

    def pack(self) -> bytes:
        data = self.data.pack() if isinstance(self.data, Body) else self.data
        length = len(data) if self.length is None else self.length
        return bytes([self.coding]) + write_varint(length) + data

    def copy(self) -> Part:
        data = self.data.copy() if isinstance(self.data, Body) else self.data
        return replace(self, data=data)


@dataclass
class Body:
    """A payload as it is written."""

    dtype: int
    dims: list[int]
    kind: int
    parts: list[Part]
    ndim: int | None = None  # announced

    def pack(self) -> bytes:
        ndim = len(self.dims) if self.ndim is None else self.ndim
        head = bytes([self.dtype]) + write_varint(ndim)
        head += b"".join(map(write_varint, self.dims)) + write_varint(self.kind)
        return head + b"".join(part.pack() for part in self.parts)

    def copy(self) -> Body:
        parts = [part.copy() for part in self.parts]
        return replace(self, dims=list(self.dims), parts=parts)

    def inside(self) -> Iterator[Body]:
        """Give this one and all that are nested in it."""
        yield self
        for part in self.parts:
            if isinstance(part.data, Body):
                yield from part.data.inside()


def taken_apart(data: bytes) -> Body:
    """Read an honest body."""
    return read_body(Reader(data))


def read_body(reader: Reader) -> Body:
    """Read the next one of several honest bodies."""
    dtype, ndim = reader.take(1)[0], reader.varint(16, "")
    dims = [reader.varint(1 << 31, "") for _ in range(ndim)]
    kind, parts = reader.varint(1 << 16, ""), []
    for _ in decoders.KINDS[kind].fields:
        coding = reader.take(1)[0]
        data = reader.take(reader.varint(1 << 31, ""))
        nested = coding == Coding.NESTED
        parts.append(Part(coding, taken_apart(data) if nested else data))
    return Body(dtype, dims, kind, parts)


def remade(whole: Body, others: list[Body], draw: random.Random) -> bytes:
    """Change a copy in one place, or in two."""
    copy = whole.copy()
    for _ in range(draw.choice([1, 1, 1, 2])):
        change = draw.choice(_CHANGES)
        bodies = list(copy.inside())
        change(draw.choice(bodies), others, draw)
    return copy.pack()


def fuzz(seed: int, count: int, bytes_allowed: int) -> dict[str, int]:
    """Read so many damaged messages in no more memory than allowed, and count answers.

    Every second one is remade, the others are damaged as bytes; all have a checksum
    that fits. Anything but a `WireError` or a valid tensor passes as an exception.
    """
    draw = random.Random(seed)
    messages = honest()
    bodies = [open_sealed(data).rest() for data, _ in messages]
    apart = [taken_apart(body) for body in bodies]
    for data, expect in messages:  # so that libraries are loaded
        assert read(data, expect) is not None
    limit_memory(bytes_allowed)
    answers = Counter({"read": 0, "refused": 0})
    for i in range(count):
        which = draw.randrange(len(messages))
        if i % 2:
            body = remade(apart[which], apart, draw)
        else:
            body = mutated(bodies[which], bodies, draw)
        try:
            answer = read(seal(body), messages[which][1])
        except BaseException as error:
            error.add_note(f"sender {SENDERS[which]}, body {body.hex()}")
            raise
        answers["refused" if answer is None else "read"] += 1
    return dict(answers)


def limit_memory(bytes_allowed: int) -> None:
    """Let this process map no more than so many bytes besides those it has."""
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + bytes_allowed
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


# --- changes -------------------------------------------------------------------------


def _double(body: Body, others: list[Body], draw: random.Random) -> None:
    at = draw.randrange(len(body.parts) + 1)
    body.parts.insert(at, draw.choice(body.parts or [Part(0, b"")]).copy())


def _leave_out(body: Body, others: list[Body], draw: random.Random) -> None:
    if body.parts:
        body.parts.pop(draw.randrange(len(body.parts)))


def _exchange(body: Body, others: list[Body], draw: random.Random) -> None:
    draw.shuffle(body.parts)


def _other_kind(body: Body, others: list[Body], draw: random.Random) -> None:
    body.kind = draw.choice([*_KINDS, len(_KINDS) + 7, 2**16, 2**16 + 1])


def _other_dtype(body: Body, others: list[Body], draw: random.Random) -> None:
    body.dtype = draw.randrange(12)


def _other_shape(body: Body, others: list[Body], draw: random.Random) -> None:
    match draw.randrange(5):
        case 0 if body.dims:
            body.dims[draw.randrange(len(body.dims))] = draw.choice(_SIZES)
        case 1 if body.dims:
            i = draw.randrange(len(body.dims))
            body.dims[i] = max(body.dims[i] + draw.choice([-1, 1]), 0)
        case 2:
            body.dims.insert(0, draw.choice([0, 1, 2, 2**31]))
        case 3:
            body.ndim = draw.choice([0, 1, 15, 16, 17, 255, 2**40])
        case _:
            draw.shuffle(body.dims)


def _other_coding(body: Body, others: list[Body], draw: random.Random) -> None:
    if body.parts:
        draw.choice(body.parts).coding = draw.choice([*Coding, 6, 255])


def _other_length(body: Body, others: list[Body], draw: random.Random) -> None:
    if body.parts:
        draw.choice(body.parts).length = draw.choice(_SIZES)


def _other_count(body: Body, others: list[Body], draw: random.Random) -> None:
    """Change the number that symbols, bits and integers start with."""
    part = _plain(body, draw)
    if part is not None:
        part.data = write_varint(draw.choice(_SIZES)) + part.data[1:]


def _damage(body: Body, others: list[Body], draw: random.Random) -> None:
    """Damage the data of one field; its length fits again."""
    part = _plain(body, draw)
    if part is not None and part.data:
        known = [p.data for p in _plain_parts(draw.choice(others)) if p.data]
        part.data = mutated(part.data, known or [b"\0"], draw)


def _extreme_number(body: Body, others: list[Body], draw: random.Random) -> None:
    part = _plain(body, draw)
    if part is not None and part.data:
        at = draw.randrange(len(part.data))
        size = draw.choice([1, 2, 4, 8])
        number = draw.choice([0, -1, 1, 2**31, -(2**63), 2**63 - 1, 1023, -1074])
        new = draw.choice(
            [draw.choice(_PATTERNS)[8 - size :], write_varint(zigzag(number))]
        )
        part.data = part.data[:at] + new + part.data[at + len(new) :]


def _graft(body: Body, others: list[Body], draw: random.Random) -> None:
    """Put a field, or a whole message, of another sender in the place of one."""
    if not body.parts:
        return
    other = draw.choice(list(draw.choice(others).inside()))
    new = Part(Coding.NESTED, other.copy())
    if other.parts and draw.random() < 0.5:
        new = draw.choice(other.parts).copy()
    body.parts[draw.randrange(len(body.parts))] = new


def _wrap(body: Body, others: list[Body], draw: random.Random) -> None:
    """Put the payload into others, up to beyond the greatest depth."""
    for _ in range(draw.choice([1, 1, 2, 7, 8, 9])):
        inner = Part(Coding.NESTED, body.copy())
        factor = Part(Coding.RAW, raw(0.5)[2:])
        match draw.randrange(3):
            case 0:
                body.kind, body.parts = SHRUNK, [factor, inner]
            case 1:
                body.kind, body.parts = DENSE, [inner]
            case _:
                body.kind, body.parts = INDUCED, [inner, inner.copy()]


def _plain_parts(body: Body) -> list[Part]:
    return [p for p in body.parts if not isinstance(p.data, Body)]


def _plain(body: Body, draw: random.Random) -> Part | None:
    parts = _plain_parts(body)
    return draw.choice(parts) if parts else None


_CHANGES = [
    *(_double, _leave_out, _exchange, _other_kind, _other_dtype, _other_shape),
    *(_other_coding, _other_length, _other_count, _graft, _wrap),
    *[_damage] * 6,
    *[_extreme_number] * 4,
]
