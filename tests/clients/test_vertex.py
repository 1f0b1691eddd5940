"""Mail room and vertices together: the mean, lost messages, lost memories."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fl_lowrank import rng, topology
from fl_lowrank.consensus import (
    Averaging,
    Choco,
    Flows,
    Pairs,
    Tracking,
    contractive,
    draw_edges,
    draw_matching,
    due,
)
from fl_lowrank.grouping import layout_of
from fl_lowrank.mixing import max_degree, metropolis
from fl_lowrank.model import ModelCodec
from tests.clients.post_office import PostOffice, Training, idle, noisy, pulled

CYCLE = topology.cycle(4)
MIXING = max_degree(CYCLE)
MODEL = {
    "weight": rng.stream(1, "weight").normal(8, 10),
    "bias": 1.0 + rng.stream(1, "bias").normal(16),
}
TOPK = str(contractive(ModelCodec("topk(fraction=0.3)"), layout_of(MODEL)))

Edges = Callable[[int], Tensor]
EVERY = torch.arange(len(CYCLE.edges))


def every_third(step: int) -> Tensor:
    return EVERY if step % 3 == 0 else EVERY[:0]


def unequal(step: int) -> Tensor:
    return due(CYCLE, step, [1, 1, 2, 2]).nonzero().reshape(-1)


#: Flows, codec and edges of the algorithms.
ALGORITHMS: dict[str, tuple[Flows, str, Edges]] = {
    "consensus": (Averaging(MIXING, MIXING), "identity()", lambda _: EVERY),
    "every third": (Averaging(MIXING, MIXING), "identity()", every_third),
    "unequal": (Averaging(MIXING, MIXING), "identity()", unequal),
    "gossip": (
        Pairs(CYCLE),
        "identity()",
        lambda step: draw_edges(CYCLE, 3, rng.stream(2, step)),
    ),
    "matching": (
        Pairs(CYCLE),
        "identity()",
        lambda step: draw_matching(CYCLE, 2, rng.stream(2, step)),
    ),
    "choco": (Tracking(MIXING, MIXING, 0.3), TOPK, lambda _: EVERY),
    "choco, unequal": (Tracking(MIXING, MIXING, 0.3), TOPK, unequal),
}


def office(name: str, loss: float = 0.0, seed: int = 0) -> tuple[PostOffice, Edges]:
    flows, codec, edges = ALGORITHMS[name]
    return PostOffice(flows, MODEL, codec, loss=loss, seed=seed), edges


def drift(name: str, num_rounds: int, loss: float, train: Training) -> float:
    """Largest move of the mean plus undelivered flows, over the mean's norm."""
    post, edges = office(name, loss)
    worst = 0.0
    for number in range(num_rounds):
        post.round(number, edges(number), train)
        if number % 10 == 9 or number == num_rounds - 1:
            worst = max(worst, float(post.missing().norm() / post.total.norm()))
    assert post.num_mixed > num_rounds / 3
    # The mean itself, once all flows have come.
    post.loss = 0.0
    post.round(num_rounds, EVERY, idle)
    late = float((post.models().sum(dim=0) - post.total).norm() / post.total.norm())
    return max(worst, late)


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("loss", [0.0, 0.2])
@pytest.mark.parametrize("train", [noisy(0.03), pulled], ids=["noise", "pull"])
def test_the_mean_and_what_is_owed_stay(
    name: str, loss: float, train: Training
) -> None:
    assert drift(name, 24, loss, train) < 1e-13


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("train", [noisy(0.03), pulled], ids=["noise", "pull"])
def test_so_they_do_over_ten_thousand_rounds(name: str, train: Training) -> None:
    found = drift(name, 10_000, 0.2, train)
    print(f"the mean has moved by {found:.2g} of its norm")
    assert found < 1e-12


def test_a_flow_that_is_not_owed_moves_the_mean() -> None:
    """What the test above would miss: flows that are forgotten when a message is."""
    post, edges = office("consensus", loss=0.2)
    for number in range(30):
        post.round(number, edges(number), noisy(0.03))
        for box in post.room.boxes:
            if box.flow is not None and number % 5 == 4:
                box.flow = None
    assert float(post.missing().norm() / post.total.norm()) > 1e-3


@pytest.mark.parametrize("name", ["unequal", "gossip", "choco"])
def test_all_agree_in_the_end(name: str) -> None:
    post, edges = office(name, loss=0.2)
    for number in range(6):
        post.round(number, edges(number), noisy(0.3))
    before = post.distance()
    for number in range(6, 66):
        post.round(number, edges(number), idle)
    assert before > 0.1
    assert post.distance() < 0.05 * before


@pytest.mark.parametrize("name", ["consensus", "choco"])
def test_a_vertex_that_was_away_comes_back(name: str) -> None:
    post, edges = office(name, loss=0.2)
    for number in range(5):
        post.round(number, edges(number), noisy(0.3))
    post.away = {2}
    mixed = post.num_mixed
    for number in range(5, 25):
        post.round(number, edges(number), noisy(0.3) if number < 10 else idle)
    assert post.num_mixed > mixed + 10  # the others went on
    apart = post.distance()
    post.away = set()
    for number in range(25, 75):
        post.round(number, edges(number), idle)
    assert post.distance() < 0.05 * apart
    assert float(post.missing().norm() / post.total.norm()) < 1e-7


def test_a_vertex_without_memory_restarts_from_its_public_copy() -> None:
    post, edges = office("consensus")
    for number in range(5):
        post.round(number, edges(number), noisy(0.3))
    flow, copy = post.room.boxes[1].flow, post.room.public[1].clone()
    assert flow is not None
    post.memories[1] = None
    post.round(5, EVERY, idle)  # it says so
    assert post.memories[1] is None
    assert not post.room.boxes[1].known
    post.away = {0, 2, 3}
    post.round(6, EVERY, idle)
    memory = post.memories[1]
    assert memory is not None
    torch.testing.assert_close(post.model(memory), copy.double() + flow)
    # Its model was as the copy: nothing is lost at all.
    assert float(post.missing().norm() / post.total.norm()) < 1e-7


@pytest.mark.parametrize("name", ["consensus", "choco"])
def test_an_older_memory_is_not_taken_for_the_newest(name: str) -> None:
    """A client that dies after its reply has left forgets that it ever answered."""
    post, edges = office(name)
    for number in range(4):
        post.round(number, edges(number), noisy(0.3))
    old = post.memories[1]
    post.round(4, EVERY, noisy(0.3))
    apart, before = post.distance(), post.room.public.clone()
    post.memories[1] = old
    post.round(5, EVERY, idle)
    assert torch.equal(post.room.public[1], before[1])  # nothing came from it
    for number in range(6, 40):
        post.round(number, EVERY, idle)
    assert post.distance() < 0.05 * apart
    # Where copies are exact, so is the restart.
    missing = float(post.missing().norm() / post.total.norm())
    assert (missing < 1e-7) == (name == "consensus")


@pytest.mark.parametrize("text", ["topk(fraction=0.3)", "randk(fraction=0.4)"])
def test_compressed_it_is_choco(text: str) -> None:
    layout = layout_of(MODEL)
    codec = contractive(ModelCodec(text), layout)
    flows = Tracking(MIXING, metropolis(CYCLE), 0.3)
    post = PostOffice(flows, MODEL, str(codec))
    choco = Choco(MIXING, codec, layout, 0.3)
    x = post.room.public.clone()
    state = choco.init(x)
    for number in range(8):
        train = noisy(0.1)
        post.round(number, EVERY, train)
        rows = [train(i, number, post.room.rows.cut(row)) for i, row in enumerate(x)]
        x = torch.stack([post.room.rows.join(row) for row in rows])
        x, state, sizes = choco.step(x, state, _Draws(number))  # type: ignore[arg-type]
    post.round(8, EVERY, idle)
    assert torch.equal(post.models(), x.double() + state.rest)
    assert int(sizes[0]) > 0


class _Draws:
    """The streams of `PostOffice`."""

    def __init__(self, number: int) -> None:
        self.number = number

    def child(self, vertex: int) -> rng.Rng:
        return rng.stream(7, self.number, vertex)


def test_bytes_are_counted_by_edge() -> None:
    post, _ = office("gossip")
    post.round(0, torch.tensor([0, 1, 0]), idle)  # edge 0 twice
    size = int(post.room.edges.bytes[1]) // 2
    assert post.room.edges.messages.tolist() == [4, 2, 0, 0]
    assert post.room.edges.bytes.tolist() == [4 * size, 2 * size, 0, 0]
    assert 4 * 96 < size < 4 * 96 + 64
    totals = post.room.edges.totals()
    assert totals["bytes_per_edge"] == 6 * size / 4
    assert totals["bytes_per_edge_most"] == 4 * size
    # A public copy is sent to all neighbours, also where an edge rests.
    post, _ = office("choco")
    post.round(0, torch.tensor([0]), idle)
    assert post.room.edges.messages.tolist() == [2, 1, 1, 0]
