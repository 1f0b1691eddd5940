"""Payload <-> bytes.

A message is ``b"FL"``, the format version, a body and the CRC-32 of all that. A
body is::

    dtype      1 byte
    shape      varint number of dimensions, then each as varint
    kind       varint
    fields     in the order of the kind, each: coding (1 byte), varint length, data

The data of SYMBOLS, BITS and NESTED start with what their decoder must know (the
count, or a body). Only ``kind.fields`` gives names to fields: the bytes hold none.

Reading is strict and bounded. The announced shape must be the expected one (or
have at most `MAX_ENTRIES` entries), every field must fit its payload, nothing may
be left over; anything else is a `WireError`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from .codecs import bits, floats, indices, symbols
from .codecs.varint import unzigzag, write_varint, zigzag
from .errors import WireError
from .framing import DTYPES, Reader, dtype_code, open_sealed, seal
from .types import Coding, Field, Kind, PackedBits, Payload, Shape, all_finite

#: Entries that a tensor read without an expectation may have.
MAX_ENTRIES = 1 << 31
MAX_DIMENSIONS = 16
MAX_DEPTH = 8
#: Dtypes with shapes whose bytes are remembered.
MAX_HEADS = 4096
#: A field has at most so many values more than its payload has entries.
_SPARE_ENTRIES = 64
_FEW = 1 << 15
_MAX_INTEGERS = 64  # of a field of VARINTS, which are read one by one


@dataclass(frozen=True)
class TensorLayout:
    """Shape and dtype that a payload must have."""

    shape: Shape
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        """Entries of such a tensor."""
        return math.prod(self.shape)


@dataclass
class Later:
    """A set of indices that was not decoded yet, so that many are in one pass.

    Attributes
    ----------
    fields : dict
        Of the payload, where an empty field keeps its place.
    name : str
        Of that field.
    data : bytes
        What `indices.decode_index_sets` reads.
    universe : int
        How many indices there are.
    """

    fields: dict[str, Field]
    name: str
    data: bytes
    universe: int

    def put(self, found: Tensor | WireError) -> None:
        """Fill in what was decoded; raises the error if there is one instead."""
        if isinstance(found, WireError):
            raise found
        self.fields[self.name] = Field(Coding.INDICES, found)


_NOT_YET = Field(Coding.INDICES, torch.empty(0, dtype=torch.int64))


def pack(payload: Payload) -> bytes:
    """Write a payload as a message of its own."""
    return seal(*_body_parts(payload))


def unpack(
    data: bytes, kinds: Mapping[int, Kind], expect: TensorLayout | None = None
) -> Payload:
    """Read a message; ``kinds`` gives meaning to kind numbers.

    Raises
    ------
    WireError
        If the bytes are not exactly one well-formed message of the expected
        shape and dtype; `VersionError` if they are of another format version.
    """
    reader = open_sealed(data)
    payload = unpack_body(reader, kinds, expect)
    reader.finish()
    return payload


def pack_body(payload: Payload) -> bytes:
    """Write a payload without magic and checksum, to stand inside another."""
    return b"".join(_body_parts(payload))


def _body_parts(payload: Payload) -> list[bytes]:
    kind = payload.kind
    fits = tuple(payload.fields) == kind.fields and all(
        _may_travel_as(kind, i, field.coding)
        for i, field in enumerate(payload.fields.values())
    )
    if not fits:
        found = {name: field.coding.name for name, field in payload.fields.items()}
        expected = {n: c.name for n, c in zip(kind.fields, kind.codings, strict=True)}
        msg = f"wire: a payload {kind.name} has fields {expected}, found {found}"
        raise ValueError(msg)
    parts = [_head(TensorLayout(payload.shape, payload.dtype)), write_varint(kind.code)]
    for field in payload.fields.values():
        data = _field_parts(field, payload.numel)
        parts += [bytes([field.coding]), write_varint(sum(map(len, data))), *data]
    return parts


def unpack_body(
    reader: Reader,
    kinds: Mapping[int, Kind],
    expect: TensorLayout | None,
    depth: int = 0,
    max_entries: int = MAX_ENTRIES,
    *,
    multiplied: bool = False,
    later: list[Later] | None = None,
) -> Payload:
    """Read one body; see `unpack`.

    With a list for what is read ``later``, sets of indices are only noted in it.
    """
    if depth > MAX_DEPTH:
        msg = f"wire: payloads nested deeper than {MAX_DEPTH}"
        raise WireError(msg)
    shape, dtype = _read_head(reader, expect, max_entries)
    code = reader.varint(1 << 16, "the kind")
    if code not in kinds:
        msg = (
            f"wire: payload kind {code} is unknown here; install the same version of "
            "fl-lowrank on both ends"
        )
        raise WireError(msg)
    if multiplied and kinds[code].copies > 1:
        msg = (
            f"wire: a payload {kinds[code].name} inside one that holds several; the "
            "message is damaged"
        )
        raise WireError(msg)
    multiplied = multiplied or kinds[code].copies > 1
    fields = _read_fields(
        reader,
        kinds,
        kinds[code],
        math.prod(shape),
        depth,
        multiplied=multiplied,
        later=later,
    )
    return Payload(kinds[code], shape, dtype, fields)


@lru_cache(maxsize=MAX_HEADS)
def _head(layout: TensorLayout) -> bytes:
    """Write dtype and shape; remembered, as replies hold the same few tensors."""
    dims = (write_varint(n) for n in (len(layout.shape), *layout.shape))
    return bytes([dtype_code(layout.dtype)]) + b"".join(dims)


def _read_head(
    reader: Reader, expect: TensorLayout | None, max_entries: int
) -> tuple[Shape, torch.dtype]:
    """Read dtype and shape, which must be the expected ones."""
    if (
        expect is not None
        and len(expect.shape) <= MAX_DIMENSIONS
        and expect.numel <= max_entries
        and reader.passes(_head(expect))
    ):
        return expect.shape, expect.dtype
    dtype = DTYPES.get(reader.byte())
    ndim = reader.varint(MAX_DIMENSIONS, "the number of dimensions")
    shape = tuple(reader.varint(max_entries, "a dimension") for _ in range(ndim))
    # A zero among the dimensions must not hide a product that torch cannot hold.
    if dtype is None or math.prod(max(n, 1) for n in shape) > max_entries:
        msg = (
            f"wire: expected a known dtype and at most {max_entries} entries, found "
            f"dtype {dtype} and shape {shape}"
        )
        raise WireError(msg)
    if expect is not None and (shape, dtype) != (expect.shape, expect.dtype):
        msg = (
            f"wire: expected {expect.dtype} of shape {expect.shape}, found {dtype} of "
            f"shape {shape}; both ends must train the same model"
        )
        raise WireError(msg)
    return shape, dtype


def _may_travel_as(kind: Kind, position: int, coding: int) -> bool:
    """Whether the field at ``position`` may have this coding."""
    inside = coding == Coding.NESTED and kind.fields[position] in kind.inner
    return inside or coding == kind.codings[position]


def _read_fields(
    outer: Reader,
    kinds: Mapping[int, Kind],
    kind: Kind,
    numel: int,
    depth: int,
    *,
    multiplied: bool,
    later: list[Later] | None,
) -> dict[str, Field]:
    fields: dict[str, Field] = {}
    room = kind.copies * numel + _SPARE_ENTRIES
    for i, name in enumerate(kind.fields):
        code, coding = outer.byte(), kind.codings[i]
        if code != coding and not _may_travel_as(kind, i, code):
            msg = (
                f"wire: field {name!r} of kind {kind.name} travels as {coding.name}, "
                f"found coding {code}; the message is damaged"
            )
            raise WireError(msg)
        reader = outer.part(outer.varint(outer.left, "a field's length"))
        if code == Coding.NESTED:
            inner = unpack_body(
                *(reader, kinds, None, depth + 1, room),
                multiplied=multiplied,
                later=later,
            )
            room -= inner.numel  # together they hold no more than their payload
            fields[name] = Field(Coding.NESTED, inner)
        elif coding == Coding.INDICES and later is not None:
            fields[name] = _NOT_YET
            later.append(Later(fields, name, reader.rest(), numel))
        else:
            fields[name] = _read_field(coding, reader, numel)
        reader.finish()
    return fields


def _field_parts(field: Field, numel: int) -> list[bytes]:
    values = field.value
    if isinstance(values, Payload):
        return _body_parts(values)
    if field.coding == Coding.RAW:
        return [bytes([dtype_code(values.dtype)]), floats.encode_raw(values)]
    if isinstance(field, PackedBits):
        return [write_varint(field.count), floats.encode_raw(values)]
    if field.coding == Coding.BITS:
        return [write_varint(values.numel()), bits.encode_bits(values)]
    if field.coding == Coding.INDICES:
        return [indices.encode_indices(values, numel)]
    if field.coding == Coding.SYMBOLS:
        return [write_varint(values.numel()), symbols.encode_symbols(values)]
    return [write_varint(zigzag(int(v))) for v in values.tolist()]


def _read_field(coding: Coding, reader: Reader, numel: int) -> Field:
    """Read all that is left as one field."""
    if coding != Coding.BITS:
        return Field(coding, _read_values(coding, reader, numel))
    count = reader.varint(numel + _SPARE_ENTRIES, "a number of bits")
    packed = np.frombuffer(reader.rest(), np.uint8)
    bits.check_mask(packed, count)
    # Copied, so that it may be a tensor.
    return PackedBits(Coding.BITS, torch.from_numpy(packed.copy()), count)


def _read_values(coding: Coding, reader: Reader, numel: int) -> Tensor:
    limit = numel + _SPARE_ENTRIES
    if coding == Coding.RAW:
        return _read_raw(reader, limit)
    if coding == Coding.INDICES:
        return indices.decode_indices(reader.rest(), numel)
    if coding == Coding.SYMBOLS:
        count = reader.varint(limit, "a number of symbols")
        return symbols.decode_symbols(reader.rest(), count)
    integers: list[int] = []
    while reader.left:
        integers.append(unzigzag(reader.varint((1 << 64) - 1, "an integer")))
        if len(integers) > _MAX_INTEGERS:
            msg = f"wire: expected at most {_MAX_INTEGERS} integers, found more"
            raise WireError(msg)
    return torch.tensor(integers, dtype=torch.int64)


def _read_raw(reader: Reader, limit: int) -> Tensor:
    dtype = DTYPES.get(reader.byte())
    if dtype is None:
        msg = "wire: a field of numbers announces an unknown dtype"
        raise WireError(msg)
    data = reader.rest()
    if len(data) > limit * dtype.itemsize:
        msg = f"wire: expected at most {limit} numbers, found {len(data)} bytes"
        raise WireError(msg)
    values = floats.decode_raw(data, dtype)
    if dtype.is_floating_point and not _finite(values):
        msg = "wire: a field holds NaN or infinite numbers"
        raise WireError(msg)
    return values


def _finite(values: Tensor) -> bool:
    """Whether all are; NumPy's calls cost a third of torch's, which counts for few."""
    if values.numel() > _FEW or values.dtype == torch.bfloat16:
        return all_finite(values)
    return bool(np.isfinite(values.numpy()).all())
