"""Budgets over whole models: within the bytes, and better spent than equally."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import fl_lowrank as fll
from fl_lowrank import Budget, ModelCodec, allocate
from fl_lowrank.compressors import Ecsq, Identity, Then
from fl_lowrank.errors import InputError, SettingError, SpecError
from fl_lowrank.model import layout_of, read_payloads

RNG = fll.rng.stream(0, "allocate")


def update() -> dict[str, Tensor]:
    """Layers of very different energies, as a client's update has them."""
    draws = fll.rng.stream(90)
    shapes = {
        "conv1": ((16, 1, 3, 3), 0.3),
        "conv1.bias": ((16,), 0.3),
        "conv2": ((32, 16, 3, 3), 0.1),
        "conv2.bias": ((32,), 0.1),
        "fc1": ((96, 200), 0.02),
        "fc1.bias": ((96,), 0.02),
        "fc2": ((10, 96), 0.2),
        "fc2.bias": ((10,), 0.2),
    }
    return {
        name: scale * draws.child(name).normal(*shape) ** 3
        for name, (shape, scale) in shapes.items()
    }


def mixed() -> dict[str, Tensor]:
    """All dtypes, and shapes without entries or dimensions."""
    draws = fll.rng.stream(91)
    return {
        "half": draws.child(0).normal(70, 20).to(torch.float16),
        "steps": torch.tensor(12),
        "empty": torch.zeros(0, 3),
        "single": draws.child(1).normal(50, 40),
        "scalar": torch.tensor(0.7),
        "double": 1e-3 * draws.child(2).normal(900).double(),
        "brain": draws.child(3).normal(8, 8).to(torch.bfloat16),
        "mask": torch.ones(9, dtype=torch.bool),
        "zero": torch.zeros(40, 40),
    }


def nmse(x: dict[str, Tensor], y: dict[str, Tensor]) -> float:
    lost = sum(float((y[k].double() - x[k].double()).square().sum()) for k in x)
    return lost / sum(float(v.double().square().sum()) for v in x.values())


def sent(text: str, x: dict[str, Tensor]) -> tuple[int, float]:
    """Bytes and relative squared error."""
    data, _ = ModelCodec(text).encode(x, {}, RNG)
    return len(data), nmse(x, ModelCodec.decode(data, layout_of(x)))


@pytest.mark.parametrize("method", ["dither", "topk", "lowrank", "best"])
def test_the_whole_message_is_within_the_bytes_and_uses_them(method: str) -> None:
    for limit in (120, 500, 2500, 9000):
        size, _ = sent(f'budget(bytes={limit}, method="{method}")', update())
        assert 0.98 * limit - 3 <= size <= limit
    for limit in (200, 900):
        size, _ = sent(f'budget(bytes={limit}, method="{method}")', mixed())
        assert size <= limit


def test_what_others_send_is_part_of_it() -> None:
    """Biases of 4 x 154 bytes; the rest is for the weights."""
    text = "*.bias: identity(); *: budget(bytes=1500)"
    x = update()
    data, _ = ModelCodec(text).encode(x, {}, RNG)
    y = ModelCodec.decode(data, layout_of(x))
    assert 1400 < len(data) <= 1500
    for name in x:
        assert torch.equal(x[name], y[name]) == name.endswith("bias")
    with pytest.raises(InputError, match="budget: 600 bytes are too few"):
        ModelCodec(text.replace("1500", "600")).encode(x, {}, RNG)


def test_a_bare_budget_covers_all_but_integers() -> None:
    """No 16 bits for small tensors: they get what they are worth."""
    x = mixed()
    groups, data, _ = ModelCodec(Budget(800)).fitted(x, {}, RNG)
    exact = {n for g in groups if g.compressor == Identity() for n in g.names}
    assert exact == {"steps", "mask"}
    y = ModelCodec.decode(data, layout_of(x))
    assert layout_of(y) == layout_of(x)
    for name in ("steps", "mask", "zero", "empty"):
        assert torch.equal(x[name], y[name])
    read = [names for names, _ in read_payloads(data, layout_of(x))]
    assert read == [group.names for group in groups]
    for group in groups:
        assert len({x[name].dtype for name in group.names}) == 1


def test_steps_are_about_the_same_for_all_that_is_sent() -> None:
    """Reverse water-filling, at a rate where no dead zone is wide."""
    x = update()
    steps = []
    for part in allocate.settings(x, 4000):
        joined = torch.cat([x[name].reshape(-1) for name in part.names])
        compressor, rms = part.compressor, float(joined.square().mean().sqrt())
        if isinstance(compressor, Then):
            kept = joined.abs().topk(compressor.outer.k).values  # type: ignore[attr-defined]
            compressor, rms = compressor.inner, float(kept.square().mean().sqrt())
        assert isinstance(compressor, Ecsq)
        assert compressor.step is not None
        steps.append(compressor.step * rms)
    assert len(steps) >= 2
    assert max(steps) <= 1.6 * min(steps)


@pytest.mark.parametrize(
    "text",
    [
        "*: topk(fraction=0.01) >> natural()",
        "*: topk(fraction=0.1) >> natural()",
        "*: ecsq(nmse=0.5)",
        "*: ecsq(nmse=0.1)",
    ],
)
def test_a_fifth_less_is_lost_than_with_the_same_setting_for_each(text: str) -> None:
    size, same = sent(text, update())
    _, dither = sent(f"budget(bytes={size})", update())
    assert dither < 0.8 * same
    if "topk" in text:
        _, topk = sent(f'budget(bytes={size}, method="topk")', update())
        assert topk < 0.8 * same


@pytest.mark.parametrize("fraction", [0.002, 0.02, 0.2])
def test_never_worse_than_the_largest_of_all(fraction: float) -> None:
    text = f"*: flat(inner=topk(fraction={fraction}) >> natural())"
    size, flat = sent(text, update())
    for method in ("topk", "dither"):
        _, found = sent(f'budget(bytes={size}, method="{method}")', update())
        assert found <= flat * (1 + 1e-9), method


def test_one_price_is_optimal() -> None:
    """No pair of steps for two tensors that fits loses 2% less."""
    draws = fll.rng.stream(92)
    x = {"a": draws.child(0).normal(3000), "b": 0.2 * draws.child(1).normal(2000, 3)}
    limit = 1500
    _, found = sent(f"budget(bytes={limit})", x)
    steps = [2.0 ** (i / 4) for i in range(-1, 11)]
    tried = [
        sent(f"a: ecsq(step={s:.6f}); b: ecsq(step={t:.6f})", x)
        for s in steps
        for t in steps
    ]
    fits = [error for size, error in tried if size <= limit]
    assert 5 < len(fits) < len(tried)
    assert found <= 1.02 * min(fits)


def test_the_same_arguments_give_the_same_bytes_and_are_left_alone() -> None:
    x = update()
    copy = {name: v.clone() for name, v in x.items()}
    codec = ModelCodec('budget(bytes=900, method="best")')
    state = codec.init(layout_of(x))
    assert state == {}
    first, after = codec.encode(x, state, RNG)
    second, _ = codec.encode(x, state, RNG)
    assert first == second
    assert after == {}
    assert all(torch.equal(x[name], copy[name]) for name in x)
    scaled, _ = codec.encode({k: v * 2.0**-20 for k, v in x.items()}, {}, RNG)
    plain = ModelCodec.decode(first, layout_of(x))
    for name, y in ModelCodec.decode(scaled, layout_of(x)).items():
        assert torch.allclose(y * 2.0**20, plain[name], rtol=1e-5, atol=1e-8)


def test_states_of_other_rules_cross_rounds() -> None:
    codec = ModelCodec("fc1: powersgd(rank=1); *: budget(bytes=2500)")
    state = codec.init(layout_of(update()))
    assert list(state) == ["fc1/right"]
    data, after = codec.encode(update(), state, RNG)
    assert list(after) == ["fc1/right"]
    assert after["fc1/right"].any()
    assert len(data) <= 2500


def test_updates_of_nothing() -> None:
    for x in ({}, {"a": torch.zeros(5, 7)}, {"a": torch.zeros(0)}):
        for method in ("dither", "best"):
            codec = ModelCodec(Budget(60, method))
            data, _ = codec.encode(x, {}, RNG)
            y = codec.decode(data, layout_of(x))
            assert all(torch.equal(x[name], y[name]) for name in x)


def test_a_tensor_far_below_the_others_is_lost_and_harmless() -> None:
    x = {"a": torch.ones(50, 30), "b": torch.full((40, 40), 1e-44), "c": torch.ones(3)}
    for method in ("dither", "topk", "best"):
        _, lost = sent(f'budget(bytes=120, method="{method}")', x)
        assert lost < 1.0


def test_two_budgets_are_refused() -> None:
    with pytest.raises(SpecError, match="at most one budget"):
        ModelCodec("conv*: budget(bytes=99); *: budget(bytes=99)")


def test_a_tensor_that_is_not_finite_is_named() -> None:
    x = update()
    x["fc1"][3, 4] = math.nan
    with pytest.raises(InputError, match=r"tensor 'fc1': budget.*1 NaN"):
        ModelCodec("budget(bytes=999)").encode(x, {}, RNG)
    with pytest.raises(InputError, match=r"tensor 'steps': budget.*identity\(\)"):
        ModelCodec("*: budget(bytes=999)").encode(mixed(), {}, RNG)


def test_settings_are_those_of_the_message() -> None:
    x = update()
    found = allocate.settings(x, 3000)
    assert sorted(n for part in found for n in part.names) == sorted(x)
    size, lost = sent("budget(bytes=3000)", x)
    assert size - 40 <= sum(part.num_bytes for part in found) <= size
    energy = sum(float(v.double().square().sum()) for v in x.values())
    assert sum(part.error for part in found) == pytest.approx(lost * energy)


@pytest.mark.parametrize("method", ["dither", "topk", "lowrank"])
def test_predictions_need_no_encoding(method: str) -> None:
    """Size and error together, against messages of the predicted size."""
    x = {name: 1e-5 * v for name, v in update().items()}
    found = allocate.statistics(x, method)
    last = math.inf
    for limit in (300, 3000, 12_000):
        predicted = allocate.predicted(found, limit)
        size = sum(part.num_bytes for part in predicted)
        error = sum(part.error for part in predicted)
        assert 0.7 * limit < size < 1.3 * limit
        real = allocate.settings(x, round(size) + 20, method)
        assert error == pytest.approx(sum(part.error for part in real), rel=0.12)
        assert error < last
        last = error
    with pytest.raises(SettingError, match="no method 'magic'"):
        allocate.statistics(x, "magic")
