"""Who mixes at a step, and how fast that brings agreement."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fl_lowrank import rng, topology
from fl_lowrank.consensus import draw_edges, draw_matching, draw_tick, due, periods_of
from fl_lowrank.errors import SettingError
from fl_lowrank.exchange import average_pairs
from fl_lowrank.mixing import metropolis
from fl_lowrank.topology import Topology

GRAPHS = {
    "cycle 4": topology.cycle(4),
    "torus": topology.torus(6, 6),
    "star": topology.star(7),
    "G(12, 26)": topology.random_edges(12, 26, seed=22),
    "one vertex": Topology(1, ()),
}
CONNECTED = [name for name in GRAPHS if name != "one vertex"]


@pytest.mark.parametrize("name", GRAPHS)
def test_matchings_hold_every_edge_once_and_no_vertex_twice(name: str) -> None:
    graph = GRAPHS[name]
    first, second = graph.ends()
    for edges in graph.matchings:
        ends = torch.cat((first[edges], second[edges])).tolist()
        assert len(set(ends)) == len(ends)
    together = [edge for edges in graph.matchings for edge in edges.tolist()]
    assert sorted(together) == list(range(len(graph.edges)))
    largest = int(graph.degrees().max())
    assert len(graph.matchings) <= max(2 * largest - 1, 0)


def test_an_edge_is_due_when_both_ends_are() -> None:
    graph = topology.cycle(6)
    periods = [1, 1, 2, 2, 4, 4]
    active = {k: set() for k in range(5)}
    for k in active:
        chosen = due(graph, k, periods).nonzero().reshape(-1).tolist()
        active[k] = {graph.edges[e] for e in chosen}
    assert active[0] == active[4] == set(graph.edges)
    assert active[1] == active[3] == {(0, 1)}
    assert active[2] == {(0, 1), (1, 2), (2, 3)}


def test_unequal_periods_keep_the_mean() -> None:
    """Where rows alone are due, six values agree on 3.5 instead of their mean 2.5."""
    graph, periods = topology.cycle(6), [1, 1, 2, 2, 4, 4]
    mixing = metropolis(graph)
    right = wrong = torch.arange(6, dtype=torch.float64)[:, None]
    for k in range(1, 4000):
        right = mixing.step(right, due(graph, k, periods))
        ready = torch.tensor([k % period == 0 for period in periods])[:, None]
        wrong = torch.where(ready, mixing.step(wrong), wrong)
    torch.testing.assert_close(right, torch.full((6, 1), 2.5, dtype=torch.float64))
    assert float(wrong.min()) == pytest.approx(float(wrong.max()))
    assert float(wrong.mean()) == pytest.approx(3.515, abs=1e-3)


@pytest.mark.parametrize("periods", [[1, 1, 1], [1, 1, 0, 1], [1] * 5, [1.5] * 4, 2.0])
def test_other_periods_are_refused(periods: list[int]) -> None:
    with pytest.raises(SettingError, match="4 periods, integers of at least 1"):
        due(topology.cycle(4), 0, periods)


def test_integers_of_numpy_are_periods() -> None:
    assert periods_of("x", topology.cycle(4), np.int64(2)) == (2,) * 4
    found = periods_of("x", topology.cycle(4), np.array([1, 2, 1, 2]))
    assert found == (1, 2, 1, 2)
    assert all(type(period) is int for period in found)


def squared_distance(x: Tensor) -> float:
    return float((x - x.mean(dim=0)).square().sum())


@pytest.mark.parametrize("name", CONNECTED)
def test_a_drawn_edge_contracts_as_its_theorem_says(name: str) -> None:
    """In the mean over all edges; exactly so for the eigenvector of l_2."""
    graph = GRAPHS[name]
    first, second = graph.ends()
    factor = 1 - graph.algebraic_connectivity() / (2 * len(graph.edges))

    def mean_factor(x: Tensor) -> float:
        after = [
            squared_distance(average_pairs(x, first[[e]], second[[e]]))
            for e in range(len(graph.edges))
        ]
        return sum(after) / len(after) / squared_distance(x)

    slowest = torch.linalg.eigh(graph.laplacian()).eigenvectors[:, 1:2]
    assert mean_factor(slowest) == pytest.approx(factor, rel=1e-10)
    for key in range(5):
        x = rng.stream(30, key).normal(graph.num_nodes, 1).double()
        assert mean_factor(x) <= factor + 1e-12


def test_drawn_edges_contract_in_the_mean() -> None:
    """The 36 draws of a step on the torus; a false alarm has a chance below 1e-6."""
    graph = GRAPHS["torus"]
    first, second = graph.ends()
    bound = (1 - graph.algebraic_connectivity() / (2 * len(graph.edges))) ** 36
    assert bound == pytest.approx(0.778, abs=1e-3)
    x = rng.stream(31, "start").normal(36, 1).double()
    ratios = torch.tensor(
        [
            squared_distance(average_pairs(x, first[drawn], second[drawn]))
            for drawn in (draw_edges(graph, 36, rng.stream(31, k)) for k in range(400))
        ]
    ) / squared_distance(x)
    assert float(ratios.mean()) <= bound + 5 * float(ratios.std()) / 20
    assert float(ratios.mean()) > 0.2


def test_draws_are_uniform() -> None:
    """Each edge 1000 times of 26,000, within 5.5 deviations: once in 10^6 suites."""
    graph = GRAPHS["G(12, 26)"]
    counts = torch.bincount(draw_edges(graph, 26_000, rng.stream(32)), minlength=26)
    assert float((counts - 1000).abs().max()) < 5.5 * 1000**0.5
    again = draw_edges(graph, 26_000, rng.stream(32))
    assert torch.equal(torch.bincount(again, minlength=26), counts)


@pytest.mark.parametrize("name", CONNECTED)
def test_a_drawn_matching_takes_no_vertex_twice(name: str) -> None:
    graph = GRAPHS[name]
    seen = set()
    for key in range(200):
        drawn = draw_matching(graph, len(graph.edges), rng.stream(33, key)).tolist()
        ends = [vertex for e in drawn for vertex in graph.edges[e]]
        assert len(set(ends)) == len(ends)
        left = set(range(graph.num_nodes)) - set(ends)
        assert not any(left.issuperset(edge) for edge in graph.edges)  # none fits
        seen.update(drawn)
    assert seen == set(range(len(graph.edges)))
    assert len(draw_matching(graph, 1, rng.stream(34))) == 1


def test_clocks_tick_as_fast_as_their_vertices() -> None:
    """Five standard deviations: a false alarm in 10^6 at most."""
    graph, speeds, count = GRAPHS["star"], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 9.0], 2000
    ticks = [draw_tick(graph, speeds, rng.stream(3, k)) for k in range(count)]
    for vertex, speed in enumerate(speeds):
        share = sum(tick.vertex == vertex for tick in ticks) / count
        chance = speed / sum(speeds)
        assert abs(share - chance) < 5 * (chance * (1 - chance) / count) ** 0.5
    waits = torch.tensor([tick.wait for tick in ticks], dtype=torch.float64)
    assert abs(float(waits.mean()) * sum(speeds) - 1.0) < 5 / count**0.5
    assert abs(float(waits.std()) * sum(speeds) - 1.0) < 0.2  # as exponential times
    called = {tick.edge for tick in ticks if tick.vertex == 0}
    assert called == set(range(6))
    assert all(tick.vertex in graph.edges[tick.edge] for tick in ticks)
