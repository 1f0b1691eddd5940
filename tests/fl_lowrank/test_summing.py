"""The sum of messages is the sum of what they decode to, whoever sends what."""

from __future__ import annotations

import random
import re

import pytest
import torch
from torch import Tensor

import fl_lowrank as fll
from fl_lowrank.compressors import sketch_parts
from fl_lowrank.errors import CompressionError, SketchError, WireError
from fl_lowrank.framing import open_sealed, seal
from fl_lowrank.grouping import write_table
from fl_lowrank.messages import read_payloads
from fl_lowrank.model import ModelCodec, layout_of
from fl_lowrank.rng import Rng, stream
from fl_lowrank.summing import ReadUpdate, UpdateSum
from fl_lowrank.wire import pack_body

SHAPES = {"a": (40, 30), "a.bias": (40,), "b": (9, 5, 3, 3), "c": (), "d": (0, 3)}
TEXTS = [
    "topk(fraction=0.1) >> natural()",
    "powersgd(rank=2)",
    "shrunk(inner=randk(fraction=0.2))",
    "*.bias: f16(); *: shrunk(inner=lowrank_unbiased(rank=2))",
    "a*: topk(fraction=0.2); b: eden(bits=2); *: identity()",
    "flat(inner=topk(fraction=0.05))",
    "*: sketch(fraction=0.05, capacity=0.4)",
    'budget(bytes=900, method="topk")',
    "c: identity(); *: dither(step=0.5)",
]


def update(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()
    }


LAYOUT = layout_of(update(0))


def messages(texts: list[str]) -> dict[str, bytes]:
    return {
        f"{i}": ModelCodec(text).encode(update(i), {}, stream(3, i))[0]
        for i, text in enumerate(texts)
    }


def decoded(data: bytes) -> dict[str, Tensor]:
    parts = ModelCodec.decode(data, LAYOUT)
    return {name: x.to(torch.float64) for name, x in parts.items()}


def summed(sent: dict[str, bytes], *, exact: bool = False) -> dict[str, Tensor]:
    sums = UpdateSum(LAYOUT, exact=exact)
    for sender, data in sent.items():
        sums.put(sender, sums.read(data))
    total, failed = sums.close()
    assert not failed
    return total


@pytest.mark.parametrize("text", [*TEXTS, "all"])
def test_sum_of_messages(text: str) -> None:
    sent = messages(2 * TEXTS if text == "all" else 5 * [text])
    wanted = [decoded(data) for data in sent.values()]
    exact, total = summed(sent, exact=True), summed(sent)
    assert list(total) == list(LAYOUT)
    for name in LAYOUT:
        parts = torch.stack([w[name] for w in wanted])
        assert exact[name].dtype == torch.float64
        # Sums of float32 in float64 differ by their order alone.
        torch.testing.assert_close(exact[name], parts.sum(0), rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(total[name], parts.sum(0), rtol=1e-5, atol=1e-5)


def test_one_message_is_added_bit_for_bit() -> None:
    for text, data in zip(TEXTS, messages(TEXTS).values(), strict=True):
        total = summed({"0": data}, exact=True)
        for name, x in decoded(data).items():
            assert torch.equal(total[name], x), text


@pytest.mark.parametrize("text", TEXTS)
def test_norms_are_those_of_what_is_added(text: str) -> None:
    (data,) = messages([text]).values()
    sums = UpdateSum(LAYOUT)
    found = sums.read(data).norm
    wanted = torch.cat([x.reshape(-1) for x in decoded(data).values()]).norm()
    if "sketch" in text:  # only what is beside it can be told
        assert found < wanted
    else:
        assert found == pytest.approx(float(wanted), rel=1e-5)


def same(one: ReadUpdate, other: ReadUpdate) -> bool:
    """Whether both add the same, or fail in the same way."""
    results = []
    for read in (one, other):
        sums = UpdateSum(LAYOUT)
        sums.put("", read)
        total, failed = sums.close()
        results.append((torch.cat([x.reshape(-1) for x in total.values()]), failed))
    (total, failed), (other_total, other_failed) = results
    errors = [str(error) for error in failed.values()]
    return torch.equal(total, other_total) and errors == list(
        map(str, other_failed.values())
    )


def test_reading_many_is_reading_each() -> None:
    """In order, and with what is wrong with each, whatever is read ahead with it.

    Every byte in turn is changed under a right checksum: in tables, heads, values and
    in index sets, of which those of one size are decoded in one pass.
    """
    texts = 2 * [*TEXTS, "topk(fraction=0.2)", "topk(fraction=0.1) >> natural()"]
    sent = list(messages(texts).values())
    draw = random.Random(5)
    damaged = []
    for i in range(1200):
        body = bytearray(open_sealed(sent[i % len(sent)]).rest())
        body[i % len(body)] ^= 1 << draw.randrange(8)
        damaged.append(seal(bytes(body)) if i % 3 else sent[i % len(sent)])
    read = list(UpdateSum(LAYOUT).read_all(damaged))
    for data, found in zip(damaged, read, strict=True):
        if isinstance(found, ReadUpdate):
            assert same(found, UpdateSum(LAYOUT).read(data))
        else:
            with pytest.raises(CompressionError, match=re.escape(str(found))):
                UpdateSum(LAYOUT).read(data)
    assert 200 < sum(isinstance(found, WireError) for found in read) < 800


def test_a_bad_message_adds_nothing() -> None:
    """Its first tensors are good, and must not stay behind."""
    good, bad = messages(["topk(k=7)", "topk(k=7)"]).values()
    sums = UpdateSum(LAYOUT)
    sums.put("good", sums.read(good))
    for end in (1, 8, len(bad) // 2, len(bad) - 1):
        with pytest.raises(WireError):
            sums.read(bad[:end])
    total, failed = sums.close()
    assert not failed
    for name, x in decoded(good).items():
        assert torch.equal(total[name], x)


def test_what_waits_is_bounded() -> None:
    """Many messages must not be kept until the end."""
    x = {"w": torch.randn(1000, 1000, generator=torch.Generator().manual_seed(0))}
    data, _ = ModelCodec("topk(fraction=0.01)").encode(x, {}, Rng(0))
    sums = UpdateSum(layout_of(x))
    waiting = []
    for i in range(40):
        sums.put(str(i), sums.read(data))
        waiting.append(sum(m.num_bytes for _, m in sums._waiting))
    assert sums.read(data).num_bytes == 12 * 10_000
    assert max(waiting) == 8 * 12 * 10_000 <= 2**20
    total, _ = sums.close()
    kept = 40.0 * ModelCodec.decode(data, layout_of(x))["w"].double()
    torch.testing.assert_close(total["w"], kept, rtol=1e-13, atol=0)


def test_sketches_are_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    peel = sketch_parts.peel
    monkeypatch.setattr(sketch_parts, "peel", lambda *a: calls.append(1) or peel(*a))
    sent = messages(6 * ["a: sketch(fraction=0.01, capacity=0.1); *: f16()"])
    calls.clear()
    total = summed(sent)
    assert len(calls) == 1
    wanted = torch.stack([decoded(data)["a"] for data in sent.values()]).sum(0)
    torch.testing.assert_close(total["a"], wanted, rtol=1e-12, atol=0)


def test_sketches_whose_sum_is_too_full_are_decoded_one_by_one() -> None:
    sent = messages(8 * ["a: sketch(fraction=0.05, capacity=0.07); *: f16()"])
    payloads = UpdateSum(LAYOUT)
    parts = [payloads.read(data).parts[0][1] for data in sent.values()]
    with pytest.raises(SketchError):
        type(parts[0]).merged([(part, 1.0) for part in parts])
    total = summed(sent)
    wanted = torch.stack([decoded(data)["a"] for data in sent.values()]).sum(0)
    torch.testing.assert_close(total["a"], wanted, rtol=1e-12, atol=0)


def test_a_sketch_that_cannot_be_decoded_is_named_and_left_out() -> None:
    """A sum stands for a message of its kind; too full a sum is such a sketch."""
    text = "a: sketch(fraction=0.05, capacity=0.07)"
    x = {"a": torch.randn(40, 30, generator=torch.Generator().manual_seed(5))}
    sums = UpdateSum(layout_of(x))
    good, _ = ModelCodec(text).encode(x, {}, Rng(0))
    sums.put("good", sums.read(good))
    full = overfull(text)
    sums.put("bad", sums.read(full))
    total, failed = sums.close()
    assert list(failed) == ["bad"]
    assert "tensor 'a': sketch: " in str(failed["bad"])
    assert torch.equal(total["a"], ModelCodec.decode(good, layout_of(x))["a"].double())


def overfull(text: str) -> bytes:
    """A message whose cells hold the sum of eight sketches."""
    payloads = []
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        x = {"a": torch.randn(40, 30, generator=generator)}
        data, _ = ModelCodec(text).encode(x, {}, Rng(0))
        ((_, payload),) = read_payloads(data, layout_of(x))
        payloads.append(payload)
    groups = ModelCodec(text).groups(layout_of(x))
    return seal(write_table(groups, ["a"]) + pack_body(fll.add(payloads)))
