"""Feedback: the algebra of the memories, and what they do to convergence."""

from __future__ import annotations

import random
from functools import cache

import pytest
import torch
from torch import Tensor

import fl_lowrank as fll
from fl_lowrank.errors import SettingError
from fl_lowrank.feedback import (
    EF,
    EF21,
    EF21SGDM,
    Dasha,
    Diana,
    Feedback,
    Plain,
    check_pair,
    named,
)
from fl_lowrank.types import (
    Contractive,
    Exact,
    Guarantee,
    NoGuarantee,
    Unbiased,
    weakest,
)

#: One of each, with rates that are exact in binary.
EVERY = (Plain(), EF(), EF21(), EF21SGDM(0.25), Diana(0.125), Dasha(0.25))
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


@pytest.mark.parametrize("feedback", EVERY, ids=str)
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


@pytest.mark.parametrize("feedback", EVERY, ids=str)
def test_a_memory_starts_at_zero_and_says_whether_it_is_one(feedback: Feedback) -> None:
    u = update(3, torch.float32)
    memory = feedback.init(u)
    assert bool(memory) == feedback.has_memory
    assert len(memory) == len(feedback.slots) * len(u)
    assert feedback.fits(memory, SHAPES)
    for key, m in memory.items():
        name = key.rpartition("/")[2]
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


@pytest.mark.parametrize("feedback", [f for f in EVERY if f.has_share], ids=str)
def test_both_ends_stay_equal_whatever_happens_to_the_messages(
    feedback: Feedback,
) -> None:
    """The receiver's sum of shares equals the shared vector, bit for bit."""
    fates = random.Random(6)
    zero = {k: torch.zeros(s).double() for k, s in SHAPES.items()}
    memory, receiver = feedback.init(zero), dict(zero)
    for turn in range(150):
        under_way, to_send = feedback.prepare(memory, update(turn))
        assert feedback.fits(under_way, SHAPES)
        assert all(torch.equal(under_way[k], memory[k]) for k in zero)
        sent = compressed(to_send, turn)
        arrives = fates.random() < 0.6
        memory = feedback.settle(under_way, sent, applied=arrives)
        if arrives:
            receiver = plus(receiver, feedback.share(sent))
        assert all(torch.equal(memory[k], receiver[k]) for k in zero)
    assert all(bool(memory[k].any()) for k in zero if zero[k].numel())


def test_ef21_sends_the_distance_to_the_update() -> None:
    u = update(9)
    memory = {k: v + 1.0 for k, v in u.items()}
    assert close(EF21().prepare(memory, u)[1], {k: u[k] - memory[k] for k in u})


def test_ef21sgdm_follows_a_running_mean() -> None:
    """It starts at the first update and moves also when messages are lost."""
    feedback, mean = EF21SGDM(momentum=0.25), update(0)
    memory = feedback.init(mean)
    for turn in range(20):
        u = update(turn)
        mean = u if turn == 0 else {k: 0.75 * mean[k] + 0.25 * u[k] for k in u}
        memory, to_send = feedback.prepare(memory, u)
        assert close(plus({k: memory[k] for k in u}, to_send), mean)
        sent = compressed(to_send, turn)
        memory = feedback.settle(memory, sent, applied=turn % 3 > 0)


def test_ef21sgdm_with_momentum_1_is_ef21() -> None:
    one, other = EF21().init(update(0)), EF21SGDM(1.0).init(update(0))
    for turn in range(10):
        one, a = EF21().prepare(one, update(turn))
        other, b = EF21SGDM(1.0).prepare(other, update(turn))
        assert close(a, b)
        sent = compressed(a, turn)
        one = EF21().settle(one, sent, applied=True)
        other = EF21SGDM(1.0).settle(other, sent, applied=True)


def test_diana_moves_its_shift_by_a_part_of_what_arrived() -> None:
    u, c = update(1), update(2)
    memory = Diana(0.125).settle(u, c, applied=True)
    assert close(memory, {k: u[k] + 0.125 * c[k] for k in u})


def test_dasha_without_compression_follows_the_update() -> None:
    """Also after a lost message: what g was last told of comes back with it."""
    feedback = Dasha(rate=0.25)
    memory = feedback.init(update(0))
    for turn in range(12):
        memory, to_send = feedback.prepare(memory, update(turn))
        memory = feedback.settle(memory, to_send, applied=turn % 4 != 2)
        if turn % 4 != 2:
            assert close({k: memory[k] for k in SHAPES}, update(turn))


def test_estimates_of_the_mean() -> None:
    """Two members of weights 1 and 3; the second sends, and has a vector already."""
    total = {"w": torch.tensor([8.0]), "b": torch.tensor([4.0])}
    arrived = {"w": torch.tensor([6.0]), "b": torch.tensor([-3.0])}
    expected = {
        "plain": (2.0, -1.0),
        "ef": (2.0, -1.0),
        "ef21": (14.0 / 4 * 0.75, 1.0 / 4 * 0.75),
        "ef21sgdm": (14.0 / 4 * 0.75, 1.0 / 4 * 0.75),
        "diana": (8.0 / 4 + 6.0 / 3, 4.0 / 4 - 3.0 / 3),
        "dasha": (14.0 / 4 * 0.75, 1.0 / 4 * 0.75),
    }
    for feedback in EVERY:
        found = feedback.estimate(total, arrived, 3.0, 4.0)
        assert (float(found["w"]), float(found["b"])) == expected[feedback.name]
        first = feedback.estimate({}, arrived, 3.0, 3.0)  # nobody has a vector yet
        assert (float(first["w"]), float(first["b"])) == (2.0, -1.0)


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


@pytest.mark.parametrize("feedback", EVERY, ids=str)
def test_text_rebuilds_it(feedback: Feedback) -> None:
    assert named(str(feedback)) == feedback


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ef22", r"no 'ef22'; there are plain, ef, ef21, ef21sgdm, diana, dasha"),
        ("ef(rate=1)", r"ef does not take 'rate=1'; its settings: precision"),
        ("plain(rate=1)", r"plain does not take 'rate=1'; its settings: none"),
        ("ef(precision=int8)", "float16, bfloat16, float32, found 'int8'"),
        ("ef21(precision=bfloat16)", "ef21 does not take 'precision=bfloat16'"),
        ("diana(precision=float16)", "diana does not take 'precision=float16'"),
        ("dasha(precision=float16)", "dasha does not take 'precision=float16'"),
        ("diana(rate=0)", r"expected rate in \(0, 1\], found 0.0"),
        ("diana(rate=1, rate=1)", "each once"),
        ("dasha(rate=1-1)", "takes numbers, found '1-1'"),
        ("dasha(0.1)", "does not take '0.1'; its settings: rate"),
        ("ef21sgdm(momentum=1.5)", r"expected momentum in \(0, 1\], found 1.5"),
        ("ef21" * 100, "there is no 'ef21ef21"),
    ],
)
def test_bad_texts(text: str, reason: str) -> None:
    with pytest.raises(SettingError, match=reason):
        named(text)


def test_rates_follow_from_the_variance() -> None:
    assert Diana().fitted(Unbiased(4.0)) == Diana(rate=0.25)
    assert Dasha().fitted(Unbiased(4.0)) == Dasha(rate=1 / 7)
    assert Diana(0.5).fitted(Unbiased(4.0)) == Diana(0.5)
    assert Diana().fitted(Exact()) == Diana(1.0)
    with pytest.raises(SettingError, match=r"write diana\(rate="):
        Diana().share(update(0))


SHARP, SMALL, WILD = Contractive(0.1), Unbiased(1.125), Unbiased(10.0)
UNKNOWN = NoGuarantee("nothing is known")


@pytest.mark.parametrize(
    ("feedback", "guarantee", "advice"),
    [
        (EF(), WILD, r"shrunk\(inner"),
        (EF21(), WILD, r"shrunk\(inner"),
        (EF21SGDM(), WILD, r"shrunk\(inner"),
        (Diana(), SHARP, 'use randk, natural_stochastic, .* feedback="ef21"'),
        (Dasha(), UNKNOWN, "found: nothing is known"),
    ],
)
def test_wrong_pairs_are_refused(
    feedback: Feedback, guarantee: Guarantee, advice: str
) -> None:
    with pytest.raises(SettingError, match=advice):
        check_pair(feedback, guarantee, "this")


def test_right_pairs_are_not() -> None:
    for guarantee in (Exact(), SHARP, SMALL, UNKNOWN):
        for feedback in (Plain(), EF(), EF21(), EF21SGDM()):
            check_pair(feedback, guarantee, "this")
    half_precision = Contractive(1.0 - 2.0**-22)
    for guarantee in (Exact(), half_precision, SMALL, WILD):
        check_pair(Diana(), guarantee, "this")
        check_pair(Dasha(), guarantee, "this")
    check_pair(Plain(), WILD, "this")


@pytest.mark.parametrize("feedback", [EF(), EF21(), EF21SGDM()])
@pytest.mark.parametrize(
    "text",
    [
        "topk(fraction=0.1) >> randk(fraction=0.1)",
        "topk(fraction=0.1) >> qsgd(levels=1)",
        "svd(rank=4) >> randk(fraction=0.2)",
        "powersgd(rank=4) >> terngrad()",
        "randk(fraction=0.1) >> topk(fraction=0.5)",
        "topk(fraction=0.1) >> randk(fraction=0.1) >> natural()",
        "flat(inner=topk(fraction=0.1) >> randk(fraction=0.1))",
        "by_size(threshold=9, small=f16(), large=topk(k=9) >> randk(k=1))",
    ],
)
def test_chains_whose_error_grows_are_refused(feedback: Feedback, text: str) -> None:
    found = fll.parse(text).guarantee((60, 40))
    with pytest.raises(SettingError, match=r"can be larger .* shrunk\(inner"):
        check_pair(feedback, found, text)


def test_chains_that_contract_are_not() -> None:
    for text in (
        "topk(fraction=0.1) >> shrunk(inner=randk(fraction=0.1))",
        "svd(rank=4) >> natural()",
        "powersgd(rank=4) >> f16()",
        "topk(fraction=0.1) >> eden(bits=1)",
    ):
        check_pair(EF(), fll.parse(text).guarantee((60, 40)), text)


def test_what_expands_one_part_expands_the_whole() -> None:
    wild = NoGuarantee("the factor is too large", expands=True)
    for others in ([UNKNOWN, wild], [wild, UNKNOWN], [SMALL, wild], [wild, WILD]):
        found = weakest(others)
        assert isinstance(found, NoGuarantee)
        assert found.expands
    beside = weakest([Unbiased(1.5), SHARP])
    assert isinstance(beside, NoGuarantee)
    assert not beside.expands


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
