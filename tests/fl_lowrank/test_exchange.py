"""Along an edge the one gains what the other loses, to the last bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fl_lowrank import rng, topology
from fl_lowrank.consensus import draw_edges, draw_matching, due
from fl_lowrank.exchange import average_pairs
from fl_lowrank.mixing import Mixing, best_constant, fastest, metropolis
from fl_lowrank.topology import Topology

Step = Callable[[Tensor, int], Tensor]

GRAPHS = {
    "cycle 4": topology.cycle(4),
    "cycle 5": topology.cycle(5),
    "torus": topology.torus(6, 6),
    "complete": topology.complete(4),
    "star": topology.star(9),
}


def drift(graph: Topology, mix: Step, num_steps: int, d: int = 64) -> float:
    """Move of the mean that no local step made, over its norm; float32 with noise."""
    source = rng.stream(5, "drift")
    x = source.child("start").normal(d).repeat(graph.num_nodes, 1)
    mean = x.double().mean(dim=0)
    for k in range(num_steps):
        before = x
        x = x - 0.01 * source.child(k).normal(graph.num_nodes, d)
        mean += (x.double() - before.double()).mean(dim=0)
        x = mix(x, k)
    return float((x.double().mean(dim=0) - mean).norm() / mean.norm())


def algorithms(graph: Topology) -> dict[str, Step]:
    mixing = metropolis(graph)
    first, second = graph.ends()
    periods = [(1, 2, 4)[i % 3] for i in range(graph.num_nodes)]
    source = rng.stream(6, "gossip")

    def gossip(x: Tensor, k: int) -> Tensor:
        drawn = draw_edges(graph, graph.num_nodes, source.child(k))
        return average_pairs(x, first[drawn], second[drawn])

    def matched(x: Tensor, k: int) -> Tensor:
        drawn = draw_matching(graph, graph.num_nodes, source.child(k))
        return average_pairs(x, first[drawn], second[drawn])

    return {
        "consensus": lambda x, _: mixing.step(x),
        "every third step": lambda x, k: x if k % 3 else mixing.step(x),
        "own periods": lambda x, k: mixing.step(x, due(graph, k, periods)),
        "gossip": gossip,
        "gossip on matchings": matched,
    }


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("algorithm", algorithms(GRAPHS["cycle 4"]))
def test_the_mean_stays_with_local_steps(algorithm: str, graph: str) -> None:
    step = algorithms(GRAPHS[graph])[algorithm]
    assert drift(GRAPHS[graph], step, 1000 if graph != "torus" else 200) < 3e-7


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("graph", ["cycle 4", "torus", "complete"])
@pytest.mark.parametrize("algorithm", algorithms(GRAPHS["cycle 4"]))
def test_the_mean_stays_for_ten_thousand_steps(algorithm: str, graph: str) -> None:
    step = algorithms(GRAPHS[graph])[algorithm]
    found = drift(GRAPHS[graph], step, 10_000)
    print(f"the mean has moved by {found:.2g} of its norm")
    assert found < 1e-6


def test_a_matrix_in_float32_does_not_keep_the_mean() -> None:
    graph = GRAPHS["cycle 4"]
    matrix = metropolis(graph).matrix.float()
    assert drift(graph, lambda x, _: matrix @ x, 1000) > 1e-5


def test_agreement_is_not_rounded_away() -> None:
    """Where all agree, each rounding for itself moves the sum; here nothing does."""
    graph = GRAPHS["complete"]
    mixing = best_constant(graph)  # one step to agreement
    first, second = graph.ends()
    for key in range(20):
        x = 1.0 + rng.stream(7, key).uniform(4 * 100).reshape(4, 100) * 0.5
        mixed, total = mixing.step(x), x.double().sum(dim=0)
        assert torch.equal(mixed.double().sum(dim=0), total)
        alone = (x.sum(dim=0) / 4).expand(4, 100)
        assert not torch.equal(alone.double().sum(dim=0), total)
        met = average_pairs(x, first, second)
        assert torch.equal(met.double().sum(dim=0), total)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("graph", GRAPHS)
def test_a_step_is_the_matrix(graph: str, dtype: torch.dtype) -> None:
    """Also over more columns than a block, and with weights of any sign."""
    weights = rng.stream(8, graph).normal(len(GRAPHS[graph].edges)).double()
    mixing = Mixing(GRAPHS[graph], weights)
    x = rng.stream(9).normal(GRAPHS[graph].num_nodes, 9001).to(dtype)
    kept = x.clone()
    expected = (mixing.matrix @ x.double()).to(dtype)
    torch.testing.assert_close(mixing.step(x), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(x, kept)


def test_flows_of_known_copies_at_a_rate() -> None:
    mixing = fastest(GRAPHS["star"])
    public = rng.stream(10).normal(9, 7).double()
    flow = mixing.flow(public, rate=0.3)
    expected = 0.3 * (mixing.matrix @ public - public)
    torch.testing.assert_close(flow, expected)
    assert float(flow.sum(dim=0).abs().max()) < 1e-15


def test_pairs_meet_one_after_the_other() -> None:
    x = torch.tensor([[0.0], [4.0], [8.0]])
    met = average_pairs(x, torch.tensor([0, 1, 0]), torch.tensor([1, 2, 1]))
    assert met.reshape(-1).tolist() == [3.5, 3.5, 5.0]
    assert x.reshape(-1).tolist() == [0.0, 4.0, 8.0]
    nobody = torch.zeros(0, dtype=torch.int64)
    assert torch.equal(average_pairs(x, nobody, nobody), x)


@pytest.mark.parametrize("shape", [(4, 0), (4, 1), (4, 4097)])
def test_any_number_of_columns(shape: tuple[int, int]) -> None:
    x = rng.stream(11).normal(*shape)
    assert metropolis(GRAPHS["cycle 4"]).step(x).shape == shape


@pytest.mark.gpu
def test_a_gpu_gives_the_same_bits() -> None:
    mixing = metropolis(GRAPHS["torus"])
    x = rng.stream(12).normal(36, 10_000)
    assert torch.equal(mixing.step(x.cuda()).cpu(), mixing.step(x))
    assert torch.equal(mixing.flow(x.cuda()).cpu(), mixing.flow(x))
