"""Settings as functions of the round."""

from __future__ import annotations

import math

import pytest
import torch

import fl_lowrank as fll
from fl_lowrank import feedback
from fl_lowrank.compressors import COMPRESSORS, PowerSgd
from fl_lowrank.errors import SettingError, SpecError
from fl_lowrank.model import ModelCodec, layout_of
from fl_lowrank.schedules import (
    MAX_ROUND,
    SCHEDULES,
    Cosine,
    Exponential,
    Linear,
    Schedule,
    Steps,
)
from fl_lowrank.syntax import MAX_DEPTH, MAX_LENGTH
from fl_lowrank.types import Compressor

from ..instances import INSTANCES

# --- the functions -------------------------------------------------------------------


@pytest.mark.parametrize("cls", [Linear, Cosine, Exponential])
@pytest.mark.parametrize(("start", "end"), [(0.5, 0.01), (1e-300, 1e300), (3, 3)])
@pytest.mark.parametrize(("rounds", "begin"), [(2, 1), (100, 1), (7, 30)])
def test_ramps_go_from_start_to_end_and_stay(
    cls: type[Linear], start: float, end: float, rounds: int, begin: int
) -> None:
    ramp = cls(start, end, rounds=rounds, begin=begin)
    last = begin + rounds - 1
    values = [ramp.of(r) for r in range(begin, last + 1)]
    assert values[0] == start
    assert values[-1] == end
    assert values == sorted(values, reverse=start > end)
    assert start == end or len(set(values)) == rounds
    assert all(ramp.of(r) == start for r in (-5, 0, begin))
    assert all(ramp.of(r) == end for r in (last, last + 1, 10**9))
    assert {begin, last} <= ramp.turns() <= set(range(begin, last + 1))
    assert len(ramp.turns()) == min(rounds, 17)


def test_what_is_halfway() -> None:
    assert Linear(2.0, 8.0, rounds=3).of(2) == 5.0
    assert Cosine(2.0, 8.0, rounds=3).of(2) == pytest.approx(5.0)
    assert Exponential(2.0, 8.0, rounds=3).of(2) == pytest.approx(4.0)


def test_the_cosine_of_the_paper() -> None:
    """Loshchilov and Hutter (2017), equation 5, with T_cur from 0 to T."""
    ramp = Cosine(0.5, 0.01, rounds=101)
    for t in range(101):
        eta = 0.01 + 0.5 * (0.5 - 0.01) * (1.0 + math.cos(math.pi * t / 100))
        assert ramp.of(t + 1) == pytest.approx(eta, rel=1e-12)


def test_equal_factors() -> None:
    ramp = Exponential(0.25, 0.001, rounds=5)
    factors = [ramp.of(r + 1) / ramp.of(r) for r in range(1, 5)]
    assert factors == pytest.approx([0.004**0.25] * 4)


def test_steps() -> None:
    schedule = Steps(0.1, at=50, then=0.01)
    assert [schedule.of(r) for r in (0, 1, 49, 50, 51)] == [0.1] * 3 + [0.01] * 2
    assert schedule.turns() == {49, 50}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("linear(1, 2, rounds=1)", "rounds of 2 to 2147483648, found 1"),
        ("cosine(1, 2, rounds=2.5)", "rounds of 2 to 2147483648, found 2.5"),
        ("cosine(1, 2, rounds=true)", "found True"),
        ("linear(1, 2, rounds=4294967296)", "rounds of 2"),
        ("linear(1, 2, rounds=9, begin=0)", "begin of 1 to"),
        ('linear("a", 2, rounds=9)', "expected finite numbers for start and end"),
        ("linear(1, true, rounds=9)", "expected finite numbers"),
        ("linear(1, 1e999, rounds=9)", "expected finite numbers"),
        (f"linear(1, {'9' * 400}, rounds=9)", "expected finite numbers"),
        ("linear(1, linear(1, 2, rounds=2), rounds=9)", "expected finite numbers"),
        ("linear(1, f16(), rounds=9)", "expected finite numbers"),
        ("exponential(0, 1, rounds=9)", "exponential: expected both ends above 0"),
        ("exponential(1, -1, rounds=9)", "use linear or cosine"),
        ("steps(1, at=1, then=2)", "steps: expected at of 2 to"),
        ("cosine(1, 2)", "cosine needs rounds"),
        ("cosine()", "cosine needs start, end, rounds"),
        ("cosine(1, 2, rounds=9, period=3)", "cosine has no setting 'period'"),
        ("cosine(1, 2, start=3, rounds=9)", "start is given twice"),
        ("cosine(1, 2, 9, 1, 5)", "expected name, found 5"),
        ("cosine(1, rounds=9, 3)", "expected name, found 3|rounds is given twice"),
    ],
)
def test_mistakes_in_schedules(text: str, what: str) -> None:
    with pytest.raises((SettingError, SpecError), match=what):
        fll.parse_scheduled(f"topk(k={text})")


# --- texts ---------------------------------------------------------------------------

#: A text, and what it is in some rounds.
TEXTS = {
    "topk(fraction=cosine(0.5, 0.01, rounds=100)) >> natural()": {
        1: "topk(fraction=0.5) >> natural()",
        100: "topk(fraction=0.01) >> natural()",
        999: "topk(fraction=0.01) >> natural()",
    },
    "powersgd(rank=linear(8, 1, rounds=15))": {
        1: "powersgd(rank=8)",
        2: "powersgd(rank=8)",
        3: "powersgd(rank=7)",
        15: "powersgd(rank=1)",
    },
    "ecsq(step=linear(2, 1, rounds=3))": {1: "ecsq(step=2.0)", 2: "ecsq(step=1.5)"},
    "budget(bytes=exponential(100000, 1000, rounds=3))": {
        2: "budget(bytes=10000)",
        3: "budget(bytes=1000)",
    },
    'budget(bytes=90, method=steps("topk", at=3, then="dither"))': {
        2: 'budget(bytes=90, method="topk")',
        3: "budget(bytes=90)",
    },
    "*.bias: f16(); *: topk(fraction=linear(0.3, 0.1, rounds=3, begin=5))": {
        5: "*.bias: f16(); *: topk(fraction=0.3)",
        6: "*.bias: f16(); *: topk(fraction=0.2)",
    },
    "shrunk(inner=randk(k=steps(9, at=4, then=3)))": {
        3: "shrunk(inner=randk(k=9))",
        4: "shrunk(inner=randk(k=3))",
    },
    "steps(identity(), at=3, then=topk(fraction=0.1) >> natural())": {
        2: "identity()",
        3: "topk(fraction=0.1) >> natural()",
    },
    "topk(k=9) >> steps(f16(), at=3, then=natural())": {
        2: "topk(k=9) >> f16()",
        3: "topk(k=9) >> natural()",
    },
    "topk(fraction=steps(0.5, at=3, then=linear(0.3, 0.1, rounds=9)))": {
        2: "topk(fraction=0.5)",
        3: "topk(fraction=0.25)",
        9: "topk(fraction=0.1)",
    },
    "topk(k=9) >> natural()": {1: "topk(k=9) >> natural()"},
}


@pytest.mark.parametrize("text", TEXTS)
def test_texts_and_their_rounds(text: str) -> None:
    scheduled = fll.parse_scheduled(text)
    for round_, plain in TEXTS[text].items():
        assert scheduled.at(round_) == plain
        rules = fll.parse_rules(plain)  # what clients do
        one = isinstance(rules, Compressor)
        assert (str(rules) if one else "; ".join(map(str, rules))) == plain
    assert str(scheduled) == text
    assert fll.parse_scheduled(str(scheduled)) == scheduled
    dense = text.replace(", ", ",").replace(" >> ", ">>")
    assert fll.parse_scheduled(dense) == scheduled
    assert scheduled.texts[0] == scheduled.at(1)
    assert scheduled.texts[-1] == scheduled.at(MAX_ROUND)
    assert len(set(scheduled.texts)) == len(scheduled.texts)


def test_names_of_schedules_are_no_names_of_compressors() -> None:
    assert not SCHEDULES.keys() & COMPRESSORS.keys()
    assert all(issubclass(cls, Schedule) for cls in SCHEDULES.values())


@pytest.mark.parametrize("text", [t for t in TEXTS if t != "topk(k=9) >> natural()"])
def test_clients_refuse_schedules(text: str) -> None:
    for reader in (fll.parse_rules, ModelCodec):
        with pytest.raises(SpecError, match=r"is a schedule, .* only the server knows"):
            reader(text)


def test_feedbacks_refuse_schedules() -> None:
    with pytest.raises(SettingError, match="found a schedule; memories at both ends"):
        feedback.named("ef21sgdm(momentum=linear(0.5, 0.1, rounds=9))")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("topk(fraction=linear(0.5, 0, rounds=9))", "in round 9: topk: .*found 0"),
        ("topk(fraction=linear(0, 0.5, rounds=9, begin=7))", "in round 1: topk"),
        ("topk(fraction=steps(0.5, at=8, then=2))", "in round 8: topk: .*found 2"),
        ('topk(k=steps(9, at=8, then="a"))', "in round 8: spec: topk.k. takes int"),
        ("topk(k=steps(9, at=8, then=f16()))", "in round 8: spec: topk.k. takes int"),
        ("steps(f16(), at=8, then=9)", "in round 8: spec: expected a compressor"),
        ("cosine(1, 2, rounds=9)", "in round 1: spec: expected a compressor"),
        ("steps(f16(), at=8, then=nothing())", "in round 8: .*no compressor 'nothing'"),
        ("steps(f16() >> f16(), at=8, then=f16())", "in round 1: >>: f16"),
        (
            "*: topk(k=9); a: topk(k=linear(9, -9, rounds=9))",
            "in round .: topk: .*k of",
        ),
        ("topk(k=0)", "^topk: expected k of at least 1"),
    ],
)
def test_a_round_without_valid_settings_is_named(text: str, what: str) -> None:
    with pytest.raises((SettingError, SpecError), match=what):
        fll.parse_scheduled(text)


def test_what_is_wrong_only_between_the_ends_is_found() -> None:
    """Two ramps whose ends go together, and whose middles do not."""
    ends = "spherical(alpha={}, block={})"
    fll.parse(ends.format(0.02, 4))
    fll.parse(ends.format(0.9, 64))
    text = ends.format("linear(0.02, 0.9, rounds=1001)", "linear(4, 64, rounds=1001)")
    with pytest.raises(SettingError, match=r"in round \d+: spherical"):
        fll.parse_scheduled(text)


def test_length_and_depth_are_bounded() -> None:
    with pytest.raises(SpecError, match=f"at most {MAX_LENGTH} are read"):
        fll.parse_scheduled("topk(k=9)" + " " * MAX_LENGTH)
    opening, closing = "steps(1, at=2, then=", ")"
    deepest = "topk(k=" + opening * MAX_DEPTH + "1" + closing * MAX_DEPTH + ")"
    assert fll.parse_scheduled(deepest).texts == ("topk(k=1)",)
    with pytest.raises(SpecError, match=f"nested deeper than {MAX_DEPTH}"):
        fll.parse_scheduled(
            f"topk(k={opening * (MAX_DEPTH + 1)}1{')' * (MAX_DEPTH + 2)}"
        )
    # A text may be short, and long only in some round.
    many = "aaaaaaaa: exact();" * 220 + "*: topk(k=steps(1, at=2, then=9999))"
    assert len(many) <= MAX_LENGTH
    with pytest.raises(SpecError, match="in round 1: spec: a text of"):
        fll.parse_scheduled(many)


# --- state ---------------------------------------------------------------------------


def model_update(seed: int) -> dict[str, torch.Tensor]:
    rng = fll.rng.stream(seed, "update")
    return {"a/w": rng.normal(40, 30), "a/b": rng.normal(41), "c": rng.normal(30, 40)}


def test_a_rank_that_changes_starts_anew() -> None:
    """The message after a change is that of a client without state."""
    scheduled = fll.parse_scheduled("powersgd(rank=steps(4, at=3, then=2))")
    state: dict[str, torch.Tensor] = {}
    for round_ in range(1, 6):
        codec = ModelCodec(scheduled.at(round_))
        update, rng = model_update(round_), fll.rng.stream(round_)
        data, after = codec.encode(update, state, rng)
        fresh, _ = codec.encode(update, {}, rng)
        assert (data == fresh) == (round_ in (1, 3))
        state = after
        assert {k: v.shape[1] for k, v in state.items()} == dict.fromkeys(
            ("a/w/right", "c/right"), 4 if round_ < 3 else 2
        )


#: All that have a state, and some that have none.
WITH_STATE = [c for c in INSTANCES if c.init((20, 15))]
TAKING_OVER = [*WITH_STATE, *[c for c in INSTANCES if not c.init((20, 15))][::9]]


@pytest.mark.parametrize("before", WITH_STATE, ids=str)
def test_state_of_another_compressor_is_used_where_it_fits_or_dropped(
    before: Compressor,
) -> None:
    update = {"w": fll.rng.stream(1).normal(20, 15)}
    layout = layout_of(update)
    codec, rng = ModelCodec(before), fll.rng.stream(2)
    _, left = codec.encode(update, codec.init(layout), rng)
    assert left
    for compressor in TAKING_OVER:
        after = ModelCodec(compressor)
        start = after.init(layout)
        data, state = after.encode(update, left, rng)
        assert {k: v.shape for k, v in state.items()} == {
            k: v.shape for k, v in start.items()
        }
        assert ModelCodec.decode(data, layout)["w"].shape == (20, 15)
        if {k: v.shape for k, v in left.items()} != {
            k: v.shape for k, v in start.items()
        }:
            fresh, _ = after.encode(update, start, rng)
            assert data == fresh, f"{before} then {compressor}"


def test_importance_weights_outlive_a_change_of_k() -> None:
    """They belong to the entries, whatever share of them is sent."""
    scheduled = fll.parse_scheduled(
        "md_weighted_greedy(fraction=linear(0.5, 0.1, rounds=5), refresh=3)"
    )
    weights = torch.arange(1.0, 101.0)
    state = {"w/weights": weights, "w/age": torch.zeros(1)}
    ages = []
    for round_ in range(1, 6):
        update = {"w": fll.rng.stream(round_).normal(10, 10)}
        data, state = ModelCodec(scheduled.at(round_)).encode(
            update, state, fll.rng.stream(0)
        )
        assert torch.equal(state["w/weights"], weights)
        ages.append(int(state["w/age"]))
        kept = int((ModelCodec.decode(data, layout_of(update))["w"] != 0).sum())
        assert kept == 60 - 10 * round_
    assert ages == [1, 2, 0, 1, 2]


def test_a_rank_that_is_the_same_keeps_its_start() -> None:
    """More iterations are no other state."""
    shape = (40, 30)
    x = fll.rng.stream(0).normal(*shape)
    _, state = PowerSgd(2).encode(x, PowerSgd(2).init(shape), fll.rng.stream(1))
    codec = ModelCodec("powersgd(rank=2, num_iterations=2)")
    old = {f"w/{k}": v for k, v in state.items()}
    warm, _ = codec.encode({"w": x}, old, fll.rng.stream(2))
    cold, _ = codec.encode({"w": x}, {}, fll.rng.stream(2))
    assert warm != cold
