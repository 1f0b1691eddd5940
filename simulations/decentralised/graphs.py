"""Texts such as ``cycle:4`` for the topologies of the library."""

from __future__ import annotations

from collections.abc import Callable

import networkx as nx

from fl_lowrank import topology
from fl_lowrank.errors import SettingError
from fl_lowrank.topology import Topology

from ..errors import SimulationError, choose


def _small_world(nodes: float, degree: float, chance: float, seed: float) -> Topology:
    return topology.small_world(int(nodes), int(degree), chance, int(seed))


def _whole(make: Callable[..., Topology]) -> Callable[..., Topology]:
    def whole(*numbers: float) -> Topology:
        if any(number != int(number) for number in numbers):
            raise ValueError("expected whole numbers")
        return make(*(int(number) for number in numbers))

    return whole


#: The numbers after the colon are the constructor's, e.g. those of `topology.torus`.
GRAPHS: dict[str, Callable[..., Topology]] = {
    "cycle": _whole(lambda nodes, *chords: topology.cycle(nodes, chords)),
    "torus": _whole(topology.torus),
    "complete": _whole(topology.complete),
    "star": _whole(topology.star),
    "exponential": _whole(topology.exponential),
    "margulis": _whole(topology.margulis),
    "chordal-cycle": _whole(topology.chordal_cycle),
    "random-regular": _whole(topology.random_regular),
    "random": _whole(topology.random_edges),
    "small-world": _small_world,
}
EXAMPLES = (
    "cycle:4, cycle:50,7,15 (with chords), torus:6x6, complete:36, star:9, "
    "exponential:16, margulis:5 (25 vertices), chordal-cycle:23, random-regular:25,4,1 "
    "(vertices, degree, seed), random:12,26,22 (vertices, edges, seed), "
    "small-world:30,4,0.2,0, edges:0-1,1-2,2-0"
)


def read_graph(text: str) -> Topology:
    """Make the topology that a text names.

    Parameters
    ----------
    text : str
        A name of `GRAPHS` and its numbers, or ``edges:`` and a list.

    Returns
    -------
    Topology
        The graph.
    """
    name, _, rest = text.partition(":")
    try:
        if name == "edges":
            pairs = (edge.split("-") for edge in rest.split(","))
            return topology.from_edges((int(a), int(b)) for a, b in pairs)
        make = choose(GRAPHS, name, "topology")
        return make(*(float(part) for part in rest.replace("x", ",").split(",")))
    except (ValueError, TypeError, nx.NetworkXException) as error:
        reason = str(error) if isinstance(error, SettingError) else "it cannot be read"
        raise SimulationError(
            f"--topology {text!r}: {reason}; examples: {EXAMPLES}."
        ) from error
