"""More than 10^5 damaged messages: a `WireError` or a valid answer, in little memory.

Checksums are made anew, as an attacker would; every message has its own damage. All
seeds are fixed.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fl_lowrank as fll
from fl_lowrank.envelope import Reply, Request
from fl_lowrank.errors import VersionError, WireError
from fl_lowrank.framing import Reader, open_sealed, seal
from fl_lowrank.grouping import read_table
from fl_lowrank.model import ModelCodec, layout_of

from .fuzzing import Body, read_body, remade, taken_apart
from .hostility import gaussian, honest, mutated

NUM_MESSAGES, NUM_MODELS, NUM_ENVELOPES = 80_000, 1_500, 10_000
SHARES = 4

_CHILD = """
import json, sys, torch
from tests.fl_lowrank.fuzzing import fuzz
torch.set_num_threads(1)
print(json.dumps(fuzz(*map(int, sys.argv[1:]))))
"""


def test_honest_bodies_are_taken_apart_and_put_together() -> None:
    for data, _ in honest():
        body = open_sealed(data).rest()
        assert taken_apart(body).pack() == body


@pytest.mark.parametrize("seed", range(SHARES))
def test_damaged_messages(seed: int) -> None:
    """80,000 in all, of every kind, in processes that may map 64 MiB more.

    Both answers occur, so neither is a matter of course.
    """
    count = NUM_MESSAGES // SHARES
    child = subprocess.run(
        [sys.executable, "-c", _CHILD, str(seed), str(count), str(64 << 20)],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert child.returncode == 0, child.stderr
    answers = json.loads(child.stdout)
    assert answers["refused"] > count // 2
    assert answers["read"] > count // 20


def test_the_process_is_really_limited() -> None:
    """A message of 2^24 entries is read in 512 MiB, and not in 64 MiB."""
    code = """
import sys
from fl_lowrank import decode, unpack
from fl_lowrank.framing import seal
from tests.fl_lowrank.fuzzing import limit_memory
from tests.fl_lowrank.hostility import POWERS, body_of, equal_symbols, integers, no_bits
many = equal_symbols(1 << 24, 0)
data = seal(body_of((1 << 24,), POWERS, integers(0), many, no_bits()))
limit_memory(int(sys.argv[1]))
decode(unpack(data))
"""
    for allowed, fits in ((512 << 20, True), (64 << 20, False)):
        child = subprocess.run(
            [sys.executable, "-c", code, str(allowed)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            cwd=Path(__file__).parents[2],
        )
        assert (child.returncode == 0) == fits, child.stderr
    assert "memory" in child.stderr.lower()


def test_other_versions() -> None:
    """All of them, with a checksum that fits: one clear error."""
    (data, expect), *_ = honest()
    for version in set(range(256)) - {data[2]}:
        head = data[:2] + bytes([version]) + data[3:-4]
        with pytest.raises(VersionError, match=f"format version 1, found {version}"):
            fll.unpack(head + crc(head), expect)


# --- whole models --------------------------------------------------------------------


def small_model() -> dict[str, Tensor]:
    shapes: Iterator[tuple[str, tuple[int, ...], torch.dtype]] = iter(
        [
            ("conv.weight", (4, 3, 3, 3), torch.float32),
            ("conv.bias", (4,), torch.float32),
            ("norm.weight", (4,), torch.float16),
            ("norm.running_mean", (4,), torch.float32),
            ("norm.num_batches_tracked", (), torch.int64),
            ("mask", (5,), torch.bool),
            ("empty", (0, 3), torch.float32),
            ("fc.weight", (10, 36), torch.float32),
            ("fc.bias", (10,), torch.float32),
        ]
    )
    return {
        name: gaussian(shape, dtype, i) for i, (name, shape, dtype) in enumerate(shapes)
    }


def table_and_bodies(body: bytes, names: list[str]) -> tuple[bytes, list[Body]]:
    """Take an honest message of a model apart."""
    reader = Reader(body)
    read_table(reader, tuple(names))
    table = body[: len(body) - reader.left]
    bodies = []
    while reader.left:
        bodies.append(read_body(reader))
    return table, bodies


@pytest.mark.parametrize(
    "text",
    [
        "topk(fraction=0.1) >> natural()",
        "norm.num*: exact(); mask: exact(); *bias: natural(); norm*: f16(); *: "
        "powersgd(rank=1)",
    ],
)
def test_damaged_models(text: str) -> None:
    """Damaged bytes anywhere; or one body, or the table, or their order."""
    update = small_model()
    layout = layout_of(update)
    data, _ = ModelCodec(text).encode(update, {}, fll.rng.stream(5))
    other, _ = ModelCodec("identity()").encode(update, {}, fll.rng.stream(6))
    whole = [open_sealed(data).rest(), open_sealed(other).rest()]
    table, bodies = table_and_bodies(whole[0], list(layout))
    assert table + b"".join(b.pack() for b in bodies) == whole[0]
    draw = random.Random(7)
    accepted = 0
    for i in range(NUM_MODELS):
        if i % 2:
            damaged = mutated(whole[0], whole, draw)
        else:
            parts = [body.pack() for body in bodies]
            at = draw.randrange(len(parts))
            match draw.randrange(8):
                case 0:
                    draw.shuffle(parts)
                case 1:
                    parts.insert(at, parts[at])
                case 2:
                    del parts[at]
                case _:
                    parts[at] = remade(bodies[at], bodies, draw)
            head = mutated(table, [table], draw) if draw.random() < 0.2 else table
            damaged = head + b"".join(parts)
        try:
            decoded = ModelCodec.decode(seal(damaged), layout)
        except WireError:
            continue
        accepted += 1
        assert layout_of(decoded) == layout
        assert all(bool(torch.isfinite(t).all()) for t in decoded.values())
    assert NUM_MODELS // 50 < accepted < NUM_MODELS // 2
    for _ in range(250):
        damaged = mutated(data, [other], draw)
        if damaged not in (data, other):
            with pytest.raises(WireError):
                ModelCodec.decode(damaged, layout)


# --- envelopes -----------------------------------------------------------------------

REQUEST = Request(
    1, bytes(16), 5, (6, 7), 8, 9, 0.1, 1e9, "topk(k=9)", "ef", "n", ("*.bias",)
)
REPLY = Reply(bytes(16), 1, (2, 3), 4, 5, 0.25, False, b"lossy", b"exact")


def test_damaged_requests() -> None:
    """With a fresh checksum: a `WireError`, or fields that are fit for use."""
    draw = random.Random(8)
    packed, accepted = REQUEST.pack(), 0
    for _ in range(NUM_ENVELOPES):
        with pytest.raises(WireError):
            Request.unpack(differing(packed, draw))
        body = mutated(packed[:-4], [packed], draw)
        try:
            found = Request.unpack(body + crc(body))
        except WireError:
            continue
        accepted += 1
        assert len(found.fid) == 16
        assert 0.0 < found.scale < float("inf")
        assert found.deadline == found.deadline
        assert Request.unpack(found.pack()) == found
    assert NUM_ENVELOPES // 10 < accepted < NUM_ENVELOPES * 9 // 10


def test_damaged_replies() -> None:
    draw = random.Random(9)
    packed, accepted = REPLY.pack(), 0
    size = len(packed) - len(b"lossyexact")
    head, rest = packed[: size - 4], packed[size:]
    for _ in range(NUM_ENVELOPES):
        with pytest.raises(WireError):
            Reply.unpack(differing(packed[:size], draw))
        damaged = mutated(head, [head], draw)
        try:
            found = Reply.unpack(damaged + crc(damaged) + rest)
        except WireError:
            continue
        accepted += 1
        assert found.turn != 0
        assert 0.0 <= found.encode_seconds < float("inf")
        assert b"".join((found.lossy, found.exact)) == rest
        assert Reply.unpack(found.pack()) == found
    assert NUM_ENVELOPES // 10 < accepted < NUM_ENVELOPES * 9 // 10


def differing(data: bytes, draw: random.Random) -> bytes:
    while (damaged := mutated(data, [data], draw)).startswith(data):
        pass  # bytes behind the head are payload, and have a checksum of their own
    return damaged


def crc(body: bytes) -> bytes:
    return zlib.crc32(body).to_bytes(4, "little")
