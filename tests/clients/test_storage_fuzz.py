"""Damaged memories: a `WireError` or a memory, in no more bytes than there are."""

from __future__ import annotations

import json
import random
import struct
import zlib

import pytest
import torch

from clients import storage
from clients.turns import Memory
from fl_lowrank.errors import WireError
from tests.fl_lowrank.hostility import mutated

NUM_MEMORIES = 10_000
_FRAME = struct.Struct("<4sI")
VALUES = [
    *(0, -1, 1, 2**63, 2**64, 10**30, 1.5, 1e300, "", "x", "00", None, True, [], {}),
    *([[]], [["w", "float32", [1]]], [["w", "float32", [10**12]]], [10**12, 1]),
    *([["w", "float32", [-1]]], [["w", "int8", [1]]], [["w", "float32", [0, 2**62]]]),
]


def a_memory() -> Memory:
    tensors = {"w": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3).double()}
    codec = {"w/right": torch.ones(3, 2), "b/age": torch.zeros(1)}
    return Memory(
        bytes(range(16)), "ef", 5, (6, 7), 8, tensors, (9, b"payload"), 1, True, codec
    )


def checked(body: bytes) -> bytes:
    return body + zlib.crc32(body).to_bytes(4, "little")


def taken_apart(data: bytes) -> tuple[bytes, bytes]:
    """Give the JSON and the body, without checksums."""
    _, length = _FRAME.unpack_from(data)
    text = data[_FRAME.size : _FRAME.size + length]
    return text, data[_FRAME.size + length + 4 : -4]


def put_together(text: bytes, body: bytes) -> bytes:
    return checked(_FRAME.pack(b"FLM1", len(text)) + text) + checked(body)


def read(data: bytes) -> Memory | None:
    try:
        memory = storage.from_bytes(data)
    except WireError:
        return None
    entries = (*memory.tensors.values(), *memory.codec.values())
    assert sum(t.numel() * t.itemsize for t in entries) <= len(data)
    assert len(memory.fid) == 16
    assert all(type(n) is int for n in (*memory.seen, memory.base, memory.epoch))
    return memory


def test_an_honest_memory_is_taken_apart_and_put_together() -> None:
    data = storage.to_bytes(a_memory())
    assert put_together(*taken_apart(data)) == data
    assert read(data) is not None


def test_every_prefix_and_every_damaged_byte_is_noticed() -> None:
    data = storage.to_bytes(a_memory())
    for size in range(len(data)):
        with pytest.raises(WireError):
            storage.from_bytes(data[:size])
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        with pytest.raises(WireError):
            storage.from_bytes(bytes(damaged))


def test_damage_with_fresh_checksums() -> None:
    data = storage.to_bytes(a_memory())
    text, body = taken_apart(data)
    draw, accepted = random.Random(0), 0
    for i in range(NUM_MEMORIES):
        head, rest = text, body
        match i % 4:
            case 0:
                head = mutated(text, [text], draw)
            case 1:
                rest = mutated(body, [body], draw)
            case 2:
                known = json.loads(text)
                key = draw.choice(list(known))
                if draw.random() < 0.2:
                    del known[key]
                else:
                    known[key] = draw.choice(VALUES)
                head = json.dumps(known).encode()
            case _:
                head, rest = mutated(text, [text], draw), mutated(body, [body], draw)
        accepted += read(put_together(head, rest)) is not None
    assert NUM_MEMORIES // 50 < accepted < NUM_MEMORIES // 2


def test_deep_and_long_heads() -> None:
    _, body = taken_apart(storage.to_bytes(a_memory()))
    for text in (b"[" * 100_000, b"9" * 100_000, b'{"fid":' * 10_000, b"{}", b"null"):
        assert read(put_together(text, body)) is None
