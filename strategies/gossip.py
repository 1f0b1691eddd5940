"""`Gossip`: the ends of some edges, drawn at random, take their mean."""

from __future__ import annotations

from collections.abc import Sequence
from logging import INFO

import torch
from flwr.common import log
from torch import Tensor

from fl_lowrank.consensus import Flows, Pairs, Rows, draw_edges, draw_matching
from fl_lowrank.errors import SettingError
from fl_lowrank.topology import Topology

from .decentralised import Decentralised


class Gossip(Decentralised):
    """Local training, and averaging over some random edges every so many rounds.

    ::

        strategy = Gossip(topology.torus(6, 6), num_edges=4)

    and, in the ClientApp, ``mods=[ConsensusMod()]``. What `Consensus` says of the
    server and of bytes holds here too.

    S. Tikhonkov, "Research and Application of Consensus Algorithms for Distributed
    Training of Neural Networks" (thesis, St Petersburg State University, 2021, in
    Russian): algorithm 3. Both ends of an edge take the mean, as its text has it.

    Parameters
    ----------
    topology : Topology
        The graph.
    num_edges : int
        How many are drawn for a mixing.
    matching : bool
        Draw edges without a common end, as many as fit, and not one edge after the
        other with replacement.
    period : int
        Rounds from one mixing to the next.
    train_periods, evaluate_every, exact, seed, node_timeout
        See `strategies.decentralised.Decentralised`.

    Raises
    ------
    SettingError
        If a number is not at least 1.
    """

    def __init__(
        self,
        topology: Topology,
        num_edges: int = 1,
        *,
        matching: bool = False,
        period: int = 1,
        train_periods: int | Sequence[int] = 1,
        evaluate_every: int = 0,
        exact: Sequence[str] = (),
        seed: int = 0,
        node_timeout: float = 600.0,
    ) -> None:
        super().__init__(
            topology,
            train_periods=train_periods,
            evaluate_every=evaluate_every,
            exact=exact,
            seed=seed,
            node_timeout=node_timeout,
        )
        if not topology.edges:
            msg = "Gossip: expected a graph with edges, found none; take two nodes"
            raise SettingError(msg)
        self.num_edges = self.whole("num_edges", num_edges)
        self.matching = matching
        self.period = self.whole("period", period)

    def summary(self) -> None:
        """Log who mixes, and how."""
        n, edges = self.topology.num_nodes, len(self.topology.edges)
        how = "as a matching" if self.matching else "one after the other"
        text = "\t├──> Gossip: %s nodes, %s of %s edges every %s rounds, %s"
        log(INFO, text, n, self.num_edges, edges, self.period, how)

    def flows(self, rows: Rows) -> Flows:
        """Average pairs."""
        del rows
        return Pairs(self.topology)

    def edges_at(self, step: int) -> Tensor:
        """Draw edges."""
        if step % self.period:
            return torch.zeros(0, dtype=torch.int64)
        draw = draw_matching if self.matching else draw_edges
        return draw(self.topology, self.num_edges, self.draws.child(step))
