"""Bytes from strangers: a `WireError` or a valid tensor, and bounded memory.

The checksum only finds accidents. An attacker computes it anew, so most mutations
here do, and the reader itself has to stand them. All seeds are fixed.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fl_lowrank as fll
from fl_lowrank import decoders, wire
from fl_lowrank.codecs.varint import write_varint, zigzag
from fl_lowrank.compressors import COMPRESSORS
from fl_lowrank.envelope import Reply, Request
from fl_lowrank.errors import SettingError, SpecError, WireError
from fl_lowrank.model import ModelCodec, layout_of
from fl_lowrank.types import Coding, Compressor
from fl_lowrank.wire import TensorLayout, open_sealed, seal

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
    ("shrunk(inner=randk(k=5))", (40,), torch.float32),
    ("shrunk(inner=natural_stochastic())", (33,), torch.float16),
    ("by_size(threshold=10, small=f16(), large=topk(k=3))", (7, 7), torch.float32),
]
MUTATIONS = 10_000


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


def test_every_kind_is_attacked() -> None:
    """A new kind of payload or compressor must be added to `SENDERS`."""
    used: set[str] = set()

    def visit(payload: fll.Payload) -> None:
        used.add(payload.kind.name)
        for field in payload.fields.values():
            if isinstance(field.value, fll.Payload):
                visit(field.value)

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


# --- forged messages -----------------------------------------------------------------


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


NONE, ALL = field(Coding.INDICES, b"\0"), field(Coding.INDICES, b"\1")
DENSE, HALF, SPARSE, SEEDED, POWERS, LEVELS, LOWRANK, SHRUNK = range(8)
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
    "float64 too large for float32": (
        body_of((1,), DENSE, raw(1e300, dtype=torch.float64)),
        (1,),
    ),
    "half: exponent overflows": (
        body_of((1,), HALF, raw(1.0, dtype=torch.float16), integers(200)),
        (1,),
    ),
    "half: exponent out of range": (
        body_of((1,), HALF, raw(1.0, dtype=torch.float16), integers(2**62)),
        (1,),
    ),
    "half: no exponent": (
        body_of((1,), HALF, raw(1.0, dtype=torch.float16), integers()),
        (1,),
    ),
    "half: float32 values": (body_of((1,), HALF, raw(1.0), integers(0)), (1,)),
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
    "levels: the scale overflows": (
        body_of((1,), LEVELS, raw(3e38), equal_symbols(1, 2)),
        (1,),
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
    "low rank: the product overflows": (
        body_of((3, 3), LOWRANK, raw(*[1e30] * 3), raw(*[1e30] * 3)),
        (3, 3),
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
    "shrunk: another size inside": (
        body_of(
            (2,), SHRUNK, raw(0.5), field(Coding.NESTED, body_of((1,), DENSE, raw(1.0)))
        ),
        (2,),
    ),
}


@pytest.mark.parametrize("what", FORGED)
def test_forged_messages_are_refused(what: str) -> None:
    body, shape = FORGED[what]
    assert read(seal(body), TensorLayout(shape, torch.float32)) is None


@pytest.mark.parametrize("what", FORGED)
def test_forged_messages_are_refused_when_nested(what: str) -> None:
    body, shape = FORGED[what]
    outer = body_of(shape, SHRUNK, raw(1.0), field(Coding.NESTED, body))
    assert read(seal(outer), TensorLayout(shape, torch.float32)) is None


def test_the_forgery_is_the_only_fault() -> None:
    """The hand-written bodies are well formed but for what their names say."""
    good = {
        SEEDED: body_of((3,), SEEDED, integers(1), raw(1.0)),
        SPARSE: body_of((3,), SPARSE, ALL, raw(1.0, 2.0, 3.0)),
        LEVELS: body_of((3,), LEVELS, raw(3.0), equal_symbols(3, 2)),
        POWERS: body_of((3,), POWERS, integers(0), equal_symbols(3, 0), no_bits()),
        HALF: body_of((1,), HALF, raw(1.0, dtype=torch.float16), integers(10)),
        LOWRANK: body_of((3, 3), LOWRANK, raw(*[1.0] * 3), raw(*[1e30] * 3)),
    }
    for kind, body in good.items():
        shape = {HALF: (1,), LOWRANK: (3, 3)}.get(kind, (3,))
        assert read(seal(body), TensorLayout(shape, torch.float32)) is not None, kind
        nested = body_of(shape, SHRUNK, raw(0.5), field(Coding.NESTED, body))
        assert read(seal(nested), TensorLayout(shape, torch.float32)) is not None


def test_a_hostile_message_cannot_poison_the_sum_of_others() -> None:
    """Products of finite factors may overflow; the honest part is kept apart."""
    body, shape = FORGED["low rank: the product overflows"]
    payload = fll.unpack(seal(body), TensorLayout(shape, torch.float32))
    total = torch.ones(shape, dtype=torch.float64)
    with pytest.raises(WireError, match="overflow"):
        decoders.accumulate([payload], [1.0], total)
    assert torch.equal(total, torch.ones_like(total))


# --- memory --------------------------------------------------------------------------

_CHILD = """
import json, resource, sys
import torch
import fl_lowrank as fll
from fl_lowrank.errors import WireError
from fl_lowrank.wire import TensorLayout

torch.set_num_threads(1)
bytes_allowed, warm, jobs = json.load(sys.stdin)

def answer(job):
    data, shape, dtype = job
    expect = TensorLayout(tuple(shape), getattr(torch, dtype))
    try:
        fll.decode(fll.unpack(bytes.fromhex(data), expect))
    except WireError:
        return "refused"
    except BaseException as error:
        return type(error).__name__
    return "read"

for job in warm:
    assert answer(job) == "read"
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + bytes_allowed
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
print(json.dumps([answer(job) for job in jobs]))
"""
Job = tuple[str, tuple[int, ...], str]


def job(data: bytes, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Job:
    return data.hex(), shape, str(dtype).removeprefix("torch.")


def answers_within(bytes_allowed: int, jobs: list[Job]) -> list[str]:
    """Read messages in a process that may not map more memory than allowed.

    Honest messages are read before the limit holds, so that libraries are loaded.
    """
    warm = [job(data, e.shape, e.dtype) for data, e in honest()]
    child = subprocess.run(
        [sys.executable, "-c", _CHILD],
        input=json.dumps([bytes_allowed, warm, jobs]),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=Path(fll.__file__).parents[1],
    )
    assert child.returncode == 0, child.stderr
    answers: list[str] = json.loads(child.stdout)
    return answers


linux = pytest.mark.skipif(
    sys.platform != "linux", reason="the limit of a process's memory is Linux's"
)


@linux
def test_small_layouts_take_little_memory_whatever_is_announced() -> None:
    """64 MiB for all forged messages and 1,500 mutations of tiny tensors.

    The last job is honest and large: it must fail under this limit, which shows
    that the limit holds.
    """
    draw = random.Random(4)
    messages = honest()
    bodies = [open_sealed(data) for data, _ in messages]
    jobs = [job(seal(body), shape) for body, shape in FORGED.values()]
    for i in range(1_500):
        body = mutated(bodies[i % len(bodies)], bodies, draw)
        expect = messages[i % len(bodies)][1]
        jobs.append(job(seal(body), expect.shape, expect.dtype))
    many = 1 << 25
    large = body_of((many,), POWERS, integers(0), equal_symbols(many, 0), no_bits())
    *answers, control = answers_within(64 << 20, [*jobs, job(seal(large), (many,))])
    assert set(answers) == {"read", "refused"}
    assert set(answers[: len(FORGED)]) == {"refused"}
    assert control not in ("read", "refused")


def tree(numel: int, depth: int) -> bytes:
    """Nest low-rank payloads whose leaves cost few bytes and decode to many entries."""
    if depth == 0:
        return body_of(
            (numel,), POWERS, integers(0), equal_symbols(numel, 0), no_bits()
        )
    half = field(Coding.NESTED, tree(numel, depth - 1))
    return body_of((numel,), LOWRANK, half, half)


@linux
def test_trees_of_payloads_do_not_multiply_memory() -> None:
    """At most 128 bytes an entry of the layout, for the worst messages known.

    A tree of 2^8 leaves, each as large as the layout, would take 2,000 bytes.
    """
    numel = 1 << 20
    deep = body_of((numel,), POWERS, integers(0), equal_symbols(numel, 0), no_bits())
    chain = deep
    for _ in range(wire.MAX_DEPTH):
        chain = body_of((numel,), SHRUNK, raw(0.5), field(Coding.NESTED, chain))
    positions = deep
    for _ in range(wire.MAX_DEPTH):
        positions = body_of((numel,), SPARSE, ALL, field(Coding.NESTED, positions))
    seeded = body_of((numel,), SEEDED, integers(1), raw(1.0))
    wide = tree(numel, wire.MAX_DEPTH)
    bodies = [deep, chain, positions, seeded, wide]
    answers = answers_within(128 * numel, [job(seal(b), (numel,)) for b in bodies])
    assert answers == ["read", "read", "read", "read", "refused"]


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
    return wire.zlib.crc32(body).to_bytes(4, "little")


TOKENS = [
    *COMPRESSORS,
    *("exact", "then", "eval", "__import__", "self", "true", "false", "none"),
    *("fraction", "k", "rank", "inner", "small", "large", "threshold", "nu", "omega"),
    *("oversampling", "num_iterations", "outer"),
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


@linux
def test_settings_cannot_make_a_client_busy_or_full() -> None:
    """Huge settings are refused, or bounded by the tensor: 64 MiB, half a minute."""
    code = """
import resource, torch, fl_lowrank as fll
from fl_lowrank.errors import CompressionError
torch.set_num_threads(1)
x = torch.randn(64, 48, generator=torch.Generator().manual_seed(0))
def run(text):
    try:
        c = fll.parse(text)
        p, _ = c.encode(x, c.init(x.shape), fll.rng.stream(0))
        fll.decode(fll.unpack(fll.pack(p)))
        c.guarantee(x.shape)
    except CompressionError:
        pass
for text in ("rsvd(rank=2)", "svd(rank=2)", "powersgd(rank=2)", "topk(k=9)"):
    run(text)
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + (64 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
huge = "1" + "0" * 30
for text in (
    f"topk(k={huge})", f"randk(k={huge})", f"svd(rank={huge})", "powersgd(rank=10000000)",
    f"rsvd(rank=2, oversampling={huge})", f"rsvd(rank=2, num_iterations={huge})",
    f"powersgd(rank=2, num_iterations={huge})", "rsvd(rank=1000000000)",
    f"by_size(threshold={huge}, small=f16(), large=f16())",
    "sparse_dithering(nu=1e-300)", "sparse_dithering_unbiased(omega=1e-300)",
    "sparse_dithering_unbiased(omega=1e300)", "topk(fraction=1e-300)",
    "topk(k=" + "9" * 4000 + ")", f"topk(fraction={huge})",
):
    run(text)
"""
    child = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=Path(fll.__file__).parents[1],
    )
    assert child.returncode == 0, child.stderr
