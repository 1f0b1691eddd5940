"""`AsynchronousGossip`: every node trains, and calls another, by its own clock."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from logging import INFO

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common import log
from flwr.serverapp import Grid
from torch import Tensor

from fl_lowrank.consensus import Flows, Pairs, Rows, Tick, draw_tick
from fl_lowrank.errors import SettingError
from fl_lowrank.topology import Topology

from .decentralised import Decentralised


class AsynchronousGossip(Decentralised):
    """Gossip as a sequence of events, for nodes that do not wait for each other.

    Whenever a node's clock ticks, it takes a local step, calls a neighbour drawn at
    random, and both take the mean of their models; all others go on undisturbed. Clocks
    are Poisson processes, simulated: an event is an exchange of messages with two nodes
    (a round of Flower), and ``time`` in its metrics says when it happens. Meant for the
    loopback grid; over a network each event would cost a round trip.

    S. Boyd, A. Ghosh, B. Prabhakar, D. Shah, "Randomized Gossip Algorithms", IEEE
    Transactions on Information Theory 52, 2006 (the asynchronous time model); X. Lian,
    W. Zhang, C. Zhang, J. Liu, "Asynchronous Decentralized Parallel Stochastic Gradient
    Descent", ICML 2018, arXiv 1710.06952: algorithm 1. Difference: a step is taken at
    the tick, from the model of that moment and not from an older one.

    Parameters
    ----------
    topology : Topology
        The graph.
    speeds : sequence of float, optional
        Local steps in a unit of time, of each node; 1 if left out.
    evaluate_every, exact, seed, node_timeout
        See `strategies.decentralised.Decentralised`; local steps come with the ticks.

    Raises
    ------
    SettingError
        If there is not one speed above 0 for each node, or no edge.
    """

    def __init__(
        self,
        topology: Topology,
        speeds: Sequence[float] | None = None,
        *,
        evaluate_every: int = 0,
        exact: Sequence[str] = (),
        seed: int = 0,
        node_timeout: float = 600.0,
    ) -> None:
        super().__init__(
            topology,
            evaluate_every=evaluate_every,
            exact=exact,
            seed=seed,
            node_timeout=node_timeout,
        )
        n = topology.num_nodes
        self.speeds = (1.0,) * n if speeds is None else tuple(speeds)
        usable = all(0.0 < speed < math.inf for speed in self.speeds)
        if len(self.speeds) != n or not usable or n < 2:
            msg = (
                f"AsynchronousGossip: expected {n} speeds above 0 of at least 2 nodes, "
                f"found {list(self.speeds)}"
            )
            raise SettingError(msg)
        self._ticks = [0] * n
        self._time = 0.0

    def summary(self) -> None:
        """Log how many clocks there are."""
        n, edges = self.topology.num_nodes, len(self.topology.edges)
        text = "\t├──> AsynchronousGossip: %s nodes, %s edges, speeds %s together"
        log(INFO, text, n, edges, sum(self.speeds))

    def flows(self, rows: Rows) -> Flows:
        """Average pairs; all clocks start anew."""
        del rows
        self._ticks = [0] * self.topology.num_nodes
        self._time = 0.0
        return Pairs(self.topology)

    def tick_at(self, step: int) -> Tick:
        """Draw an event, from 0."""
        return draw_tick(self.topology, self.speeds, self.draws.child(step))

    def edges_at(self, step: int) -> Tensor:
        """Give the one edge of an event."""
        return torch.tensor([self.tick_at(step).edge])

    def steps_due(self, vertex: int, round_: int) -> tuple[int, int]:
        """Let the node take a step whose clock has ticked."""
        return self._ticks[vertex], int(vertex == self.tick_at(round_ - 1).vertex)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Ask both ends of the event's edge."""
        messages = super().configure_train(server_round, arrays, config, grid)
        tick = self.tick_at(server_round - 1)
        self._ticks[tick.vertex] += 1
        self._time += tick.wait
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[None, MetricRecord]:
        """Average both ends."""
        _, metrics = super().aggregate_train(server_round, replies)
        metrics["time"] = self._time
        return None, metrics
