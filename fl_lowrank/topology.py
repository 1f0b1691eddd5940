"""Who talks to whom in decentralised training: undirected graphs on 0 to n - 1.

Any graph of networkx, or any list of edges, can be used; the constructors here are
those of the literature on consensus. Vertices are the clients' partition ids.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import networkx as nx
import torch
from torch import Tensor

from .errors import SettingError

Edge = tuple[int, int]


@dataclass(frozen=True)
class Topology:
    """A connected simple graph.

    Attributes
    ----------
    num_nodes : int
        At least 1.
    edges : tuple of (int, int)
        Each once, the smaller vertex first, in increasing order: the order of all
        vectors of edge weights.

    Raises
    ------
    SettingError
        If there is no vertex, an edge is a loop or not between two of the vertices, or
        the graph is not connected.
    """

    num_nodes: int
    edges: tuple[Edge, ...]

    def __post_init__(self) -> None:
        if self.num_nodes < 1:
            msg = f"topology: expected at least one vertex, found {self.num_nodes}"
            raise SettingError(msg)
        bad = next(
            (e for e in self.edges if not 0 <= e[0] < e[1] < self.num_nodes), None
        )
        if bad is not None or tuple(sorted(set(self.edges))) != self.edges:
            msg = (
                f"topology: expected sorted edges (i, j) with 0 <= i < j < "
                f"{self.num_nodes}, each once, found {bad or 'others'}; use from_edges"
            )
            raise SettingError(msg)
        if not nx.is_connected(self.to_networkx()):
            msg = (
                f"topology: the graph of {self.num_nodes} vertices and "
                f"{len(self.edges)} edges is not connected; no consensus can be reached"
            )
            raise SettingError(msg)

    def to_networkx(self) -> nx.Graph:
        """Give the same graph to networkx."""
        graph = nx.Graph()
        graph.add_nodes_from(range(self.num_nodes))
        graph.add_edges_from(self.edges)
        return graph

    def ends(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Give both ends of all edges, each of shape (edges,), int64."""
        pairs = torch.tensor(self.edges, dtype=torch.int64, device=device).reshape(
            -1, 2
        )
        return pairs[:, 0], pairs[:, 1]

    def vertices_at(self, edges: Tensor) -> Tensor:
        """Give the vertices at edges of some positions, int64, each once, in order."""
        here = torch.zeros(self.num_nodes, dtype=torch.bool)
        here[torch.cat([ends[edges] for ends in self.ends()])] = True
        return here.nonzero().reshape(-1)

    def degrees(self) -> Tensor:
        """Give the number of neighbours, shape (n,), int64."""
        return torch.bincount(torch.cat(self.ends()), minlength=self.num_nodes)

    def neighbours(self, node: int) -> tuple[int, ...]:
        """Give the neighbours of a vertex, in increasing order."""
        ends = ((j if i == node else i) for i, j in self.edges if node in (i, j))
        return tuple(sorted(ends))

    @cached_property
    def matchings(self) -> tuple[Tensor, ...]:
        """Classes of edges without a common end, int64 positions in `edges`.

        Together all edges, each once, in at most 2 d - 1 classes for a largest degree
        d (greedy): what is done along the edges of one class can be done at once.
        """
        classes: list[tuple[list[int], set[int]]] = []
        for number, ends in enumerate(self.edges):
            for chosen, taken in classes:
                if taken.isdisjoint(ends):
                    chosen.append(number)
                    taken.update(ends)
                    break
            else:
                classes.append(([number], set(ends)))
        return tuple(torch.tensor(chosen) for chosen, _ in classes)

    def laplacian(self, weights: Tensor | None = None) -> Tensor:
        """Give ``sum_e w_e (e_i - e_j)(e_i - e_j)^T``, shape (n, n), float64.

        Parameters
        ----------
        weights : Tensor, optional
            Of the edges, shape (edges,); ones if left out.
        """
        first, second = self.ends()
        ones = torch.ones(len(self.edges), dtype=torch.float64)
        w = ones if weights is None else weights.to(torch.float64)
        out = torch.zeros(self.num_nodes, self.num_nodes, dtype=torch.float64)
        for i, j in ((first, second), (second, first)):
            out.index_put_((i, i), w, accumulate=True)
            out.index_put_((i, j), -w, accumulate=True)
        return out

    def algebraic_connectivity(self) -> float:
        """Give the second smallest eigenvalue of the Laplacian (Fiedler)."""
        if self.num_nodes == 1:
            return 0.0
        return float(torch.linalg.eigvalsh(self.laplacian())[1])


def from_networkx(graph: nx.Graph) -> Topology:
    """Take any undirected graph.

    Vertices that are 0 to n - 1 keep their numbers; others are numbered in networkx's
    order. Loops and parallel edges are dropped: they mix nothing.
    """
    nodes = list(graph.nodes)
    if set(nodes) == set(range(len(nodes))):
        nodes.sort()
    number = {node: i for i, node in enumerate(nodes)}
    pairs = ((number[a], number[b]) for a, b in graph.edges())
    return from_edges(pairs, len(number))


def from_edges(edges: Iterable[Edge], num_nodes: int | None = None) -> Topology:
    """Take a list of edges, in any order and direction.

    Parameters
    ----------
    edges : iterable of (int, int)
        Loops and repetitions are dropped.
    num_nodes : int, optional
        Largest vertex plus one if left out.

    Raises
    ------
    SettingError
        If an edge is not one of two integers, or leaves the vertices, or the graph is
        not connected.
    """
    ends = [_ends(edge) for edge in edges]
    pairs = sorted({(min(e), max(e)) for e in ends if e[0] != e[1]})
    largest = max((j for _, j in pairs), default=0)
    if num_nodes is None:
        num_nodes = largest + 1
    beyond = [e for e in pairs if not 0 <= e[0] <= e[1] < num_nodes]
    if beyond and num_nodes >= 1:
        msg = (
            f"topology: the edge {beyond[0]} leaves the {num_nodes} vertices, which "
            f"are 0 to {num_nodes - 1}"
        )
        raise SettingError(msg)
    return Topology(num_nodes, tuple(pairs))


def _ends(edge: Sequence[int]) -> Edge:
    """Give an edge of any integers, such as numpy's or torch's, as one of ints."""
    try:
        first, second = map(operator.index, edge)
    except (TypeError, ValueError):
        msg = f"topology: expected edges of two integers each, found {edge!r}"
        raise SettingError(msg) from None
    return first, second


def cycle(num_nodes: int, chords: Sequence[int] = ()) -> Topology:
    """Join i to i + 1, and to i + c for each chord c, modulo n."""
    return from_edges(
        ((i, (i + c) % num_nodes) for c in (1, *chords) for i in range(num_nodes)),
        num_nodes,
    )


def torus(rows: int, columns: int) -> Topology:
    """Join each vertex of a grid that wraps around to its four neighbours."""
    grid = nx.grid_2d_graph(rows, columns, periodic=True)
    return from_networkx(grid)


def complete(num_nodes: int) -> Topology:
    """Join all."""
    return from_networkx(nx.complete_graph(num_nodes))


def star(num_nodes: int) -> Topology:
    """Join vertex 0 to all others."""
    return from_edges(((0, i) for i in range(1, num_nodes)), num_nodes)


def exponential(num_nodes: int) -> Topology:
    """Join i to i + 1, i + 2, i + 4, ... modulo n.

    B. Ying, K. Yuan, Y. Chen, H. Hu, P. Pan, W. Yin, "Exponential Graph is Provably
    Efficient for Decentralized Deep Training", NeurIPS 2021, arXiv 2110.13363; here
    undirected.
    """
    powers = [1 << k for k in range(max(num_nodes - 1, 1).bit_length())]
    return cycle(num_nodes, [c for c in powers if c < num_nodes])


def margulis(side: int) -> Topology:
    """Make the Margulis-Gabber-Galil expander on side^2 vertices."""
    return from_networkx(nx.margulis_gabber_galil_graph(side))


def chordal_cycle(prime: int) -> Topology:
    """Join i to i + 1 and to its inverse modulo a prime, an expander."""
    divisors = range(2, math.isqrt(max(prime, 0)) + 1)
    if prime < 2 or any(prime % k == 0 for k in divisors):
        msg = f"topology: expected a prime number of vertices, found {prime}"
        raise SettingError(msg)
    return from_networkx(nx.chordal_cycle_graph(prime))


def random_regular(num_nodes: int, degree: int, seed: int) -> Topology:
    """Draw a graph in which all have the same degree, an expander with high chance."""
    return _drawn(lambda: nx.random_regular_graph(degree, num_nodes, seed=seed))


def random_edges(num_nodes: int, num_edges: int, seed: int) -> Topology:
    """Draw a graph uniformly from those with so many edges."""
    return _drawn(lambda: nx.gnm_random_graph(num_nodes, num_edges, seed=seed))


def small_world(num_nodes: int, degree: int, probability: float, seed: int) -> Topology:
    """Draw a connected graph of Watts and Strogatz (1998)."""
    return _drawn(
        lambda: nx.connected_watts_strogatz_graph(
            num_nodes, degree, probability, seed=seed
        )
    )


def _drawn(draw: Callable[[], nx.Graph]) -> Topology:
    """Take a graph that networkx draws; `SettingError` if there is none of the kind."""
    try:
        graph = draw()
    except nx.NetworkXException as error:
        msg = f"topology: no such graph can be drawn: {error}"
        raise SettingError(msg) from None
    return from_networkx(graph)
