"""What rounding keeps back is kept: no flow moves the mean, whatever pulls."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fl_lowrank import rng, topology
from fl_lowrank.consensus import (
    Averaging,
    Flows,
    Pairs,
    draw_edges,
    draw_matching,
    due,
    rest,
)
from fl_lowrank.mixing import Mixing, fastest, metropolis
from fl_lowrank.topology import Topology

GRAPHS = {
    "cycle 4": topology.cycle(4),
    "torus": topology.torus(6, 6),
    "complete": topology.complete(4),
    "star": topology.star(9),
}
Active = Callable[[int], Tensor]
Train = Callable[[Tensor, int], Tensor]


def averaging(graph: Topology) -> Averaging:
    return Averaging(metropolis(graph), metropolis(graph))


def algorithms(graph: Topology) -> dict[str, tuple[Flows, Active]]:
    n, every = graph.num_nodes, torch.arange(len(graph.edges))
    periods, source = [(1, 2, 4)[i % 3] for i in range(n)], rng.stream(6, "gossip")
    none = every[:0]
    return {
        "consensus": (averaging(graph), lambda _: every),
        "every third step": (averaging(graph), lambda k: none if k % 3 else every),
        "own periods": (
            averaging(graph),
            lambda k: due(graph, k, periods).nonzero().reshape(-1),
        ),
        "gossip": (Pairs(graph), lambda k: draw_edges(graph, n, source.child(k))),
        "gossip on matchings": (
            Pairs(graph),
            lambda k: draw_matching(graph, n, source.child(k)),
        ),
    }


def mix(x: Tensor, kept: Tensor, flows: Flows, edges: Tensor) -> None:
    ends = flows.topology.vertices_at(edges)
    rest.gain(x, kept, lambda part: flows.of(y := x[:, part], y.shape[1], edges), ends)


def pull(n: int, d: int) -> Train:
    """The same at every step: a fifth of the way to a target of its own."""
    targets = 1.0 + rng.stream(8, "targets").normal(n, d)
    return lambda x, _: x - 0.2 * (x - targets.to(x.dtype))


def noise(n: int, d: int) -> Train:
    source = rng.stream(8, "noise")
    return lambda x, k: x - 0.01 * source.child(k).normal(n, d).to(x.dtype)


def drift(
    graph: Topology,
    rule: tuple[Flows, Active],
    train: Train,
    num_steps: int,
    *,
    dtype: torch.dtype = torch.float32,
    forgets: bool = False,
) -> tuple[float, float]:
    """Moves of the mean of x and rest, and of x alone, over its norm."""
    d = 32
    x = (1.0 + rng.stream(8, "start").normal(d)).to(dtype).repeat(graph.num_nodes, 1)
    kept = torch.zeros_like(x, dtype=rest.DTYPE)
    mean = x.double().mean(dim=0)
    flows, active = rule
    for k in range(num_steps):
        before = x
        x = train(x, k)
        mean += (x.double() - before.double()).mean(dim=0)
        x = x.clone()
        mix(x, kept, flows, active(k))
        if forgets:
            kept.zero_()
    whole = (rest.total(x, kept).mean(dim=0) - mean).norm() / mean.norm()
    return float(whole), float((x.double().mean(dim=0) - mean).norm() / mean.norm())


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("train", [pull, noise])
@pytest.mark.parametrize("algorithm", algorithms(GRAPHS["cycle 4"]))
def test_the_mean_stays(
    algorithm: str, train: Callable[[int, int], Train], graph: str
) -> None:
    there = GRAPHS[graph]
    rule = algorithms(there)[algorithm]
    whole, alone = drift(there, rule, train(there.num_nodes, 32), 200)
    assert whole < 1e-13
    assert alone < 6e-8  # half a unit in the last place


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("graph", ["cycle 4", "torus", "complete"])
@pytest.mark.parametrize("train", [pull, noise])
@pytest.mark.parametrize("algorithm", algorithms(GRAPHS["cycle 4"]))
def test_so_it_does_for_ten_thousand_steps(
    algorithm: str, train: Callable[[int, int], Train], graph: str
) -> None:
    there = GRAPHS[graph]
    rule = algorithms(there)[algorithm]
    whole, alone = drift(there, rule, train(there.num_nodes, 32), 10_000)
    print(f"the mean has moved by {whole:.2g} of its norm, that of x by {alone:.2g}")
    assert whole < 1e-12
    assert alone < 6e-8


@pytest.mark.parametrize(
    ("dtype", "ulp"),
    [(torch.float16, 2**-11), (torch.bfloat16, 2**-8), (torch.float64, 1e-16)],
)
def test_so_it_does_in_other_dtypes(dtype: torch.dtype, ulp: float) -> None:
    graph = GRAPHS["cycle 4"]
    rule = algorithms(graph)["consensus"]
    whole, alone = drift(graph, rule, pull(4, 32), 1000, dtype=dtype)
    assert whole < 1e-7 * ulp * 1000 + 1e-13
    assert alone < 1.5 * ulp + 1e-13


def test_without_it_a_pull_repeats_one_rounding() -> None:
    graph = GRAPHS["cycle 4"]
    rule = algorithms(graph)["consensus"]
    _, few = drift(graph, rule, pull(4, 32), 500, forgets=True)
    _, many = drift(graph, rule, pull(4, 32), 1000, forgets=True)
    assert many > 1.8 * few > 1e-6


def test_only_the_ends_of_edges_gain() -> None:
    graph = GRAPHS["cycle 4"]
    x = rng.stream(9).normal(4, 40_000)  # more columns than are taken at a time
    kept, before = 1e-8 * rng.stream(10).normal(4, 40_000), x.clone()
    rests = kept.clone()
    flows, edge = averaging(graph), torch.tensor([0])
    mix(x, kept, flows, edge)
    ends, others = list(graph.edges[0]), [2, 3]
    assert set(ends).isdisjoint(others)
    assert torch.equal(x[others], before[others])
    assert torch.equal(kept[others], rests[others])
    exact = rest.total(before, rests) + flows.of(before, 40_000, edge)
    assert torch.equal(x[ends], exact[ends].float())
    assert torch.equal(kept[ends], (exact[ends] - x[ends]).float())
    mix(x, kept, flows, edge[:0])
    assert torch.equal(x[ends], exact[ends].float())


def test_what_is_split_stays_as_it_was() -> None:
    exact = rng.stream(11).normal(50).double() * (1 + 2.0**-40)
    copy = exact.clone()
    for dtype in (torch.float32, torch.float64):
        x, kept = rest.rounded(exact, dtype)
        assert (x.dtype, kept.dtype) == (dtype, torch.float32)
        assert torch.equal(exact, copy)
        torch.testing.assert_close(rest.total(x, kept), exact, rtol=1e-14, atol=0)
        assert torch.equal(x, exact.to(dtype))


@pytest.mark.gpu
def test_a_gpu_gives_the_same_bits() -> None:
    graph = topology.random_edges(12, 26, seed=22)
    mixing: Mixing = fastest(graph)
    for flows in (Averaging(mixing, mixing), Pairs(graph)):
        found = []
        for device in ("cpu", "cuda"):
            x = rng.stream(12).normal(12, 40_000).to(device)
            kept = torch.zeros_like(x)
            for _ in range(3):
                mix(x, kept, flows, torch.arange(len(graph.edges)))
            found.append((x.cpu(), kept.cpu()))
        assert torch.equal(found[0][0], found[1][0])
        assert torch.equal(found[0][1], found[1][1])
