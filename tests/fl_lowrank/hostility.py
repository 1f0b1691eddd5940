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
    ("ecsq(nmse=0.05)", (20, 9), torch.float16),
    ("ecsq(step=2.0)", (333,), torch.float64),
    ("dither(nmse=0.1)", (300,), torch.float32),
    ("dither(step=2.0)", (30, 30), torch.float32),
    ("dither(step=100.0)", (4099,), torch.float32),
    ("dither_unbiased(step=0.5)", (50,), torch.bfloat16),
    ("shrunk(inner=randk(k=5))", (40,), torch.float32),
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


DITHERED = 14
NONE, ALL = field(Coding.INDICES, b"\0"), field(Coding.INDICES, b"\1")
DENSE, HALF, SPARSE, SEEDED, POWERS, LEVELS, LOWRANK, SHRUNK = range(8)
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
