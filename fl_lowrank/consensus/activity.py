"""Which edges mix at a step: those whose ends are due, some drawn, or by clocks."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import SupportsIndex, cast

import torch
from torch import Tensor

from ..errors import SettingError
from ..rng import Rng
from ..topology import Topology


def periods_of(
    who: str, topology: Topology, periods: int | Sequence[int]
) -> tuple[int, ...]:
    """Give each vertex its period: the one there is, or its own.

    Raises
    ------
    SettingError
        If there is not one period of at least 1 for each vertex.
    """
    n = topology.num_nodes
    found = list(periods) if isinstance(periods, Iterable) else [periods] * n
    whole = [whole_number(period, 1) for period in found]
    if len(whole) != n or None in whole:
        msg = (
            f"{who}: expected {n} periods, integers of at least 1, one for each "
            f"vertex, found {found}"
        )
        raise SettingError(msg)
    return tuple(period for period in whole if period is not None)


def whole_number(value: object, least: int) -> int | None:
    """Give an integer of any type, such as numpy's, of some size; else None."""
    try:
        number = operator.index(cast("SupportsIndex", value))
    except TypeError:
        return None
    return number if number >= least else None


def due(topology: Topology, step: int, periods: Sequence[int]) -> Tensor:
    """Tell which edges mix at a step: those with both ends due.

    A vertex is due at the multiples of its period. If one end mixed without the other,
    the mean would not be kept: on a cycle of 6 with periods 1, 1, 2, 2, 4, 4 and the
    weights 1/3, the values 0 to 5 would agree on 3.5 or 3.0, by whether steps are
    counted from 1 or 0, and not on their mean 2.5.

    Parameters
    ----------
    topology : Topology
        The graph.
    step : int
        From 0.
    periods : sequence of int
        Of each vertex, at least 1.

    Returns
    -------
    Tensor
        Booleans, shape (edges,).

    Raises
    ------
    SettingError
        If there is not one period of at least 1 for each vertex.
    """
    found = periods_of("due", topology, periods)
    ready = torch.tensor([step % period == 0 for period in found])
    first, second = topology.ends()
    return ready[first] & ready[second]


def draw_edges(topology: Topology, count: int, rng: Rng) -> Tensor:
    """Draw edges uniformly, with replacement.

    If the ends of each are averaged, one after the other, the expected squared
    distance to the mean shrinks to at most ``1 - l_2 / (2 |E|)`` of it for each edge
    drawn, l_2 the algebraic connectivity: S. Boyd, A. Ghosh, B. Prabhakar, D. Shah,
    "Randomized Gossip Algorithms", IEEE Transactions on Information Theory 52, 2006,
    here for a uniform choice of edges.

    Returns
    -------
    Tensor
        Positions in ``topology.edges``, int64, shape (count,).

    Raises
    ------
    SettingError
        If the graph has no edges.
    """
    if not topology.edges:
        msg = "gossip: expected a graph with edges, found none; take two nodes or more"
        raise SettingError(msg)
    bits = rng.bits32(count).to(torch.int64) & 0xFFFFFFFF
    return (bits * len(topology.edges)) >> 32


def draw_matching(topology: Topology, count: int, rng: Rng) -> Tensor:
    """Draw up to so many edges without a common end.

    All edges in random order; one is taken unless an end of it is taken already.

    Returns
    -------
    Tensor
        Positions in ``topology.edges``, int64. Fewer than ``count`` if no more fit.
    """
    order = rng.bits32(len(topology.edges)).argsort(stable=True).tolist()
    taken: set[int] = set()
    chosen: list[int] = []
    for edge in order:
        ends = topology.edges[edge]
        if len(chosen) < count and taken.isdisjoint(ends):
            chosen.append(edge)
            taken.update(ends)
    return torch.tensor(chosen, dtype=torch.int64)


@dataclass(frozen=True)
class Tick:
    """One event of asynchronous gossip.

    Attributes
    ----------
    vertex : int
        Whose clock has ticked.
    edge : int
        Position in ``topology.edges`` of the edge to the neighbour that it calls.
    wait : float
        Time since the event before.
    """

    vertex: int
    edge: int
    wait: float


def draw_tick(topology: Topology, speeds: Sequence[float], rng: Rng) -> Tick:
    """Draw the next event, where every vertex has a Poisson clock of its own.

    The next tick of all clocks together comes after an exponential time with the sum
    of the speeds as rate, and is a vertex's with the chance speed / sum: the
    asynchronous time model of Boyd, Ghosh, Prabhakar and Shah, see `draw_edges`.

    Parameters
    ----------
    topology : Topology
        The graph; of at least two vertices.
    speeds : sequence of float
        Ticks in a unit of time, of each vertex, above 0.
    rng : Rng
        Of this event.
    """
    when, who, whom = rng.uniform(3).double().tolist()
    ends = torch.tensor(speeds, dtype=torch.float64).cumsum(0)
    total = float(ends[-1])
    vertex = int(torch.searchsorted(ends, who * total, right=True))
    own = [number for number, pair in enumerate(topology.edges) if vertex in pair]
    return Tick(vertex, own[int(whom * len(own))], -math.log1p(-when) / total)
