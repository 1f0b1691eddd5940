"""Payload <-> bytes: round trips, the pinned format, and strictness."""

from __future__ import annotations

import math
import zlib

import pytest
import torch
from torch import Tensor

import fl_lowrank as fll
from fl_lowrank import decoders, framing, wire
from fl_lowrank.codecs.varint import write_varint
from fl_lowrank.compressors.dense import DENSE, HALF, dense_payload
from fl_lowrank.compressors.natural import POWERS
from fl_lowrank.compressors.sparse import SPARSE
from fl_lowrank.errors import InputError, VersionError, WireError
from fl_lowrank.framing import DTYPES, Reader, open_sealed, seal
from fl_lowrank.types import Coding, Field, Kind, Payload
from fl_lowrank.wire import TensorLayout

#: A kind with a field of every coding, so that the codings are tested apart from
#: what any compressor makes of them.
EVERY_CODING = Kind(
    77,
    "every-coding",
    ("raw", "bits", "indices", "symbols", "varints", "nested"),
    (
        Coding.RAW,
        Coding.BITS,
        Coding.INDICES,
        Coding.SYMBOLS,
        Coding.VARINTS,
        Coding.NESTED,
    ),
)
KINDS = {EVERY_CODING.code: EVERY_CODING, DENSE.code: DENSE}


def numbers(dtype: torch.dtype, *shape: int) -> Tensor:
    """Some values of any dtype, extremes included."""
    count = math.prod(shape)
    if dtype == torch.bool:
        return (torch.arange(count) % 3 == 0).reshape(shape)
    if dtype.is_floating_point:
        info = torch.finfo(dtype)
        edge = [info.max, -info.max, info.tiny, 0.0, -0.0, 1.0 / 3.0]
    else:
        limits = torch.iinfo(dtype)
        edge = [limits.max, limits.min, 0, 1]
    repeated = (edge * count)[:count]
    return torch.tensor(repeated, dtype=dtype).reshape(shape)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal as bytes: minus zero differs from zero."""
    return (a.shape, a.dtype) == (b.shape, b.dtype) and (
        wire.floats.encode_raw(a) == wire.floats.encode_raw(b)
    )


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize(
    "shape", [(), (0,), (1,), (7,), (3, 5), (2, 0, 4), (2, 3, 1, 2)]
)
def test_every_dtype_and_shape_comes_back_bit_for_bit(
    dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    x = numbers(dtype, *shape)
    data = fll.pack(dense_payload(x))
    y = fll.decode(fll.unpack(data, TensorLayout(shape, dtype)))
    assert same_bits(x, y)


def test_every_coding_comes_back() -> None:
    fields = {
        "raw": Field(Coding.RAW, torch.tensor([1.5, -2.0], dtype=torch.bfloat16)),
        "bits": Field(Coding.BITS, torch.tensor([True, False, True])),
        "indices": Field(Coding.INDICES, torch.tensor([0, 3, 29])),
        "symbols": Field(Coding.SYMBOLS, torch.tensor([-5, 0, 900, 1, 1])),
        "varints": Field(Coding.VARINTS, torch.tensor([0, -1, 2**63 - 1, -(2**63)])),
        "nested": Field(Coding.NESTED, dense_payload(torch.ones(2, 3))),
    }
    sent = Payload(EVERY_CODING, (5, 6), torch.float64, fields)
    read = wire.unpack(wire.pack(sent), KINDS)
    assert (read.kind, read.shape, read.dtype) == (EVERY_CODING, (5, 6), torch.float64)
    assert list(read.fields) == list(fields)
    for name in ("raw", "bits", "indices", "symbols", "varints"):
        assert read.fields[name].coding == fields[name].coding
        assert same_bits(read.tensor(name), sent.tensor(name)), name
    inner = read.fields["nested"].value
    assert isinstance(inner, Payload)
    assert same_bits(decoders.decode(inner), torch.ones(2, 3))


def test_tensors_with_strides_travel_in_row_major_order() -> None:
    x = torch.arange(12.0).reshape(3, 4).T
    assert torch.equal(fll.decode(fll.unpack(fll.pack(dense_payload(x)))), x)


def test_the_format_is_pinned() -> None:
    """What version 1 looks like, byte for byte; a change needs a new version."""
    payload = dense_payload(torch.tensor([[1.0], [-2.0]]))
    body = bytes(
        [
            0,  # float32
            *(2, 2, 1),  # two dimensions: 2, 1
            0,  # kind: dense
            *(0, 9),  # raw, 9 bytes
            0,  # float32
            *(0, 0, 0x80, 0x3F),
            *(0, 0, 0, 0xC0),
        ]
    )
    head = b"FL\x01" + body
    crc = zlib.crc32(head).to_bytes(4, "little")
    assert fll.pack(payload) == head + crc


def test_numbers_of_dtypes_are_pinned() -> None:
    names = " ".join(str(d).removeprefix("torch.") for d in DTYPES.values())
    assert names == "float32 float16 bfloat16 float64 int64 int32 int16 int8 uint8 bool"
    assert list(DTYPES) == list(range(10))


def test_the_frame_costs_few_bytes() -> None:
    x = torch.zeros(1000, 1000)
    assert len(fll.pack(dense_payload(x))) - 4 * x.numel() <= 20


VALUES = Field(Coding.RAW, torch.ones(2))
POSITIONS = Field(Coding.INDICES, torch.tensor([0, 1]))


@pytest.mark.parametrize(
    "fields",
    [
        {"values": VALUES},
        {"values": VALUES, "indices": POSITIONS},
        {"indices": Field(Coding.VARINTS, torch.tensor([0, 1])), "values": VALUES},
        {
            "indices": Field(Coding.NESTED, dense_payload(torch.ones(2))),
            "values": VALUES,
        },
    ],
    ids=["missing", "another order", "another coding", "nested positions"],
)
def test_pack_refuses_fields_that_are_not_of_the_kind(fields: dict[str, Field]) -> None:
    with pytest.raises(ValueError, match="a payload sparse has fields"):
        fll.pack(Payload(SPARSE, (2,), torch.float32, fields))
    good = {"indices": POSITIONS, "values": VALUES}
    assert fll.pack(Payload(SPARSE, (2,), torch.float32, good))


def test_pack_names_dtypes_that_cannot_travel() -> None:
    with pytest.raises(InputError, match=r"float32.*complex64"):
        fll.pack(dense_payload(torch.zeros(2, dtype=torch.complex64)))


def test_unpack_refuses_another_shape_or_dtype() -> None:
    data = fll.pack(dense_payload(torch.zeros(2, 3)))
    for expect in [
        TensorLayout((3, 2), torch.float32),
        TensorLayout((6,), torch.float32),
        TensorLayout((2, 3), torch.float64),
    ]:
        with pytest.raises(WireError, match="same model"):
            fll.unpack(data, expect)


def test_other_versions_are_named() -> None:
    data = bytearray(fll.pack(dense_payload(torch.zeros(2))))
    for version in {*range(256)} - {framing.VERSION}:
        data[2] = version
        expected = f"version {framing.VERSION}.* {version};"
        with pytest.raises(VersionError, match=expected):
            fll.unpack(bytes(data))


@pytest.mark.parametrize(
    "data", [b"", b"F", b"FL", b"FL\x01", b"FL\x01\0\0\0", b"PK\x03\x04" + bytes(99)]
)
def test_what_is_no_message_is_told_so(data: bytes) -> None:
    with pytest.raises(WireError):
        fll.unpack(data)


def test_a_single_bit_is_noticed() -> None:
    data = fll.pack(dense_payload(torch.arange(5.0)))
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(WireError):
            fll.unpack(bytes(damaged))


def test_nothing_may_follow_a_body_or_a_field() -> None:
    body = open_sealed(fll.pack(dense_payload(torch.arange(5.0)))).rest()
    with pytest.raises(WireError, match="left over"):
        fll.unpack(seal(body + b"\0"))
    inner = wire.pack_body(dense_payload(torch.ones(3)))
    for tail in (b"", b"\0"):
        part = bytes([Coding.NESTED, len(inner + tail)]) + inner + tail
        message = seal(bytes([0, 1, 3, DENSE.code]) + part)
        if tail:
            with pytest.raises(WireError, match="left over"):
                fll.unpack(message)
        else:
            assert torch.equal(fll.decode(fll.unpack(message)), torch.ones(3))


def test_unknown_numbers_are_named() -> None:
    body = open_sealed(fll.pack(dense_payload(torch.arange(5.0)))).rest()
    for position, value, what in [
        (0, 10, "dtype"),
        (3, 99, "kind 99"),
        (4, 6, "coding 6"),
        (6, 10, "dtype"),
    ]:
        damaged = bytearray(body)
        damaged[position] = value
        with pytest.raises(WireError, match=what):
            fll.unpack(seal(bytes(damaged)))


def test_a_field_has_the_coding_of_its_kind() -> None:
    """Decoders index with positions, which raw numbers must not replace."""
    for kind in (SPARSE, POWERS, HALF):
        for i in range(len(kind.fields)):
            if kind.codings[i] == Coding.RAW:
                continue
            x = torch.tensor([1.0, 0.0, 4.0])
            text = {SPARSE: "topk(k=2)", POWERS: "natural()", HALF: "f16()"}[kind]
            payload, _ = fll.parse(text).encode(x, {}, fll.rng.stream(0))
            other = Kind(
                kind.code,
                kind.name,
                kind.fields,
                (*kind.codings[:i], Coding.RAW, *kind.codings[i + 1 :]),
            )
            name = kind.fields[i]
            raw = Field(Coding.RAW, payload.tensor(name))
            forged = Payload(other, (3,), x.dtype, {**payload.fields, name: raw})
            with pytest.raises(WireError, match=f"{name!r}.*{kind.codings[i].name}"):
                fll.unpack(fll.pack(forged))


def test_reader_is_bounded() -> None:
    reader = Reader(b"\x05abc\xac\x02")
    assert reader.varint(5, "x") == 5
    assert reader.take(3) == b"abc"
    with pytest.raises(WireError, match="the count is 300, at most 299"):
        reader.varint(299, "the count")
    assert reader.rest() == b""
    with pytest.raises(WireError, match="expected 1 more bytes, found 0"):
        reader.take(1)
    reader.finish()
    with pytest.raises(WireError, match="2 bytes left over"):
        Reader(b"ab").finish()


def test_nesting_ends_at_the_announced_depth() -> None:
    def nested(levels: int) -> bytes:
        payload = dense_payload(torch.ones(2))
        for _ in range(levels):
            field = Field(Coding.NESTED, payload)
            payload = Payload(DENSE, (2,), torch.float32, {"values": field})
        return fll.pack(payload)

    deepest = fll.unpack(nested(wire.MAX_DEPTH))
    assert torch.equal(fll.decode(deepest), torch.ones(2))
    with pytest.raises(WireError, match="deeper"):
        fll.unpack(nested(wire.MAX_DEPTH + 1))


def test_every_text_that_can_be_parsed_can_be_read_back() -> None:
    """The parser and the reader allow the same depth."""
    text = "f16()"
    for _ in range(wire.MAX_DEPTH):
        text = f"identity() >> {text}"
    x = torch.arange(4.0)
    payload, _ = fll.parse(text).encode(x, {}, fll.rng.stream(0))
    assert torch.equal(fll.decode(fll.unpack(fll.pack(payload))), x)
    with pytest.raises(ValueError, match="deeper"):
        fll.parse(f"identity() >> {text}")


def test_a_field_is_refused_before_more_is_read_than_fits() -> None:
    """Also where a later check would refuse it, after it took memory."""
    head = bytes([0, 1, 2])  # float32 of shape (2,)
    for kind, prefix, coding, data, what in [
        (DENSE, b"", Coding.RAW, b"\0" + bytes(4 * 67), "at most 66 numbers"),
        (HALF, b"\0\1\1", Coding.VARINTS, bytes(65), "at most 64 integers"),
    ]:
        field = bytes([coding]) + write_varint(len(data)) + data
        with pytest.raises(WireError, match=what):
            fll.unpack(seal(head + bytes([kind.code]) + prefix + field))
