"""Bytes from strangers: a `WireError` or a valid tensor, never another exception.

The checksum only finds accidents. An attacker computes it anew, so most mutations
here do, and the reader itself has to stand them. All seeds are fixed.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import fl_lowrank as fll
from fl_lowrank import decoders
from fl_lowrank.compressors import COMPRESSORS
from fl_lowrank.envelope import Reply, Request
from fl_lowrank.errors import SettingError, SpecError, WireError
from fl_lowrank.framing import open_sealed, seal
from fl_lowrank.model import ModelCodec, layout_of
from fl_lowrank.types import Coding, Compressor
from fl_lowrank.wire import TensorLayout

from .hostility import (
    ALL,
    DENSE,
    EDEN,
    FORGED,
    HALF,
    INDUCED,
    LEVELS,
    LOWRANK,
    NONE,
    POWERS,
    SEEDED,
    SENDERS,
    SHRUNK,
    SKETCH,
    SPARSE,
    SPHERICAL,
    TOO_LARGE,
    body_of,
    eden,
    equal_symbols,
    field,
    gaussian,
    honest,
    integers,
    mutated,
    no_bits,
    raw,
    read,
    sketched,
    spherical,
)

MUTATIONS = 10_000


def test_every_kind_is_attacked() -> None:
    """A new kind of payload or compressor must be added to `SENDERS`."""
    used: set[str] = set()

    def visit(payload: fll.Payload) -> None:
        used.add(payload.kind.name)
        for part in payload.fields.values():
            if isinstance(part.value, fll.Payload):
                visit(part.value)

    for data, expect in honest():
        visit(fll.unpack(data, expect))
    assert used == {kind.name for kind in decoders.DECODERS}
    texts = " ".join(text for text, _, _ in SENDERS)
    assert [name for name in COMPRESSORS if f"{name}(" not in texts] == []


def test_honest_messages_are_read() -> None:
    for (data, expect), (text, _, _) in zip(honest(), SENDERS, strict=True):
        assert read(data, expect) is not None, text


def test_mutated_bodies_with_a_fresh_checksum() -> None:
    """10,000 mutations; both answers occur, so neither is a matter of course."""
    draw = random.Random(1)
    messages = honest()
    bodies = [open_sealed(data) for data, _ in messages]
    accepted = refused = 0
    for i in range(MUTATIONS):
        which = i % len(messages)
        body = mutated(bodies[which], bodies, draw)
        if draw.random() < 0.2 and body:
            body = mutated(body, bodies, draw)
        answer = read(seal(body), messages[which][1])
        refused += answer is None
        accepted += answer is not None
    assert refused > MUTATIONS // 2
    assert accepted > MUTATIONS // 50


def test_mutated_bodies_without_an_expectation() -> None:
    """A tool may read messages of unknown shape: still a tensor or a refusal."""
    draw = random.Random(2)
    messages = [data for data, expect in honest() if expect.numel < 100]
    bodies = [open_sealed(data) for data in messages]
    for i in range(1_000):
        body = mutated(bodies[i % len(bodies)], bodies, draw)
        try:
            payload = fll.unpack(seal(body))
            if payload.numel < 1 << 16:
                y = fll.decode(payload)
                assert (tuple(y.shape), y.dtype) == (payload.shape, payload.dtype)
        except WireError:
            continue


def test_sealed_messages_notice_every_mutation() -> None:
    """Each differs from the original, and CRC-32 misses one in 4e9 of them."""
    draw = random.Random(3)
    messages = honest()
    for i in range(2_000):
        data, expect = messages[i % len(messages)]
        damaged = mutated(data, [other for other, _ in messages], draw)
        if damaged != data and damaged not in {other for other, _ in messages}:
            with pytest.raises(WireError):
                fll.unpack(damaged, expect)


def test_every_proper_prefix_is_refused() -> None:
    for data, expect in honest():
        body = open_sealed(data)
        for size in range(len(body)):
            with pytest.raises(WireError):
                fll.decode(fll.unpack(seal(body[:size]), expect))


@pytest.mark.parametrize("what", FORGED)
def test_forged_messages_are_refused(what: str) -> None:
    body, shape = FORGED[what]
    assert read(seal(body), TensorLayout(shape, torch.float32)) is None


@pytest.mark.parametrize("what", FORGED)
def test_forged_messages_are_refused_when_nested(what: str) -> None:
    body, shape = FORGED[what]
    outer = body_of(shape, SHRUNK, raw(1.0), field(Coding.NESTED, body))
    assert read(seal(outer), TensorLayout(shape, torch.float32)) is None


@pytest.mark.parametrize("what", TOO_LARGE)
def test_what_decodes_beyond_the_dtype_saturates(what: str) -> None:
    """An honest sender near the limit may round up to it; infinity never comes out."""
    body, shape = TOO_LARGE[what]
    y = read(seal(body), TensorLayout(shape, torch.float32))
    assert y is not None
    assert torch.equal(y, torch.full(shape, torch.finfo(torch.float32).max))


def test_the_forgery_is_the_only_fault() -> None:
    """The hand-written bodies are well formed but for what their names say."""
    good = {
        SEEDED: body_of((3,), SEEDED, integers(1), raw(1.0)),
        SPARSE: body_of((3,), SPARSE, ALL, raw(1.0, 2.0, 3.0)),
        LEVELS: body_of((3,), LEVELS, raw(3.0), equal_symbols(3, 2)),
        POWERS: body_of((3,), POWERS, integers(0), equal_symbols(3, 0), no_bits()),
        HALF: body_of((1,), HALF, raw(1.0, dtype=torch.float16), integers(10)),
        SKETCH: sketched((3,), (5, 0), NONE, 3, 1),
        LOWRANK: body_of((3, 3), LOWRANK, raw(*[1.0] * 3), raw(*[1e30] * 3)),
        SPHERICAL: spherical()[0],
        EDEN: eden((3,), integers(1, 4), coarse=3, value=3),
        INDUCED: body_of(
            (3,),
            INDUCED,
            *[field(Coding.NESTED, body_of((3,), DENSE, raw(1.0, 2.0, 3.0)))] * 2,
        ),
    }
    for kind, body in good.items():
        shape = {HALF: (1,), LOWRANK: (3, 3), SPHERICAL: (4,)}.get(kind, (3,))
        assert read(seal(body), TensorLayout(shape, torch.float32)) is not None, kind
        nested = body_of(shape, SHRUNK, raw(0.5), field(Coding.NESTED, body))
        assert read(seal(nested), TensorLayout(shape, torch.float32)) is not None


def test_a_hostile_message_adds_what_it_decodes_to() -> None:
    """Products of finite factors may overflow; they saturate in a sum as well."""
    body, shape = TOO_LARGE["low rank: the product overflows"]
    payload = fll.unpack(seal(body), TensorLayout(shape, torch.float32))
    total = torch.ones(shape, dtype=torch.float64)
    decoders.accumulate([payload], [1.0], total)
    decoded = decoders.decode(payload).double()
    assert decoded.abs().max() == torch.finfo(torch.float32).max
    assert torch.equal(total, 1.0 + decoded)


# --- whole models, envelopes, texts --------------------------------------------------


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


@pytest.mark.parametrize(
    "text",
    [
        "topk(fraction=0.1) >> natural()",
        "norm.num*: exact(); mask: exact(); *bias: natural(); norm*: f16(); *: "
        "powersgd(rank=1)",
    ],
)
def test_mutated_models(text: str) -> None:
    update = small_model()
    layout = layout_of(update)
    data, _ = ModelCodec(text).encode(update, {}, fll.rng.stream(5))
    other, _ = ModelCodec("identity()").encode(update, {}, fll.rng.stream(6))
    bodies = [open_sealed(data), open_sealed(other)]
    draw = random.Random(7)
    accepted = 0
    for _ in range(2_500):
        damaged = seal(mutated(bodies[0], bodies, draw))
        try:
            decoded = ModelCodec.decode(damaged, layout)
        except WireError:
            continue
        accepted += 1
        assert layout_of(decoded) == layout
        assert all(bool(torch.isfinite(t).all()) for t in decoded.values())
    assert accepted > 50
    for _ in range(250):
        damaged = mutated(data, [other], draw)
        if damaged not in (data, other):
            with pytest.raises(WireError):
                ModelCodec.decode(damaged, layout)


def test_mutated_envelopes() -> None:
    """With a fresh checksum: a `WireError`, or fields that are fit for use."""
    request = Request(
        1, bytes(16), 5, (6, 7), 8, 9, 0.1, 1e9, "topk(k=9)", "ef", "n", ("*.bias",)
    )
    reply = Reply(bytes(16), 1, (2, 3), 4, 5, 0.25, False, b"lossy", b"exact")
    draw = random.Random(8)
    for _ in range(3_000):
        packed = request.pack()
        with pytest.raises(WireError):
            Request.unpack(differing(packed, draw))
        body = mutated(packed[:-4], [packed], draw)
        try:
            read_request = Request.unpack(body + crc(body))
        except WireError:
            continue
        assert len(read_request.fid) == 16
        assert 0.0 < read_request.scale < float("inf")
        assert read_request.deadline == read_request.deadline
    head_size = len(reply.pack()) - len(b"lossyexact")
    for _ in range(3_000):
        packed = reply.pack()
        head, rest = packed[: head_size - 4], packed[head_size:]
        with pytest.raises(WireError):
            Reply.unpack(differing(head + packed[head_size - 4 : head_size], draw))
        head = mutated(head, [head], draw)
        try:
            read_reply = Reply.unpack(head + crc(head) + rest)
        except WireError:
            continue
        assert read_reply.turn != 0
        assert 0.0 <= read_reply.encode_seconds < float("inf")


def differing(data: bytes, draw: random.Random) -> bytes:
    while (damaged := mutated(data, [data], draw)).startswith(data):
        pass  # bytes behind the head are payload, and have a checksum of their own
    return damaged


def crc(body: bytes) -> bytes:
    return zlib.crc32(body).to_bytes(4, "little")


TOKENS = [
    *COMPRESSORS,
    *("exact", "then", "eval", "__import__", "self", "true", "false", "none"),
    *("fraction", "k", "rank", "inner", "small", "large", "threshold", "nu", "omega"),
    *("oversampling", "num_iterations", "outer"),
    *("capacity", "bits", "seed"),
    *("alpha", "block"),
    *("(", ")", "=", ",", ">>", ":", ";", "*", '"', '"x"', " ", "\n", "\0", "é", "٣"),
    *("0", "1", "-1", "0.5", "1e999", "-1e999", "nan", "1" + "0" * 30, "1e-400", "1."),
]
NUMBERS = [*"01257", "-1", "1e999", "3e-400", "9" * 40]


def test_random_texts_are_refused_or_understood() -> None:
    """Texts come from the server: never another exception, and no long work."""
    draw = random.Random(9)
    seeds = [text for text, _, _ in SENDERS]
    understood = 0
    for i in range(6_000):
        if i % 3 == 0:
            text = "".join(draw.choices(TOKENS, k=draw.randrange(1, 14)))
        elif i % 3 == 1:
            text = re.sub(r"\d+", lambda _: draw.choice(NUMBERS), draw.choice(seeds))
        else:
            text = draw.choice(seeds)
            for _ in range(draw.randrange(1, 3)):
                at = draw.randrange(len(text) + 1)
                end = at + draw.choice([0, 0, 1, 4])
                text = text[:at] + draw.choice(TOKENS) + text[end:]
        for reader in (fll.parse, fll.parse_rules):
            try:
                result = reader(text)
            except (SpecError, SettingError):
                continue
            understood += 1
            for compressor in [result] if isinstance(result, Compressor) else result:
                if isinstance(compressor, Compressor):
                    assert fll.parse(str(compressor)) == compressor
    assert understood > 500
