"""flat: one vector instead of many tensors."""

from __future__ import annotations

import pytest
import torch

import fl_lowrank as fll
from fl_lowrank import Contractive, Flat, ModelCodec, PowerSgd, TopK
from fl_lowrank.errors import InputError
from fl_lowrank.model import layout_of
from tests.fl_lowrank.compressing import send

RNG = fll.rng.stream(0, "flat")


def update() -> dict[str, torch.Tensor]:
    """Layers whose entries differ in size by factors of ten."""
    draws = fll.rng.stream(70)
    return {
        "a.weight": 0.1 * draws.child("a").normal(30, 40),
        "a.bias": draws.child("b").normal(6),
        "b.weight": draws.child("c").normal(50, 40),
        "double": draws.child("d").normal(20, 60).double(),
        "steps": torch.tensor(7),
        "c.weight": 10.0 * draws.child("e").normal(7, 100, 2),
    }


def test_one_tensor_is_a_vector() -> None:
    x = fll.rng.stream(71).normal(10, 6, 2)
    y = send("flat(inner=svd(rank=1))", x)
    assert y.shape == x.shape
    assert torch.equal(y.reshape(-1), send("svd(rank=1)", x.reshape(-1)))
    assert Flat(TopK(k=3)).guarantee((4, 5)) == Contractive(3 / 20)
    assert Flat(PowerSgd(rank=1)).init((4, 5))["right"].shape == (5, 1)


def test_a_vector_costs_nothing_more() -> None:
    x = fll.rng.stream(72).normal(99)
    sent = [
        fll.parse(text).encode(x, {}, RNG)[0]
        for text in ("topk(k=9)", "flat(inner=topk(k=9))")
    ]
    assert fll.pack(sent[0]) == fll.pack(sent[1])


def test_tensors_of_a_rule_and_dtype_travel_as_one_vector() -> None:
    layout = layout_of(update())
    groups = ModelCodec("*.weight: flat(inner=topk(k=9)); *: identity()").groups(layout)
    assert [g.names for g in groups] == [
        ("a.weight", "b.weight", "c.weight"),
        ("a.bias",),
        ("double",),
        ("steps",),
    ]
    assert groups[0].layout.shape == (1200 + 2000 + 1400,)
    small = {"double": fll.TensorLayout((3,), torch.float64)}
    groups = ModelCodec("flat(inner=topk(k=9))").groups({**layout, **small})
    assert [g.names for g in groups] == [
        ("a.weight", "b.weight", "c.weight"),
        ("a.bias",),  # small, at 16 bits
        ("double",),
        ("steps",),
    ]


def test_the_largest_entries_of_all_layers_are_kept() -> None:
    tensors = {k: v for k, v in update().items() if k.endswith("weight")}
    codec = ModelCodec("*: flat(inner=topk(k=500))")
    data, _ = codec.encode(tensors, {}, RNG)
    decoded = ModelCodec.decode(data, layout_of(tensors))
    joined = torch.cat([x.reshape(-1) for x in tensors.values()])
    bound = joined.abs().topk(500).values.min()
    for name, x in tensors.items():
        expected = torch.where(x.abs() >= bound, x, torch.zeros_like(x))
        assert torch.equal(decoded[name], expected), name
    counts = [int(decoded[name].count_nonzero()) for name in tensors]
    assert counts[0] == 0  # the layer of small entries gets nothing
    assert sum(counts) == 500


def test_a_warm_start_of_the_vector_crosses_rounds() -> None:
    tensors = {k: v for k, v in update().items() if k.endswith("weight")}
    codec = ModelCodec("*: flat(inner=powersgd(rank=1))")
    state = codec.init(layout_of(tensors))
    assert list(state) == ["a.weight/right"]
    _, state = codec.encode(tensors, state, RNG)
    _, again = codec.encode(tensors, state, RNG)
    assert list(again) == ["a.weight/right"]
    assert not torch.equal(state["a.weight/right"], again["a.weight/right"])


def test_integers_are_refused_by_name() -> None:
    with pytest.raises(InputError, match="tensor 'steps'"):
        ModelCodec("*: flat(inner=topk(k=9))").encode(update(), {}, RNG)
