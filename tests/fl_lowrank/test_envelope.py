"""The fixed heads of requests and replies."""

from __future__ import annotations

import zlib
from dataclasses import fields, replace

import pytest

from fl_lowrank.envelope import (
    EVALUATE,
    HELLO,
    STYPE,
    TRAIN,
    VERSION,
    Reply,
    Request,
)
from fl_lowrank.errors import SettingError, VersionError, WireError

MOST = 2**64 - 1
REQUEST = Request(
    purpose=TRAIN,
    fid=bytes(range(16)),
    epoch=1,
    ticket=(2, 3),
    applied=4,
    draws=5,
    scale=0.1,
    deadline=1e9,
    codec="topk(fraction=0.01) >> natural()",
    feedback="ef21",
    weight_key="num-examples",
    exact=("*.bias", "head*"),
)
REPLY = Reply(
    fid=bytes(range(16)),
    epoch=1,
    ticket=(2, 3),
    base=4,
    turn=5,
    encode_seconds=0.25,
    error_dropped=False,
    lossy=b"lossy part",
    exact=b"exact part",
)


def sealed(body: bytes) -> bytes:
    return body + zlib.crc32(body).to_bytes(4, "little")


@pytest.mark.parametrize(
    "request_",
    [
        REQUEST,
        replace(REQUEST, purpose=HELLO, codec="", feedback="", weight_key="", exact=()),
        replace(REQUEST, purpose=EVALUATE, exact=("",)),
        replace(REQUEST, exact=("", "", "x")),
        replace(REQUEST, epoch=0, ticket=(0, 0), applied=0, draws=0, deadline=-1e300),
        replace(REQUEST, epoch=MOST, ticket=(MOST, MOST), applied=MOST, draws=MOST),
        replace(REQUEST, scale=5e-324, deadline=float("inf")),
        replace(REQUEST, scale=1.7e308, fid=b"\xff" * 16),
        replace(REQUEST, codec="é" * 2000, exact=("重み.*",)),
    ],
)
def test_requests_come_back(request_: Request) -> None:
    assert Request.unpack(request_.pack()) == request_


@pytest.mark.parametrize(
    "reply",
    [
        REPLY,
        replace(REPLY, lossy=b"", exact=b""),
        replace(REPLY, lossy=b"", exact=b"x", error_dropped=True),
        replace(REPLY, epoch=MOST, ticket=(MOST, MOST), base=MOST, turn=MOST),
        replace(REPLY, epoch=0, ticket=(0, 0), base=0, turn=1, encode_seconds=0.0),
        replace(REPLY, lossy=bytes(100_000), exact=b"FR\x01" * 9),
    ],
)
def test_replies_come_back(reply: Reply) -> None:
    data = reply.pack()
    read = Reply.unpack(data)
    assert read == reply
    assert isinstance(read.lossy, memoryview)
    assert read.lossy.obj is data  # not a copy
    in_place = {"lossy": memoryview, "exact": memoryview}
    assert {f.name: type(getattr(read, f.name)) for f in fields(read)} == {
        f.name: type(getattr(reply, f.name)) for f in fields(reply)
    } | in_place


def test_the_heads_cost_few_bytes() -> None:
    empty = replace(REQUEST, codec="", feedback="", weight_key="", exact=())
    assert len(empty.pack()) <= 90
    assert len(replace(REPLY, lossy=b"", exact=b"").pack()) <= 80


def test_the_type_of_the_array_names_the_version() -> None:
    assert f"fl-lowrank/{VERSION}" == STYPE


@pytest.mark.parametrize("kind", [Request, Reply])
def test_other_versions_are_named(kind: type[Request] | type[Reply]) -> None:
    packed = bytearray((REQUEST if kind is Request else REPLY).pack())
    for version in {*range(256)} - {VERSION}:
        packed[2] = version
        with pytest.raises(VersionError, match=f"version {VERSION}, found {version};"):
            kind.unpack(bytes(packed))


def test_every_flipped_bit_of_a_head_is_noticed() -> None:
    request, reply = REQUEST.pack(), REPLY.pack()
    head_size = len(reply) - len(REPLY.lossy) - len(REPLY.exact)
    for bit in range(8 * len(request)):
        damaged = bytearray(request)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(WireError):
            Request.unpack(bytes(damaged))
    for bit in range(8 * head_size):
        damaged = bytearray(reply)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(WireError):
            Reply.unpack(bytes(damaged))


def test_every_truncation_is_noticed() -> None:
    """A reply's exact part has a checksum of its own, all before it is in the head."""
    request, reply = REQUEST.pack(), REPLY.pack()
    for size in range(len(request)):
        with pytest.raises(WireError):
            Request.unpack(request[:size])
    for size in range(len(reply) - len(REPLY.exact)):
        with pytest.raises(WireError):
            Reply.unpack(reply[:size])
    with pytest.raises(WireError):
        Request.unpack(request + b"\0")


def test_a_request_is_no_reply() -> None:
    with pytest.raises(WireError, match="expected b'FR'"):
        Reply.unpack(REQUEST.pack())
    with pytest.raises(WireError, match="expected b'FQ'"):
        Request.unpack(REPLY.pack())


@pytest.mark.parametrize(
    "request_",
    [
        replace(REQUEST, purpose=3),
        replace(REQUEST, scale=0.0),
        replace(REQUEST, scale=-1.0),
        replace(REQUEST, scale=float("inf")),
        replace(REQUEST, scale=float("nan")),
        replace(REQUEST, deadline=float("nan")),
    ],
)
def test_requests_that_make_no_sense_are_refused(request_: Request) -> None:
    with pytest.raises(WireError):
        Request.unpack(request_.pack())


@pytest.mark.parametrize(
    "reply",
    [
        replace(REPLY, turn=0),
        replace(REPLY, encode_seconds=-1.0),
        replace(REPLY, encode_seconds=float("nan")),
        replace(REPLY, encode_seconds=float("inf")),
    ],
)
def test_replies_that_make_no_sense_are_refused(reply: Reply) -> None:
    with pytest.raises(WireError):
        Reply.unpack(reply.pack())


def test_texts_that_are_none_are_refused() -> None:
    head = replace(REQUEST, codec="", feedback="", weight_key="", exact=()).pack()[:-6]
    assert Request.unpack(sealed(head + b"a\0b\0c")).weight_key == "c"
    for texts in (b"", b"a\0b", b"\xff\0b\0c", b"a\0b\0" + b"c" * 9000):
        with pytest.raises(WireError):
            Request.unpack(sealed(head + texts))


def test_unknown_flags_are_refused() -> None:
    head = bytearray(replace(REPLY, lossy=b"", exact=b"").pack()[:-4])
    for flags in (0, 1):
        head[3] = flags
        assert Reply.unpack(sealed(bytes(head))).error_dropped == bool(flags)
    head[3] = 2
    with pytest.raises(WireError):
        Reply.unpack(sealed(bytes(head)))


@pytest.mark.parametrize(
    "request_",
    [
        replace(REQUEST, fid=b""),
        replace(REQUEST, fid=bytes(17)),
        replace(REQUEST, codec="topk(k=9)\0"),
        replace(REQUEST, exact=("a\0b",)),
        replace(REQUEST, exact=("x" * 100,) * 100),
    ],
)
def test_the_sender_refuses_what_nobody_could_read(request_: Request) -> None:
    with pytest.raises(SettingError):
        request_.pack()
    with pytest.raises(SettingError, match="16 bytes, found 15"):
        replace(REPLY, fid=bytes(15)).pack()
