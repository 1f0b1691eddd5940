"""Feedback: the algebra of the memories, and what they do to convergence."""

from __future__ import annotations

import random
from functools import cache

import pytest
import torch
from torch import Tensor

import fl_lowrank as fll
from fl_lowrank.errors import SettingError
from fl_lowrank.feedback import EF, EF21, FEEDBACKS, Feedback, Plain, named

SHAPES = {"weight": (6, 5), "bias": (7,), "scalar": (), "empty": (0, 2)}


def update(seed: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    return {
        name: fll.rng.stream(seed, name).normal(*shape).to(dtype)
        for name, shape in SHAPES.items()
    }


def compressed(x: dict[str, Tensor], turn: int) -> dict[str, Tensor]:
    """What the receiver decodes from the bytes of a strong compressor."""
    codec = fll.ModelCodec("*: topk(fraction=0.2) >> natural()")
    data, _ = codec.encode(x, {}, fll.rng.stream(turn))
    return codec.decode(data, fll.model.layout_of(x))


def close(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        torch.allclose(a[k], b[k], rtol=1e-12, atol=1e-12) for k in a
    )


def plus(a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v + b[k] for k, v in a.items()}


@pytest.mark.parametrize("feedback", FEEDBACKS.values(), ids=list(FEEDBACKS))
def test_nothing_changes_its_arguments(feedback: Feedback) -> None:
    u, v = update(1), update(2)
    memory, _ = feedback.prepare(feedback.init(u), u)
    for applied in (True, False):
        before = [
            {k: t.clone() for k, t in tensors.items()} for tensors in (memory, u, v)
        ]
        under_way, to_send = feedback.prepare(memory, u) if memory else ({}, {})
        settled = feedback.settle(under_way, v, applied=applied)
        shared = feedback.share(v)
        for result in (under_way, to_send, settled, shared):
            result["new"] = torch.zeros(1)  # the caller may rearrange what it gets
        for tensors, copy in zip((memory, u, v), before, strict=True):
            assert list(tensors) == list(copy)
            assert all(torch.equal(tensors[k], copy[k]) for k in copy)


@pytest.mark.parametrize("feedback", FEEDBACKS.values(), ids=list(FEEDBACKS))
def test_a_memory_starts_at_zero_and_says_whether_it_is_one(feedback: Feedback) -> None:
    u = update(3, torch.float32)
    memory = feedback.init(u)
    assert bool(memory) == feedback.has_memory
    for name, m in memory.items():
        assert (m.shape, m.dtype) == (u[name].shape, u[name].dtype)
        assert not bool(m.any())
    under_way, to_send = feedback.prepare(memory, u)
    assert close(to_send, u)  # the first message is that of the bare compressor
    lost = feedback.settle(under_way, to_send, applied=False)
    assert bool(feedback.share(to_send)) == feedback.has_share
    assert bool(lost) == feedback.has_memory


def test_plain_remembers_nothing() -> None:
    u = update(4)
    memory, to_send = Plain().prepare({}, u)
    assert memory == {}
    assert close(to_send, u)
    assert Plain().settle(memory, u, applied=True) == {}
    assert Plain().share(u) == {}


def test_ef_loses_nothing_whatever_happens_to_its_messages() -> None:
    """Sum of updates = applied + memory, over 150 turns of which 40% are lost."""
    fates = random.Random(5)
    feedback = EF()
    updates, applied = ({k: torch.zeros(s).double() for k, s in SHAPES.items()},) * 2
    memory = feedback.init(updates)
    num_lost = 0
    for turn in range(150):
        u = update(turn)
        updates = plus(updates, u)
        memory, to_send = feedback.prepare(memory, u)
        assert close(to_send, memory)
        sent = compressed(to_send, turn)
        arrives = fates.random() < 0.6
        num_lost += not arrives
        memory = feedback.settle(memory, sent, applied=arrives)
        if arrives:
            applied = plus(applied, sent)
        assert close(updates, plus(applied, memory))
    assert 30 < num_lost < 90
    assert all(bool(m.any()) for m in memory.values() if m.numel())


def test_ef21_keeps_both_ends_equal_whatever_happens_to_its_messages() -> None:
    """The receiver's sum of shares equals the sum of memories, bit for bit."""
    fates = random.Random(6)
    feedback = EF21()
    zero = {k: torch.zeros(s).double() for k, s in SHAPES.items()}
    memory, receiver = feedback.init(zero), dict(zero)
    for turn in range(150):
        u = update(turn)
        under_way, to_send = feedback.prepare(memory, u)
        assert close(under_way, memory)
        assert close(plus(memory, to_send), u)
        sent = compressed(to_send, turn)
        arrives = fates.random() < 0.6
        memory = feedback.settle(under_way, sent, applied=arrives)
        if arrives:
            receiver = plus(receiver, feedback.share(sent))
        assert all(torch.equal(memory[k], receiver[k]) for k in zero)
    assert all(bool(m.any()) for m in memory.values() if m.numel())


def test_ef21_finds_a_constant_update() -> None:
    u = update(7)
    memory = EF21().init(u)
    for turn in range(60):
        memory, to_send = EF21().prepare(memory, u)
        memory = EF21().settle(memory, compressed(to_send, turn), applied=True)
    assert close(memory, u)


def test_memories_keep_their_own_precision() -> None:
    memory = {"w": torch.ones(3, dtype=torch.float64)}
    sent = {"w": torch.ones(3, dtype=torch.float16) / 4}
    for feedback in (EF(), EF21()):
        settled = feedback.settle(memory, sent, applied=True)
        assert settled["w"].dtype == torch.float64
    assert float(EF().settle(memory, sent, applied=True)["w"][0]) == 0.75
    assert float(EF21().settle(memory, sent, applied=True)["w"][0]) == 1.25


def test_names() -> None:
    assert [named(name).name for name in FEEDBACKS] == ["plain", "ef", "ef21"]
    with pytest.raises(SettingError, match=r"no 'ef22'; there are plain, ef, ef21"):
        named("ef22")


# --- convergence ---------------------------------------------------------------------

NUM_CLIENTS, DIMENSION, STEP, NUM_ROUNDS = 6, 12, 0.05, 600


@cache
def quadratics() -> tuple[Tensor, Tensor]:
    """Hessians with eigenvalues from 0.5 to 2, and minima far apart."""
    rng = fll.rng.stream(0, "quadratics")
    square = rng.normal(NUM_CLIENTS, DIMENSION, DIMENSION).double()
    bases = torch.linalg.qr(square).Q
    eigenvalues = torch.linspace(0.5, 2.0, DIMENSION, dtype=torch.float64)
    minima = 3.0 * rng.child("minima").normal(NUM_CLIENTS, DIMENSION).double()
    return bases @ torch.diag(eigenvalues) @ bases.mT, minima


def gradients(x: Tensor) -> Tensor:
    hessians, minima = quadratics()
    return torch.einsum("nij,nj->ni", hessians, x - minima)


@cache
def gradient_norm_after(name: str) -> float:
    """Norm of the mean gradient after descent with ``topk(k=1)`` on all clients."""
    feedback, compressor = named(name), fll.parse("topk(k=1)")
    x = torch.zeros(DIMENSION, dtype=torch.float64)
    memories = [feedback.init({"x": x}) for _ in range(NUM_CLIENTS)]
    shared = torch.zeros_like(x)
    for _ in range(NUM_ROUNDS):
        applied = torch.zeros_like(x)
        for i, gradient in enumerate(gradients(x)):
            memory, to_send = feedback.prepare(memories[i], {"x": gradient})
            payload, _ = compressor.encode(to_send["x"], {}, fll.rng.stream(0))
            sent = {"x": fll.decode(payload)}
            memories[i] = feedback.settle(memory, sent, applied=True)
            if feedback.has_share:
                shared = shared + feedback.share(sent)["x"]
            applied = applied + sent["x"]
        x = x - STEP * (shared if feedback.has_share else applied) / NUM_CLIENTS
    return float(gradients(x).mean(0).norm())


def test_convergence_on_heterogeneous_quadratics() -> None:
    """EF21 reaches the minimum, EF a floor, the bare compressor stalls.

    Norm of the mean gradient, 5.9 at the start, after 600 rounds of step 0.05: 3.6
    without memory, 0.80 with EF (0.42 at step 0.02), 6e-15 with EF21.
    """
    start = float(gradients(torch.zeros(DIMENSION, dtype=torch.float64)).mean(0).norm())
    plain, ef, ef21 = (gradient_norm_after(name) for name in ("plain", "ef", "ef21"))
    assert plain > 0.5 * start
    assert 0.1 < ef < plain / 4
    assert ef21 < 1e-10
