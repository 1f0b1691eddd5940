"""Bytes from strangers: a `WireError` or a valid tensor, never another exception.

The checksum only finds accidents. An attacker computes it anew, so most mutations
here do, and the reader itself has to stand them. All seeds are fixed.
"""

from __future__ import annotations

import random
import re

import pytest
import torch

import fl_lowrank as fll
from fl_lowrank import decoders
from fl_lowrank.compressors import COMPRESSORS
from fl_lowrank.errors import SettingError, SpecError, WireError
from fl_lowrank.framing import open_sealed, seal
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
    honest,
    integers,
    mutated,
    no_bits,
    raw,
    read,
    sketched,
    spherical,
)


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


def test_mutated_bodies_without_an_expectation() -> None:
    """A tool may read messages of unknown shape: still a tensor or a refusal."""
    draw = random.Random(2)
    messages = [data for data, expect in honest() if expect.numel < 100]
    bodies = [open_sealed(data).rest() for data in messages]
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
        body = open_sealed(data).rest()
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


# --- texts ---------------------------------------------------------------------------

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
