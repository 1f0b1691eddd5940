"""Error feedback that stores its error in two bytes an entry."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

import fl_lowrank as fll
from fl_lowrank.errors import InputError
from fl_lowrank.feedback import EF, named

#: Unit roundoff, and half of the smallest number.
ROUNDING = {
    "float16": (torch.float16, 2.0**-11, 2.0**-25),
    "bfloat16": (torch.bfloat16, 2.0**-8, 2.0**-134),
}
EACH = pytest.mark.parametrize("precision", ROUNDING)
SHAPES = {"weight": (20, 15), "bias": (7,), "scalar": (), "empty": (0, 2)}


def update(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {
        name: fll.rng.stream(seed, name).normal(*shape).to(dtype)
        for name, shape in SHAPES.items()
    }


def compressed(x: dict[str, Tensor], turn: int, text: str) -> dict[str, Tensor]:
    codec = fll.ModelCodec(text)
    data, _ = codec.encode(x, {}, fll.rng.stream(turn))
    return codec.decode(data, fll.model.layout_of(x))


@EACH
@pytest.mark.parametrize("text", ["topk(fraction=0.2)", "ecsq(nmse=0.1)"])
def test_what_is_stored_is_what_is_sent_and_later_added(
    precision: str, text: str
) -> None:
    """Sum of updates = applied + memory + roundings, each of them small.

    Over 50 turns of which 40% are lost; in float64 beside it.
    """
    dtype, relative, absolute = ROUNDING[precision]
    fates = random.Random(7)
    feedback = EF(precision)
    memory = feedback.init(update(0))
    gap = {k: torch.zeros(s).double() for k, s in SHAPES.items()}
    allowed = {k: v.clone() for k, v in gap.items()}
    for turn in range(50):
        u = update(turn)
        stored, to_send = feedback.prepare(memory, u)
        sent = compressed(to_send, turn, text)
        arrives = fates.random() < 0.6
        after = feedback.settle(stored, sent, applied=arrives)
        for k, m in stored.items():
            assert (m.dtype, after[k].dtype) == (dtype, dtype)
            assert to_send[k].dtype == torch.float32
            assert torch.equal(m.float(), to_send[k])
            whole = memory[k].double() + u[k].double()
            off = (m.double() - whole).abs()
            # The sum itself is rounded to float32 before.
            bound = whole.abs() * (relative + 2.0**-22) + absolute
            assert bool((off <= bound).all())
            allowed[k] += bound
            arrived = sent[k].double() if arrives else 0.0
            left = m.double() - arrived
            if arrives:
                allowed[k] += left.abs() * (relative + 2.0**-22) + absolute
            gap[k] += u[k].double() - arrived
            assert bool(((gap[k] - after[k].double()).abs() <= allowed[k] + 1e-9).all())
        memory = after
    assert bool(memory["weight"].any())
    # Rounding was real: the law holds only with its allowance.
    weight = (gap["weight"] - memory["weight"].double()).abs()
    assert float(weight.max()) > 0.1 * relative


@EACH
def test_nothing_is_stored_of_what_arrived_exactly(precision: str) -> None:
    feedback, u = EF(precision), update(3)
    stored, to_send = feedback.prepare(feedback.init(u), u)
    settled = feedback.settle(stored, to_send, applied=True)
    assert not any(bool(m.any()) for m in settled.values())


def floor(feedback: EF) -> float:
    """Distance to the optimum of a mean of quadratics after 400 rounds with TopK."""
    num_clients, size, step = 8, 60, 0.2
    targets = [fll.rng.stream(i, "target").normal(size) for i in range(num_clients)]
    x = torch.zeros(size)
    memories = [feedback.init({"w": x})] * num_clients
    for _ in range(400):
        mean = torch.zeros(size)
        for i, target in enumerate(targets):
            memory, to_send = feedback.prepare(memories[i], {"w": step * (target - x)})
            largest = to_send["w"].abs().topk(size // 5).indices
            sent = torch.zeros(size).index_copy(0, largest, to_send["w"][largest])
            memories[i] = feedback.settle(memory, {"w": sent}, applied=True)
            mean += sent / num_clients
        x = x + mean
    optimum = torch.stack(targets).mean(0)
    return float((x - optimum).norm() / optimum.norm())


def test_training_ends_where_it_does_with_whole_numbers() -> None:
    usual = floor(EF())
    assert usual < 0.5
    for precision in ROUNDING:
        assert floor(EF(precision)) < 1.05 * usual


def test_what_does_not_fit_is_refused_with_what_to_do() -> None:
    u = {"w": torch.tensor([1.0, -70_000.0])}
    feedback = EF("float16")
    with pytest.raises(InputError, match=r"up to 7e\+04 .* use precision=bfloat16"):
        feedback.prepare(feedback.init(u), u)
    stored, _ = EF("bfloat16").prepare(EF("bfloat16").init(u), u)
    assert bool(torch.isfinite(stored["w"]).all())
    largest = {"w": torch.tensor([torch.finfo(torch.float32).max])}
    with pytest.raises(InputError, match="leave it out"):
        EF("bfloat16").prepare(EF("bfloat16").init(largest), largest)


def test_sums_are_computed_in_the_precision_of_updates() -> None:
    feedback = EF("float32")
    u = update(1, torch.float64)
    stored, to_send = feedback.prepare(feedback.init(u), u)
    assert {m.dtype for m in stored.values()} == {torch.float32}
    assert {m.dtype for m in to_send.values()} == {torch.float64}


def test_text_rebuilds_it() -> None:
    assert str(EF()) == "ef"
    assert str(EF("bfloat16")) == "ef(precision=bfloat16)"
    assert named("ef(precision = float16)") == EF("float16")
    assert named("ef(precision=bfloat16)").fits({"w": torch.zeros(3)}, {"w": (3,)})
