"""Whole updates <-> one byte string."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import fl_lowrank as fll
from fl_lowrank import decoders
from fl_lowrank.compressors import F16, Identity, Natural, PowerSgd, TopK
from fl_lowrank.errors import InputError, SettingError, SpecError, WireError
from fl_lowrank.model import SMALL, ModelCodec, layout_of, read_payloads
from fl_lowrank.wire import TensorLayout

RNG = fll.rng.stream(0, "model")

Shapes = dict[str, tuple[tuple[int, ...], torch.dtype]]


def update_of(shapes: Shapes, seed: int = 0) -> dict[str, Tensor]:
    """Random tensors of the given shapes and dtypes."""
    return {
        name: (10.0 * fll.rng.stream(seed, name).normal(*shape)).to(dtype)
        for name, (shape, dtype) in shapes.items()
    }


F32 = torch.float32
CNN: Shapes = {
    "conv.weight": ((16, 8, 3, 3), F32),
    "conv.bias": ((16,), F32),
    "norm.weight": ((16,), F32),
    "norm.running_var": ((16,), F32),
    "norm.num_batches_tracked": ((), torch.int64),
    "fc.weight": ((40, 256), F32),
    "fc.bias": ((40,), F32),
}
MIXED: Shapes = {
    "half": ((33,), torch.float16),
    "single": ((5, 7), F32),
    "empty": ((0, 3), F32),
    "scalar": ((), F32),
    "double": ((31,), torch.float64),
    "half2": ((2,), torch.float16),
    "brain": ((4, 4), torch.bfloat16),
    "count": ((), torch.int64),
    "mask": ((9,), torch.bool),
    "bytes": ((3,), torch.uint8),
}


def round_trip(text: str, update: dict[str, Tensor]) -> dict[str, Tensor]:
    codec = ModelCodec(text)
    data, _ = codec.encode(update, codec.init(layout_of(update)), RNG)
    return ModelCodec.decode(data, layout_of(update))


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert list(a) == list(b)
    for name in a:
        assert (a[name].shape, a[name].dtype) == (b[name].shape, b[name].dtype), name
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("shapes", [CNN, MIXED, {}], ids=["cnn", "mixed", "none"])
def test_identity_is_exact_in_order_shape_and_dtype(shapes: Shapes) -> None:
    update = update_of(shapes)
    assert_equal(round_trip("identity()", update), update)
    assert_equal(round_trip("*: exact()", update), update)


def test_default_rules() -> None:
    """Integers exactly, small tensors as one vector at 16 bits, the rest by topk."""
    layout = layout_of(update_of(CNN))
    groups = {g.names: g.compressor for g in ModelCodec("topk(k=9)").groups(layout)}
    assert groups == {
        ("conv.weight",): TopK(k=9),
        ("conv.bias", "norm.weight", "norm.running_var", "fc.bias"): F16(),
        ("norm.num_batches_tracked",): Identity(),
        ("fc.weight",): TopK(k=9),
    }
    update = update_of(CNN)
    decoded = round_trip("topk(k=9)", update)
    assert torch.equal(
        decoded["norm.num_batches_tracked"], update["norm.num_batches_tracked"]
    )
    for name in ("conv.bias", "norm.weight", "norm.running_var", "fc.bias"):
        assert torch.allclose(decoded[name], update[name], rtol=2.0**-11)
    for name in ("conv.weight", "fc.weight"):
        assert int(decoded[name].count_nonzero()) == 9
        kept = decoded[name] != 0
        assert torch.equal(decoded[name][kept], update[name][kept])


def test_small_tensors_of_a_small_model_are_compressed() -> None:
    """Their 16 bits an entry would be most of the message."""
    shapes: Shapes = {"w": ((30, 30), F32), "b": ((30,), F32)}
    groups = ModelCodec("topk(k=1)").groups(layout_of(update_of(shapes)))
    assert [(g.names, g.compressor) for g in groups] == [
        (("w",), TopK(k=1)),
        (("b",), TopK(k=1)),
    ]


def test_an_exact_compressor_leaves_nothing_to_16_bits() -> None:
    layout = layout_of(update_of(CNN))
    for text in ("identity()", "topk(fraction=1)", "powersgd(rank=100000)"):
        codec = ModelCodec(text)
        assert F16() not in [g.compressor for g in codec.groups(layout)]
        update = update_of(CNN)
        assert_equal(round_trip(text, update), update)


def test_rules_choose_the_first_match() -> None:
    text = "*running_*: exact(); *num_b*: exact(); *.bias: f16(); *: natural()"
    codec = ModelCodec(text)
    assert str(codec) == text.replace("exact", "identity")
    by_name = {
        name: group.compressor
        for group in codec.groups(layout_of(update_of(CNN)))
        for name in group.names
    }
    assert by_name == {
        "conv.weight": Natural(),
        "conv.bias": F16(),
        "norm.weight": Natural(),
        "norm.running_var": Identity(),
        "norm.num_batches_tracked": Identity(),
        "fc.weight": Natural(),
        "fc.bias": F16(),
    }
    update = update_of(CNN)
    assert torch.equal(
        round_trip(text, update)["norm.running_var"], update["norm.running_var"]
    )


def test_only_small_tensors_alike_in_rule_and_dtype_are_merged() -> None:
    shapes: Shapes = {
        "a": ((SMALL,), F32),
        "b": ((SMALL + 1,), F32),
        "c": ((3,), torch.float64),
        "d": ((2, 2), F32),
        "x": ((3,), F32),
        "e": ((), torch.float64),
        "y": ((3,), F32),
    }
    codec = ModelCodec("x: f16(); y: topk(k=1); *: natural()")
    names = [g.names for g in codec.groups(layout_of(update_of(shapes)))]
    assert names == [("a", "d"), ("b",), ("c", "e"), ("x",), ("y",)]
    sizes = [g.layout for g in codec.groups(layout_of(update_of(shapes)))]
    assert sizes[0] == TensorLayout((SMALL + 4,), F32)
    assert sizes[2] == TensorLayout((4,), torch.float64)


@pytest.mark.parametrize("num_vectors", range(10))
def test_the_table_of_merged_vectors(num_vectors: int) -> None:
    """Each rule with two tensors makes one vector; members are interleaved."""
    rules = [f"{i}.*: natural()" for i in range(num_vectors)]
    names = [f"{i}.{part}" for part in ("x", "y") for i in range(num_vectors)]
    shapes: Shapes = dict.fromkeys([*names, "alone"], ((3, 2), F32))
    update = update_of(shapes)
    codec = ModelCodec("; ".join([*rules, "*: identity()"]))
    data, _ = codec.encode(update, {}, RNG)
    read = [members for members, _ in read_payloads(data, layout_of(update))]
    assert read == [
        *((f"{i}.x", f"{i}.y") for i in range(num_vectors)),
        ("alone",),
    ]
    decoded = ModelCodec.decode(data, layout_of(update))
    for name, x in update.items():
        ratio = decoded[name] / x
        assert bool(((ratio > 0.66) & (ratio < 1.34)).all()), name
    assert torch.equal(decoded["alone"], update["alone"])


def test_mixed_dtypes_and_empty_tensors_under_a_lossy_compressor() -> None:
    update = update_of(MIXED)
    for text in ("*: natural()", "*: f16()"):
        rules = f"count: exact(); mask: exact(); bytes: exact(); {text}"
        decoded = round_trip(rules, update)
        assert layout_of(decoded) == layout_of(update)
        for name in ("half", "single", "scalar", "double", "half2", "brain"):
            error = (decoded[name].double() - update[name].double()).norm()
            assert float(error) <= 0.34 * float(update[name].double().norm()), name


def test_a_tensor_costs_few_bytes_of_frame() -> None:
    """62 tensors like those of a ResNet-18, one after the other and merged.

    Measured: 774 bytes of frame alone, 12.5 a tensor; 344 merged.
    """
    shapes: Shapes = {"stem.weight": ((64, 3, 7, 7), F32)}
    for i in range(20):
        shapes[f"{i}.weight"] = ((64, 32, 3, 3), F32)
        shapes[f"{i}.norm.weight"] = ((64,), F32)
        shapes[f"{i}.norm.bias"] = ((64,), F32)
    shapes["head.bias"] = ((10,), F32)
    update = update_of(shapes)
    assert len(update) == 62
    entries = sum(t.numel() for t in update.values())

    alone, _ = ModelCodec("*: by_size(threshold=0, small=f16(), large=f16())").encode(
        update, {}, RNG
    )
    frame_bytes = len(alone) - 2 * entries
    assert frame_bytes <= 62 * 13
    merged, _ = ModelCodec("*: f16()").encode(update, {}, RNG)
    assert len(merged) - 2 * entries <= 22 * 15 + 20
    assert len(merged) < len(alone)


def test_state_crosses_rounds() -> None:
    """A warm start inside a model: the error falls, as for the compressor alone."""
    rng = fll.rng.stream(3)
    left, right = rng.child("l").normal(40, 12), rng.child("r").normal(50, 12)
    decay = 0.5 ** torch.arange(12.0)
    update = {"a.weight": (left * decay) @ right.T, "a.bias": torch.ones(4)}
    codec = ModelCodec("*.bias: f16(); *: powersgd(rank=3)")
    layout = layout_of(update)
    state = codec.init(layout)
    assert list(state) == ["a.weight/right"]
    alone, alone_state = PowerSgd(rank=3), PowerSgd(rank=3).init((40, 50))
    errors = []
    for turn in range(8):
        data, state = codec.encode(update, state, rng.child(turn))
        decoded = ModelCodec.decode(data, layout)["a.weight"]
        errors.append(float((decoded - update["a.weight"]).norm()))
        payload, alone_state = alone.encode(
            update["a.weight"], alone_state, rng.child(turn).child("a.weight")
        )
        assert torch.equal(decoded, decoders.decode(payload))
        assert torch.equal(state["a.weight/right"], alone_state["right"])
    best = float(torch.linalg.svdvals(update["a.weight"])[3:].norm())
    assert errors[0] > 1.02 * best
    assert errors[-1] < 1.001 * best


def test_states_of_names_within_names_do_not_mix() -> None:
    """Keys may hold slashes: ``a`` must not bring back an old state of ``a/b``."""
    update = update_of({"a/b": ((9, 8), F32), "a": ((9, 8), F32)})
    codec = ModelCodec("a: topk(k=3); *: powersgd(rank=1)")
    state = codec.init(layout_of(update))
    _, first = codec.encode(update, state, RNG.child(1))
    _, second = codec.encode(update_of_again(update), first, RNG.child(2))
    assert list(state) == list(first) == list(second) == ["a/b/right"]
    assert not torch.equal(first["a/b/right"], state["a/b/right"])
    assert not torch.equal(second["a/b/right"], first["a/b/right"])


def update_of_again(update: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.flip(0) for name, x in update.items()}


def test_a_state_that_no_longer_fits_restarts() -> None:
    update = update_of({"w": ((20, 30), F32)})
    _, state = ModelCodec("*: powersgd(rank=2)").encode(update, {}, RNG)
    for text in (
        "*: powersgd(rank=3)",
        "*: topk(k=3) >> natural()",
        "powersgd(rank=1)",
    ):
        data, _ = ModelCodec(text).encode(update, state, RNG)
        fresh, _ = ModelCodec(text).encode(update, {}, RNG)
        assert data == fresh


def test_the_same_arguments_give_the_same_bytes_and_are_left_alone() -> None:
    update = update_of(CNN)
    copy = {name: x.clone() for name, x in update.items()}
    codec = ModelCodec("*num*: exact(); *.weight: randk(k=5); *: natural_stochastic()")
    first, _ = codec.encode(update, {}, RNG)
    second, _ = codec.encode(update, {}, RNG)
    other, _ = codec.encode(update, {}, RNG.child(1))
    assert first == second != other
    assert_equal(update, copy)


def test_each_tensor_draws_for_itself() -> None:
    x = fll.rng.stream(9).normal(64)
    update = {"a": x, "b": x.clone()}
    decoded = round_trip("*: randk(k=8)", update)
    assert not torch.equal(decoded["a"] != 0, decoded["b"] != 0)


def test_the_reader_needs_bytes_and_layout_alone() -> None:
    """Two clients with other codecs, one reader without any."""
    update = update_of(CNN)
    layout = layout_of(update)
    total = {k: torch.zeros(t.shape, dtype=torch.float64) for k, t in layout.items()}
    expected = {k: t.clone() for k, t in total.items()}
    for weight, text in [
        (0.25, "topk(fraction=0.1) >> natural()"),
        (0.75, "*num*: exact(); *.weight: powersgd(rank=1); *: f16()"),
    ]:
        data, _ = ModelCodec(text).encode(update, {}, RNG)
        for name, x in ModelCodec.decode(data, layout).items():
            expected[name] += weight * x.double()
        for names, payload in read_payloads(data, layout):
            flat = torch.zeros(payload.shape, dtype=torch.float64)
            decoders.accumulate([payload], [weight], flat)
            sizes = [layout[name].numel for name in names]
            for name, part in zip(names, flat.reshape(-1).split(sizes), strict=True):
                total[name] += part.reshape(total[name].shape)
    for name in expected:
        assert torch.allclose(total[name], expected[name], rtol=1e-6, atol=1e-6), name


def test_another_layout_is_refused() -> None:
    update = update_of(CNN)
    data, _ = ModelCodec("topk(k=9)").encode(update, {}, RNG)
    layout = layout_of(update)
    assert ModelCodec.decode(data, layout).keys() == layout.keys()
    fewer = dict(list(layout.items())[1:])
    with pytest.raises(WireError, match="expected 6 tensors, found 7"):
        ModelCodec.decode(data, fewer)
    backwards = dict(reversed(layout.items()))
    with pytest.raises(WireError, match="tensor "):
        ModelCodec.decode(data, backwards)
    for name, other in [
        ("fc.weight", TensorLayout((256, 40), F32)),
        ("fc.weight", TensorLayout((40, 256), torch.float64)),
        ("fc.bias", TensorLayout((41,), F32)),
        ("norm.num_batches_tracked", TensorLayout((), torch.int32)),
    ]:
        with pytest.raises(WireError, match="model"):
            ModelCodec.decode(data, {**layout, name: other})
    with pytest.raises(WireError, match=r"merged with tensors of another dtype"):
        ModelCodec.decode(
            data, {**layout, "fc.bias": TensorLayout((40,), torch.float64)}
        )


def test_a_table_that_merges_more_is_only_another_way_to_send() -> None:
    """The sender decides what travels together; sums of sizes still must fit."""
    update = update_of({"a": ((2,), F32), "b": ((3,), F32)})
    joint = {"ab": torch.cat([update["a"], update["b"]])}
    data, _ = ModelCodec("*: identity()").encode(update, {}, RNG)
    one, _ = ModelCodec("*: identity()").encode(joint, {}, RNG)
    two, single = fll.wire.open_sealed(data).rest(), fll.wire.open_sealed(one).rest()
    assert two[:3] == bytes([2, 1, 0b11])
    assert two[3:] == single[2:]
    for table in (bytes([2, 1, 0b01]), bytes([2, 3, 0b1111]), bytes([2, 2, 0b1010])):
        forged = fll.wire.seal(table + single[2:])
        if table[2] == 0b01:  # the first alone: it is too short for the vector
            with pytest.raises(WireError, match="tensor 'a'"):
                ModelCodec.decode(forged, layout_of(update))
        elif table[1] == 3:  # beyond the number of tensors
            with pytest.raises(WireError, match="number of merged vectors is 3"):
                ModelCodec.decode(forged, layout_of(update))
        else:  # numbered 2 instead of 1, but the same
            assert_equal(ModelCodec.decode(forged, layout_of(update)), update)
    beyond = fll.wire.seal(bytes([2, 2, 0b1111]) + single[2:])
    with pytest.raises(WireError, match="vector 3 of 2"):
        ModelCodec.decode(beyond, layout_of(update))
    padded = fll.wire.seal(bytes([2, 1, 0b111]) + single[2:])
    with pytest.raises(WireError):
        ModelCodec.decode(padded, layout_of(update))


def test_errors_name_the_tensor() -> None:
    update = update_of(CNN)
    update["fc.weight"][3, 4] = math.nan
    with pytest.raises(InputError, match=r"tensor 'fc.weight': topk.*1 NaN"):
        ModelCodec("topk(k=9)").encode(update, {}, RNG)
    with pytest.raises(InputError, match=r"'norm.num_batches_tracked'.*identity\(\)"):
        ModelCodec("*: topk(k=9)").encode(update_of(CNN), {}, RNG)
    with pytest.raises(SettingError, match=r"tensor 'conv.weight': shrunk"):
        ModelCodec("*: shrunk(inner=topk(k=9))").encode(update_of(CNN), {}, RNG)
    data, _ = ModelCodec("identity()").encode(update_of(CNN), {}, RNG)
    for cut in (3, 2000):
        short = fll.wire.seal(fll.wire.open_sealed(data).rest()[:-cut])
        with pytest.raises(WireError, match=r"tensor '\w+.\w+': "):
            ModelCodec.decode(short, layout_of(update))


def test_other_errors_pass_as_they_are() -> None:
    """Their constructors may take other arguments than a text."""
    with pytest.raises(UnicodeEncodeError):
        ModelCodec("f16()").encode({"\ud800": torch.ones(2)}, {}, RNG)


def test_a_name_without_a_rule_is_named() -> None:
    with pytest.raises(SpecError, match=r"none fits 'conv.weight'; end them with '\*:"):
        ModelCodec("*.bias: f16()").encode(update_of(CNN), {}, RNG)


def test_names_may_hold_anything() -> None:
    names = ["", "/", "a/b", "a", "重み", "a: b; c", "\0", "x" * 500]
    update = update_of(dict.fromkeys(names, ((4, 3), F32)))
    assert_equal(round_trip("identity()", update), update)
    codec = ModelCodec("*: powersgd(rank=1)")
    state = codec.init(layout_of(update))
    assert len(state) == len(names)
    data, state = codec.encode(update, state, RNG)
    assert len(state) == len(names)
    assert ModelCodec.decode(data, layout_of(update)).keys() == update.keys()
