"""Graphs: what they are, and what is refused."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import torch

from fl_lowrank import topology
from fl_lowrank.errors import SettingError
from fl_lowrank.topology import (
    Topology,
    chordal_cycle,
    complete,
    cycle,
    from_edges,
    from_networkx,
    random_regular,
    small_world,
    star,
)

#: Graph, vertices, edges, smallest and largest degree.
GRAPHS = {
    "cycle": (topology.cycle(50), 50, 50, 2, 2),
    "cycle of 2": (topology.cycle(2), 2, 1, 1, 1),
    "cycle with chords": (topology.cycle(50, [7, 15]), 50, 150, 6, 6),
    "torus": (topology.torus(6, 6), 36, 72, 4, 4),
    "complete": (topology.complete(36), 36, 630, 35, 35),
    "star": (topology.star(9), 9, 8, 1, 8),
    "exponential": (topology.exponential(16), 16, 56, 7, 7),
    "margulis": (topology.margulis(5), 25, 70, 4, 8),
    "chordal cycle": (topology.chordal_cycle(23), 23, 33, 2, 3),
    "random regular": (topology.random_regular(25, 4, seed=1), 25, 50, 4, 4),
    "random edges": (topology.random_edges(12, 26, seed=22), 12, 26, 1, 7),
    "small world": (topology.small_world(30, 4, 0.2, seed=0), 30, 60, 3, 6),
    "one vertex": (Topology(1, ()), 1, 0, 0, 0),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_sizes_and_degrees(name: str) -> None:
    graph, num_nodes, num_edges, smallest, largest = GRAPHS[name]
    degrees = graph.degrees()
    assert (graph.num_nodes, len(graph.edges)) == (num_nodes, num_edges)
    assert (int(degrees.min()), int(degrees.max())) == (smallest, largest)
    assert int(degrees.sum()) == 2 * num_edges
    for node in range(num_nodes):
        neighbours = graph.neighbours(node)
        assert len(neighbours) == int(degrees[node])
        assert all(node in graph.neighbours(other) for other in neighbours)


@pytest.mark.parametrize("name", GRAPHS)
def test_laplacian_equals_that_of_networkx(name: str) -> None:
    graph = GRAPHS[name][0]
    weights = torch.linspace(-0.5, 2.0, len(graph.edges), dtype=torch.float64)
    other = graph.to_networkx()
    for (i, j), w in zip(graph.edges, weights.tolist(), strict=True):
        other[i][j]["weight"] = w
    expected = torch.from_numpy(nx.laplacian_matrix(other).toarray()).double()
    torch.testing.assert_close(graph.laplacian(weights), expected)
    plain = torch.from_numpy(nx.laplacian_matrix(other, weight=None).toarray())
    torch.testing.assert_close(graph.laplacian(), plain.double())


def test_algebraic_connectivity() -> None:
    """Known in closed form: n for the complete graph, 1 for a star, 2 - 2 cos."""
    cosine = torch.cos(torch.tensor(2 * torch.pi / 50, dtype=torch.float64))
    assert topology.complete(7).algebraic_connectivity() == pytest.approx(7)
    assert topology.star(9).algebraic_connectivity() == pytest.approx(1)
    cycle = topology.cycle(50).algebraic_connectivity()
    assert cycle == pytest.approx(2 - 2 * float(cosine))
    assert Topology(1, ()).algebraic_connectivity() == 0


def test_any_list_of_edges() -> None:
    graph = from_edges([(2, 0), (0, 2), (1, 1), (1, 2)])
    assert graph == Topology(3, ((0, 2), (1, 2)))


def test_any_graph_of_networkx() -> None:
    graph = nx.MultiGraph([("c", "a"), ("c", "a"), ("a", "b"), ("b", "b")])
    assert from_networkx(graph) == Topology(3, ((0, 1), (1, 2)))
    # Periods and shares of data go by the numbers that vertices already have.
    numbered = from_networkx(nx.Graph([(2, 0), (0, 1), (1, 3)]))
    assert numbered == Topology(4, ((0, 1), (0, 2), (1, 3)))


def test_edges_of_any_integers() -> None:
    path = Topology(3, ((0, 1), (1, 2)))
    assert from_edges(np.array([[0, 1], [2, 1]])) == path
    assert from_edges(torch.tensor([[0, 1], [2, 1]])) == path
    assert all(type(end) is int for end in from_edges(np.array([[0, 1]])).edges[0])
    for edges in ([(0, 1.5)], [(0, 1, 2)], [3], ["01"]):
        with pytest.raises(SettingError, match="expected edges of two integers"):
            from_edges(edges)


def test_graphs_that_do_not_exist_are_refused() -> None:
    for number in (-3, 0, 1, 4, 9):
        with pytest.raises(SettingError, match=f"a prime .* found {number}"):
            chordal_cycle(number)
    for draw in (lambda: random_regular(5, 3, 0), lambda: small_world(3, 4, 0.2, 0)):
        with pytest.raises(SettingError, match="no such graph can be drawn"):
            draw()


@pytest.mark.parametrize(
    ("num_nodes", "edges", "reason"),
    [
        (3, ((0, 1),), "3 vertices and 1 edges is not connected"),
        (2, ((1, 0),), r"found \(1, 0\); use from_edges"),
        (2, ((0, 2),), r"found \(0, 2\)"),
        (2, ((0, 0),), r"found \(0, 0\)"),
        (2, ((-1, 0),), r"found \(-1, 0\)"),
        (3, ((1, 2), (0, 1)), "expected sorted edges"),
        (3, ((0, 1), (0, 1), (1, 2)), "each once"),
        (0, (), "at least one vertex, found 0"),
    ],
)
def test_others_are_refused(
    num_nodes: int, edges: tuple[tuple[int, int], ...], reason: str
) -> None:
    with pytest.raises(SettingError, match=reason):
        Topology(num_nodes, edges)


def test_a_list_of_edges_must_fit() -> None:
    reason = r"edge \(0, 5\) leaves the 3 vertices, which are 0 to 2"
    with pytest.raises(SettingError, match=reason):
        from_edges([(0, 1), (5, 0), (1, 2)], 3)
    with pytest.raises(SettingError, match=r"edge \(-1, 2\) leaves"):
        from_edges([(0, 1), (2, -1)])
    for make in (cycle, star, complete):
        with pytest.raises(SettingError, match="at least one vertex"):
            make(0)
