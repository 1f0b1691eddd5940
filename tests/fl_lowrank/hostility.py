"""Honest messages, damage to them, and messages forged by hand."""

from __future__ import annotations

import random

import torch
from torch import Tensor

import fl_lowrank as fll
from fl_lowrank import decoders, wire
from fl_lowrank.codecs.varint import write_varint, zigzag
from fl_lowrank.errors import WireError
from fl_lowrank.types import Coding
from fl_lowrank.wire import TensorLayout

#: Texts, shapes and dtypes that together use every kind of payload and every form
#: of every codec; `test_every_kind_is_attacked` says if one is missing.
SENDERS = [
    ("identity()", (5, 3), torch.float32),
    ("identity()", (9,), torch.int64),
    ("identity()", (11,), torch.bool),
    ("identity()", (), torch.bfloat16),
    ("f16()", (4, 6), torch.float64),
    ("topk(k=1)", (31,), torch.float16),
    ("topk(fraction=0.3)", (6, 7), torch.float32),
    ("topk(fraction=0.02)", (1500,), torch.float32),
    ("topk(fraction=0.8)", (9, 9), torch.bfloat16),
    ("topk(fraction=0.05) >> natural()", (40, 23), torch.float32),
    ("topk(fraction=0.2) >> topk(fraction=0.5) >> f16()", (211,), torch.float64),
    ("randk(fraction=0.2)", (12, 5), torch.float32),
    ("randk(k=7) >> natural_stochastic()", (61,), torch.float16),
    ("natural()", (3, 2, 2, 2), torch.float32),
    ("natural_stochastic()", (700,), torch.float64),
    ("svd(rank=1)", (6, 8), torch.float32),
    ("rsvd(rank=2) >> natural()", (3, 2, 5, 4), torch.float32),
    ("powersgd(rank=1) >> topk(fraction=0.5)", (9, 7), torch.bfloat16),
    ("sparse_dithering(nu=0.1)", (15, 16), torch.float32),
    ("sparse_dithering_unbiased(omega=0.25)", (400,), torch.float64),
    ("sketch(k=9, capacity=0.1)", (20, 21), torch.float32),
    ("sketch(fraction=0.2, bits=12)", (60,), torch.float16),
    ("uniform(bits=4, block=50)", (12, 14), torch.float32),
    ("uniform(bits=12, block=900)", (70,), torch.float64),
    ("uniform(bits=1, block=20)", (90,), torch.float16),
    ("uniform_stochastic(bits=2, block=16)", (7, 9), torch.bfloat16),
    ("qsgd(levels=9)", (250,), torch.float32),
    ("terngrad(block=30)", (100,), torch.float64),
    ("natural_dithering(levels=6)", (300,), torch.float32),
    ("sign()", (11, 13), torch.float32),
    ("topk(fraction=0.3) >> uniform(bits=3, block=8)", (77,), torch.float32),
    ("md_stochastic(fraction=0.2)", (12, 9), torch.float32),
    ("md_greedy(k=5)", (31,), torch.float16),
    ("md_greedy_weighted(fraction=0.1)", (9, 8), torch.float64),
    ("md_weighted_greedy(k=20) >> natural()", (130,), torch.float32),
    ("spherical()", (9, 11), torch.float32),
    ("spherical_unbiased(alpha=0.2, block=3)", (70,), torch.float64),
    ("eden(bits=0.5)", (50,), torch.float16),
    ("eden(bits=1)", (130,), torch.float32),
    ("eden(bits=1.5)", (60,), torch.float32),
    ("eden_contractive(bits=2)", (9, 23), torch.float32),
    ("eden_contractive(bits=3.3)", (90,), torch.float64),
    ("rotated(inner=topk(k=4))", (5, 7), torch.bfloat16),
    ("ecsq(nmse=0.05)", (20, 9), torch.float16),
    ("ecsq(step=2.0)", (333,), torch.float64),
    ("dither(nmse=0.1)", (300,), torch.float32),
    ("dither(step=2.0)", (30, 30), torch.float32),
    ("dither(step=100.0)", (4099,), torch.float32),
    ("dither_unbiased(step=0.5)", (50,), torch.bfloat16),
    ("shrunk(inner=randk(k=5))", (40,), torch.float32),
    ("lowrank_unbiased(rank=2)", (7, 9), torch.float32),
    ("lowrank_unbiased(ratio=0.3) >> natural_stochastic()", (61,), torch.float16),
    ("atomo(rank=2)", (8, 6), torch.float64),
    ("tucker(rank=2)", (6, 3, 2, 2), torch.float32),
    ("tucker(accuracy=0.9) >> natural()", (12, 10), torch.bfloat16),
    ("tensor_train(rank=2)", (5, 3, 4), torch.float64),
    (
        "tensor_train(accuracy=0.9, order=4) >> topk(fraction=0.5)",
        (144,),
        torch.float32,
    ),
    ("shrunk(inner=natural_stochastic())", (33,), torch.float16),
    ("by_size(threshold=10, small=f16(), large=topk(k=3))", (7, 7), torch.float32),
    ("threshold(relative=1.5)", (12, 9), torch.float32),
    ("budget(bytes=90)", (300,), torch.float32),
    ("induced(biased=topk(k=2), unbiased=randk(k=5))", (8, 5), torch.float32),
    (
        "induced(biased=svd(rank=1), unbiased=sparse_dithering_unbiased())",
        (6, 7),
        torch.float64,
    ),
    ("flat(inner=powersgd(rank=1) >> natural())", (6, 6), torch.float32),
]


def gaussian(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Bell-shaped numbers of any dtype."""
    x = 10.0 * fll.rng.stream(seed, "hostile").normal(*shape)
    return x.to(dtype)


def honest() -> list[tuple[bytes, TensorLayout]]:
    """One honest message of every sender, with what its reader expects."""
    messages = []
    for seed, (text, shape, dtype) in enumerate(SENDERS):
        compressor = fll.parse(text)
        x = gaussian(shape, dtype, seed)
        payload, _ = compressor.encode(x, compressor.init(shape), fll.rng.stream(seed))
        messages.append((fll.pack(payload), TensorLayout(shape, dtype)))
    return messages


def mutated(data: bytes, others: list[bytes], draw: random.Random) -> bytes:
    """Damage a copy: truncate, flip, insert, delete, repeat, splice, overwrite."""
    out = bytearray(data)
    place = draw.randrange(len(out))
    match draw.randrange(8):
        case 0:
            del out[place:]
        case 1:
            for _ in range(draw.choice([1, 1, 2, 8])):
                out[draw.randrange(len(out))] ^= 1 << draw.randrange(8)
        case 2:
            out[place:place] = draw.randbytes(draw.choice([1, 2, 5, 64]))
        case 3:
            del out[place : place + draw.choice([1, 2, 5])]
        case 4:
            out[place] = draw.randrange(256)
        case 5:  # a number is written over by a huge one
            out[place : place + 1] = draw.choice(
                [b"\xff" * 8 + b"\x7f", b"\xff\xff\xff\xff\x0f", b"\xff\x7f", b"\0"]
            )
        case 6:
            out[place:place] = out[draw.randrange(len(out)) :]
        case _:
            other = draw.choice(others)
            out[place:] = other[draw.randrange(len(other) + 1) :]
    return bytes(out)


def read(data: bytes, expect: TensorLayout) -> Tensor | None:
    """What a server does; None for a refusal, any other exception passes."""
    try:
        payload = fll.unpack(data, expect)
    except WireError:
        return None
    total = torch.zeros(expect.shape, dtype=torch.float64)
    try:
        decoders.accumulate([payload], [0.5], total)
    except WireError:
        total.zero_()
    assert bool(torch.isfinite(total).all()), "a sum was poisoned"
    try:
        y = fll.decode(payload)
    except WireError:
        return None
    assert (tuple(y.shape), y.dtype) == (expect.shape, expect.dtype)
    assert bool(torch.isfinite(y).all())
    return y


def body_of(shape: tuple[int, ...], kind: int, *fields: bytes, dtype: int = 0) -> bytes:
    """Write a body by hand; dtype 0 is float32."""
    dims = b"".join(map(write_varint, shape))
    head = bytes([dtype]) + write_varint(len(shape)) + dims + write_varint(kind)
    return head + b"".join(fields)


def field(coding: Coding, data: bytes) -> bytes:
    """Write one field by hand."""
    return bytes([coding]) + write_varint(len(data)) + data


def raw(*values: float, dtype: torch.dtype = torch.float32) -> bytes:
    """Write a field of numbers."""
    x = torch.tensor(values, dtype=dtype)
    code = next(code for code, known in wire.DTYPES.items() if known == dtype)
    return field(Coding.RAW, bytes([code]) + wire.floats.encode_raw(x))


def integers(*values: int) -> bytes:
    """Write a field of integers."""
    return field(Coding.VARINTS, b"".join(write_varint(zigzag(v)) for v in values))


def equal_symbols(count: int, value: int) -> bytes:
    """Write ``count`` equal symbols: a handful of bytes for any count."""
    stream = bytes([0]) + write_varint(zigzag(value))
    return field(Coding.SYMBOLS, write_varint(count) + stream)


def no_bits() -> bytes:
    return field(Coding.BITS, write_varint(0))


def sketched(
    shape: tuple[int, ...],
    head: tuple[int, ...],
    support: bytes,
    count: int,
    cell: int = 0,
    stash: bytes | None = None,
) -> bytes:
    """Write a sketch of equal cells, with nothing stashed."""
    cells = equal_symbols(count, cell) if count else field(Coding.SYMBOLS, b"\0")
    parts = support, cells, stash or NONE, field(Coding.SYMBOLS, b"\0")
    return body_of(shape, SKETCH, integers(*head), *parts)


def packed(count: int, data: bytes) -> bytes:
    """Write ``count`` bits by hand."""
    return field(Coding.BITS, write_varint(count) + data)


def spherical(
    settings: tuple[int, ...] = (1, 2, 1, 0),
    scales: bytes | None = None,
    numbers: tuple[int, ...] = (0, 3),
    plain: bytes = b"\0",
    rest: bytes | None = None,
) -> tuple[bytes, tuple[int, ...]]:
    """Write two blocks of two entries, well formed but for what is changed."""
    fields = (
        integers(*settings),
        equal_symbols(2, 1) if scales is None else scales,
        raw(*numbers, dtype=torch.uint8),
        field(Coding.INDICES, plain),
        raw() if rest is None else rest,
    )
    return body_of((4,), SPHERICAL, *fields), (4,)


EDEN, ROTATED = 12, 13


def eden(
    shape: tuple[int, ...],
    setup: bytes,
    scales: bytes | None = None,
    *,
    signs: int = 0,
    coarse: int = 0,
    value: int = 1,
) -> bytes:
    """Write an EDEN body with one scale and one part of equal symbols."""
    symbols = equal_symbols(coarse, value) if coarse else field(Coding.SYMBOLS, b"\0")
    bits = field(Coding.BITS, write_varint(signs) + bytes(-(-signs // 8)))
    none = field(Coding.SYMBOLS, b"\0")
    return body_of(shape, EDEN, setup, scales or raw(1.0), bits, symbols, none)


DITHERED = 14
NONE, ALL = field(Coding.INDICES, b"\0"), field(Coding.INDICES, b"\1")
DENSE, HALF, SPARSE, SEEDED, POWERS, LEVELS, LOWRANK, SHRUNK = range(8)
SKETCH = 21
BLOCKS, SIGNS, BINADES = 8, 9, 10
SPHERICAL = 16
INDUCED = 22
_SUM_OF_TWO = body_of(
    (1,), INDUCED, *[field(Coding.NESTED, body_of((1,), DENSE, raw(1.0)))] * 2
)
FORGED: dict[str, tuple[bytes, tuple[int, ...]]] = {
    "10^12 entries": (body_of((10**12,), SEEDED, integers(1), raw(1.0)), (8,)),
    "10^6 times 10^6": (body_of((10**6, 10**6), SEEDED, integers(1), raw(1.0)), (8,)),
    "a zero hides 2^90": (
        body_of((0,) + (64,) * 15, SHRUNK, raw(1.0), field(Coding.NESTED, b"")),
        (8,),
    ),
    "a nested zero hides 2^90": (
        body_of(
            (8,),
            DENSE,
            field(Coding.NESTED, body_of((0,) + (64,) * 15, DENSE, raw())),
        ),
        (8,),
    ),
    "17 dimensions": (body_of((1,) * 17, DENSE, raw(1.0)), (1,) * 17),
    "10^9 symbols": (
        body_of((8,), POWERS, integers(0), equal_symbols(10**9, 0), no_bits()),
        (8,),
    ),
    "2^63 bits": (
        body_of(
            (1,),
            POWERS,
            integers(0),
            equal_symbols(1, 1),
            field(Coding.BITS, write_varint(2**63)),
        ),
        (1,),
    ),
    "a nested payload far larger": (
        body_of(
            (8,),
            DENSE,
            field(Coding.NESTED, body_of((10**9,), SEEDED, integers(1), raw(1.0))),
        ),
        (8,),
    ),
    "two nested payloads of which one fits": (
        body_of(
            (20, 20),
            LOWRANK,
            field(Coding.NESTED, body_of((460,), SEEDED, integers(1), raw(1.0))),
            field(Coding.NESTED, body_of((20,), SEEDED, integers(1), raw(1.0))),
        ),
        (20, 20),
    ),
    "a length of 2^62": (body_of((8,), DENSE, b"\0" + write_varint(2**62)), (8,)),
    "a million integers": (
        body_of((8,), SEEDED, integers(*[1] * 10**6), raw(1.0)),
        (8,),
    ),
    "numbers for a larger tensor": (body_of((8,), DENSE, raw(*[1.0] * 200)), (8,)),
    "too few numbers": (body_of((8,), DENSE, raw(*[1.0] * 7)), (8,)),
    "NaN": (body_of((2,), DENSE, raw(1.0, float("nan"))), (2,)),
    "infinity": (body_of((2,), DENSE, raw(1.0, float("-inf"))), (2,)),
    "half: exponent out of range": (
        body_of((1,), HALF, raw(1.0, dtype=torch.float16), integers(2**62)),
        (1,),
    ),
    "half: no exponent": (
        body_of((1,), HALF, raw(1.0, dtype=torch.float16), integers()),
        (1,),
    ),
    "half: float32 values": (body_of((1,), HALF, raw(1.0), integers(0)), (1,)),
    "powers: the top is out of range": (
        body_of((1,), POWERS, integers(10**6), equal_symbols(1, 0), no_bits()),
        (1,),
    ),
    "powers: a negative exponent": (
        body_of((1,), POWERS, integers(0), equal_symbols(1, -1), no_bits()),
        (1,),
    ),
    "powers: an exponent that would make a huge table": (
        body_of(
            (1,),
            POWERS,
            integers(0),
            equal_symbols(1, 2**62),
            field(Coding.BITS, b"\1\0"),
        ),
        (1,),
    ),
    "powers: a sign is missing": (
        body_of((2,), POWERS, integers(0), equal_symbols(2, 1), no_bits()),
        (2,),
    ),
    "sparse: fewer values than positions": (
        body_of((3,), SPARSE, ALL, raw(1.0, 2.0)),
        (3,),
    ),
    "sparse: a value without a position": (body_of((3,), SPARSE, NONE, raw(1.0)), (3,)),
    "sparse: raw positions out of range": (
        body_of((3,), SPARSE, raw(7, dtype=torch.int64), raw(1.0)),
        (3,),
    ),
    "seeded: a negative seed": (body_of((3,), SEEDED, integers(-1), raw(1.0)), (3,)),
    "seeded: two seeds": (body_of((3,), SEEDED, integers(1, 2), raw(1.0)), (3,)),
    "seeded: a raw seed beyond 64 bits": (
        body_of((3,), SEEDED, raw(1e300, dtype=torch.float64), raw(1.0)),
        (3,),
    ),
    "seeded: more values than entries": (
        body_of((3,), SEEDED, integers(1), raw(*[1.0] * 4)),
        (3,),
    ),
    "seeded: no values": (body_of((3,), SEEDED, integers(1), raw()), (3,)),
    "seeded: d/k times a value overflows": (
        body_of((30,), SEEDED, integers(1), raw(3e38)),
        (30,),
    ),
    "levels: two scales": (
        body_of((1,), LEVELS, raw(1.0, 1.0), equal_symbols(1, 2)),
        (1,),
    ),
    "levels: an integer scale": (
        body_of((1,), LEVELS, raw(1, dtype=torch.int64), equal_symbols(1, 2)),
        (1,),
    ),
    "levels: fewer levels than entries": (
        body_of((9,), LEVELS, raw(1.0), equal_symbols(8, 2)),
        (9,),
    ),
    "blocks: of no entries": (
        body_of((2,), BLOCKS, integers(0, 0), raw(1.0), equal_symbols(2, 1)),
        (2,),
    ),
    "blocks: of -3 entries": (
        body_of((2,), BLOCKS, integers(-3, 0), raw(1.0), equal_symbols(2, 1)),
        (2,),
    ),
    "blocks: longer than the tensor": (
        body_of((2,), BLOCKS, integers(2**62, 0), raw(1.0), equal_symbols(2, 1)),
        (2,),
    ),
    "blocks: no exponent": (
        body_of((2,), BLOCKS, integers(2), raw(1.0), equal_symbols(2, 1)),
        (2,),
    ),
    "blocks: an exponent out of range": (
        body_of((2,), BLOCKS, integers(2, -(10**6)), raw(1.0), equal_symbols(2, 1)),
        (2,),
    ),
    "blocks: a scale is missing": (
        body_of((5,), BLOCKS, integers(2, 0), raw(1.0, 1.0), equal_symbols(5, 1)),
        (5,),
    ),
    "blocks: a scale too many": (
        body_of((4,), BLOCKS, integers(2, 0), raw(*[1.0] * 3), equal_symbols(4, 1)),
        (4,),
    ),
    "blocks: integer scales": (
        body_of(
            (2,),
            BLOCKS,
            integers(2, 0),
            raw(1, dtype=torch.int64),
            equal_symbols(2, 1),
        ),
        (2,),
    ),
    "blocks: a negative scale": (
        body_of((2,), BLOCKS, integers(2, 0), raw(-1.0), equal_symbols(2, 1)),
        (2,),
    ),
    "blocks: fewer levels than entries": (
        body_of((3,), BLOCKS, integers(3, 0), raw(1.0), equal_symbols(2, 1)),
        (3,),
    ),
    "blocks: zero times infinity": (
        body_of(
            (2,),
            BLOCKS,
            integers(2, 0),
            raw(1e300, dtype=torch.float64),
            equal_symbols(2, 0),
        ),
        (2,),
    ),
    "signs: more than entries": (
        body_of((3,), SIGNS, integers(3, 0), raw(1.0), packed(4, b"\5")),
        (3,),
    ),
    "signs: none": (body_of((3,), SIGNS, integers(3, 0), raw(1.0), no_bits()), (3,)),
    "signs: no scale": (
        body_of((3,), SIGNS, integers(3, 0), raw(), packed(3, b"\5")),
        (3,),
    ),
    "binades: a level that would make a huge table": (
        body_of((2,), BINADES, integers(0), raw(1.0), equal_symbols(2, -(2**62))),
        (2,),
    ),
    "binades: fewer levels than entries": (
        body_of((2,), BINADES, integers(0), raw(1.0), equal_symbols(1, 1)),
        (2,),
    ),
    "binades: two scales": (
        body_of((2,), BINADES, integers(0), raw(1.0, 1.0), equal_symbols(2, 1)),
        (2,),
    ),
    "binades: no exponent": (
        body_of((2,), BINADES, integers(), raw(1.0), equal_symbols(2, 1)),
        (2,),
    ),
    "binades: an exponent out of range": (
        body_of((2,), BINADES, integers(2**40), raw(1.0), equal_symbols(2, 1)),
        (2,),
    ),
    "dithered: a negative seed": (
        body_of((2,), DITHERED, integers(-1, 0, 0, 0), raw(1.0), equal_symbols(2, 2)),
        (2,),
    ),
    "dithered: half a head": (
        body_of((2,), DITHERED, integers(1), raw(1.0), equal_symbols(2, 2)),
        (2,),
    ),
    "dithered: another fold": (
        body_of((2,), DITHERED, integers(1, 2, 0, 0), raw(1.0), equal_symbols(2, 2)),
        (2,),
    ),
    "dithered: no scale": (
        body_of((2,), DITHERED, integers(1, 0, 0, 0), raw(), equal_symbols(2, 2)),
        (2,),
    ),
    "dithered: an integer scale": (
        body_of(
            (2,),
            DITHERED,
            integers(1, 0, 0, 0),
            raw(1, dtype=torch.int64),
            equal_symbols(2, 2),
        ),
        (2,),
    ),
    "dithered: pairs of too few levels": (
        body_of((9,), DITHERED, integers(1, 0, 0, 2), raw(1.0), equal_symbols(5, 2)),
        (9,),
    ),
    "dithered: pairs of 2^60 levels": (
        body_of(
            (9,), DITHERED, integers(1, 0, 0, 2**60), raw(1.0), equal_symbols(5, 2)
        ),
        (9,),
    ),
    "dithered: pairs of -2 levels": (
        body_of((9,), DITHERED, integers(1, 0, 0, -2), raw(1.0), equal_symbols(5, 2)),
        (9,),
    ),
    "dithered: pairs from 2^60": (
        body_of(
            (4096,),
            DITHERED,
            integers(1, 0, 2**60, 2),
            raw(1.0),
            equal_symbols(2048, 2),
        ),
        (4096,),
    ),
    "dithered: another pair": (
        body_of(
            (4096,), DITHERED, integers(1, 0, 0, 2), raw(1.0), equal_symbols(2048, 4)
        ),
        (4096,),
    ),
    "dithered: a negative pair": (
        body_of(
            (4096,), DITHERED, integers(1, 0, 0, 2), raw(1.0), equal_symbols(2048, -1)
        ),
        (4096,),
    ),
    "dithered: a pair is missing": (
        body_of(
            (4097,), DITHERED, integers(1, 0, 0, 2), raw(1.0), equal_symbols(2048, 2)
        ),
        (4097,),
    ),
    "dithered: fewer levels than entries": (
        body_of((9,), DITHERED, integers(1, 1, 0, 0), raw(1.0), equal_symbols(8, 2)),
        (9,),
    ),
    "low rank: the factors differ in rank": (
        body_of((6, 6), LOWRANK, raw(*[1.0] * 12), raw(*[1.0] * 6)),
        (6, 6),
    ),
    "low rank: no whole rank": (
        body_of((6, 6), LOWRANK, raw(*[1.0] * 7), raw(*[1.0] * 6)),
        (6, 6),
    ),
    "low rank: a rank that no sender needs": (
        body_of((8, 8), LOWRANK, raw(*[1.0] * 64), raw(*[1.0] * 64)),
        (8, 8),
    ),
    "low rank: an empty matrix": (body_of((0, 4), LOWRANK, raw(), raw()), (0, 4)),
    "sketch: a negative seed": (sketched((9,), (-1, 0), NONE, 3), (9,)),
    "sketch: no exponent": (sketched((9,), (0,), NONE, 3), (9,)),
    "sketch: exponent out of range": (sketched((9,), (0, 1 << 40), NONE, 3), (9,)),
    "sketch: four cells": (sketched((9,), (0, 0), NONE, 4), (9,)),
    "sketch: no cells": (sketched((9,), (0, 0), NONE, 0), (9,)),
    "sketch: more cells than entries": (sketched((9,), (0, 0), NONE, 12), (9,)),
    "sketch: positions beside one cell an entry": (
        sketched((9,), (0, 0), ALL, 9),
        (9,),
    ),
    "sketch: a cell that no entry is in": (
        sketched((9,), (0, 0), NONE, 3, cell=5),
        (9,),
    ),
    "sketch: more entries than cells": (sketched((90,), (0, 0), ALL, 3, 1), (90,)),
    "sketch: a stash without values": (
        sketched((90,), (0, 0), NONE, 3, stash=ALL),
        (90,),
    ),
    "eden: no levels": (eden((8,), integers(1, 0), signs=8), (8,)),
    "eden: a huge table of levels": (
        eden((8,), integers(1, 2**40), coarse=8, value=2),
        (8,),
    ),
    "eden: a negative seed": (eden((8,), integers(-1, 2), signs=8), (8,)),
    "eden: no seed": (eden((8,), integers(2), signs=8), (8,)),
    "eden: more signs than entries": (eden((8,), integers(1, 1), signs=9), (8,)),
    "eden: no signs at all": (eden((8,), integers(1, 1)), (8,)),
    "eden: fewer symbols than entries": (eden((8,), integers(1, 4), coarse=7), (8,)),
    "eden: signs besides": (eden((8,), integers(1, 4), signs=8, coarse=8), (8,)),
    "eden: a symbol beyond the levels": (
        eden((8,), integers(1, 4), coarse=8, value=4),
        (8,),
    ),
    "eden: a negative symbol": (
        eden((8,), integers(1, 4), coarse=8, value=-1),
        (8,),
    ),
    "eden: a negative scale": (eden((8,), integers(1, 2), raw(-1.0), signs=8), (8,)),
    "eden: two scales of one part": (
        eden((8,), integers(1, 2), raw(1.0, 1.0), signs=8),
        (8,),
    ),
    "eden: an integer scale": (
        eden((8,), integers(1, 2), raw(1, dtype=torch.int64), signs=8),
        (8,),
    ),
    "rotated: another size inside": (
        body_of(
            (2,),
            ROTATED,
            integers(1),
            field(Coding.NESTED, body_of((1,), DENSE, raw(1.0))),
        ),
        (2,),
    ),
    "rotated: a negative seed": (
        body_of(
            (1,),
            ROTATED,
            integers(-1),
            field(Coding.NESTED, body_of((1,), DENSE, raw(1.0))),
        ),
        (1,),
    ),
    "shrunk: a factor of two": (
        body_of(
            (1,), SHRUNK, raw(2.0), field(Coding.NESTED, body_of((1,), DENSE, raw(1.0)))
        ),
        (1,),
    ),
    "shrunk: no factor": (
        body_of(
            (1,), SHRUNK, raw(), field(Coding.NESTED, body_of((1,), DENSE, raw(1.0)))
        ),
        (1,),
    ),
    "shrunk: a nested factor": (
        body_of(
            (1,),
            SHRUNK,
            field(Coding.NESTED, body_of((1,), DENSE, raw(1.0))),
            field(Coding.NESTED, body_of((1,), DENSE, raw(1.0))),
        ),
        (1,),
    ),
    "spherical: three settings": spherical((1, 2, 1)),
    "spherical: a negative seed": spherical((-1, 2, 1, 0)),
    "spherical: blocks of one": spherical((1, 1, 1, 0)),
    "spherical: a huge block": spherical((1, 2**62, 1, 0)),
    "spherical: no block": spherical((1, 0, 1, 0)),
    "spherical: three steps an octave": spherical((1, 2, 3, 0)),
    "spherical: a huge scale": spherical((1, 2, 1, 1024)),
    "spherical: a scale of 2^-2^62": spherical((1, 2, 1, -(2**62))),
    "spherical: scales of other blocks": spherical(scales=equal_symbols(3, 1)),
    "spherical: a negative scale": spherical(scales=equal_symbols(2, -1)),
    "spherical: scales far below": spherical(scales=equal_symbols(2, 2**62)),
    "spherical: no numbers": spherical(numbers=()),
    "spherical: one number": spherical(numbers=(0, 1)),
    "spherical: numbers without blocks": spherical(scales=equal_symbols(2, 0)),
    "spherical: a direction beyond the counters": spherical(
        numbers=(39, *[255] * 8, 0, 0, 0b11)
    ),
    "spherical: all blocks plain and coded": spherical(plain=b"\1"),
    "spherical: plain blocks without entries": spherical(
        scales=equal_symbols(2, 0), numbers=(), plain=b"\2\1"
    ),
    "spherical: a plain block that is none": spherical(
        scales=equal_symbols(2, 0), numbers=(), plain=b"\2\10", rest=raw(1.0, 2.0)
    ),
    "spherical: entries without plain blocks": spherical(rest=raw(1.0, 2.0)),
    "spherical: entries of another dtype": spherical(
        scales=equal_symbols(2, 0),
        numbers=(),
        plain=b"\2\1",
        rest=raw(1.0, 2.0, dtype=torch.float64),
    ),
    "shrunk: another size inside": (
        body_of(
            (2,), SHRUNK, raw(0.5), field(Coding.NESTED, body_of((1,), DENSE, raw(1.0)))
        ),
        (2,),
    ),
}
FORGED |= {
    "induced: a part is too long": (
        body_of(
            (2,),
            INDUCED,
            *[field(Coding.NESTED, body_of((3,), DENSE, raw(1, 2, 3)))] * 2,
        ),
        (2,),
    ),
    "induced: a part is missing": (
        body_of((1,), INDUCED, field(Coding.NESTED, body_of((1,), DENSE, raw(1.0)))),
        (1,),
    ),
    "induced: three times its size": (
        body_of(
            (90,),
            INDUCED,
            field(Coding.NESTED, body_of((200,), SEEDED, integers(1), raw(1.0))),
            field(Coding.NESTED, body_of((90,), SEEDED, integers(1), raw(1.0))),
        ),
        (90,),
    ),
    "induced: raw parts": (body_of((1,), INDUCED, raw(1.0), raw(1.0)), (1,)),
    "induced inside induced": (
        body_of((1,), INDUCED, *[field(Coding.NESTED, _SUM_OF_TWO)] * 2),
        (1,),
    ),
    "induced inside shrunk inside induced": (
        body_of(
            (1,),
            INDUCED,
            *[
                field(
                    Coding.NESTED,
                    body_of((1,), SHRUNK, raw(1.0), field(Coding.NESTED, _SUM_OF_TWO)),
                )
            ]
            * 2,
        ),
        (1,),
    ),
}

#: Well formed, but beyond the largest number of float32.
TOO_LARGE: dict[str, tuple[bytes, tuple[int, ...]]] = {
    "float64 too large for float32": (
        body_of((1,), DENSE, raw(1e300, dtype=torch.float64)),
        (1,),
    ),
    "half: exponent overflows": (
        body_of((1,), HALF, raw(1.0, dtype=torch.float16), integers(200)),
        (1,),
    ),
    "powers: the top overflows": (
        body_of(
            (1,),
            POWERS,
            integers(1000),
            equal_symbols(1, 1),
            field(Coding.BITS, b"\1\0"),
        ),
        (1,),
    ),
    "levels: the scale overflows": (
        body_of((1,), LEVELS, raw(3e38), equal_symbols(1, 2)),
        (1,),
    ),
    "sketch: the exponent overflows": (sketched((2,), (0, 1000), NONE, 2, 1), (2,)),
    "blocks: the scale overflows": (
        body_of((1,), BLOCKS, integers(1, 0), raw(3e38), equal_symbols(1, 2)),
        (1,),
    ),
    "blocks: the exponent overflows": (
        body_of((1,), BLOCKS, integers(1, 1000), raw(1.0), equal_symbols(1, 2)),
        (1,),
    ),
    "signs: the exponent overflows": (
        body_of((1,), SIGNS, integers(1, 128), raw(1.0), packed(1, b"\0")),
        (1,),
    ),
    "binades: the exponent overflows": (
        body_of((1,), BINADES, integers(1000), raw(1.0), equal_symbols(1, 60)),
        (1,),
    ),
    "induced: the sum overflows": (
        body_of(
            (1,), INDUCED, *[field(Coding.NESTED, body_of((1,), DENSE, raw(3e38)))] * 2
        ),
        (1,),
    ),
    "dithered: the scale overflows": (
        body_of((2,), DITHERED, integers(1, 0, 0, 0), raw(3e38), equal_symbols(2, 2)),
        (2,),
    ),
    "low rank: the product overflows": (
        body_of((3, 3), LOWRANK, raw(*[1e30] * 3), raw(*[1e30] * 3)),
        (3, 3),
    ),
}
