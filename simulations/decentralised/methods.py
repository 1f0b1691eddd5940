"""How agents mix at a step, and the bytes that this sends over each edge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fl_lowrank.consensus import (
    Choco,
    ChocoState,
    Flows,
    draw_edges,
    draw_matching,
    due,
)
from fl_lowrank.rng import Rng

from .agents import Agents


@dataclass(frozen=True)
class Sent:
    """What a step of mixing has cost.

    Attributes
    ----------
    messages, bytes : Tensor
        Sent over each edge, both ways, int64, shape (edges,).
    """

    messages: Tensor
    bytes: Tensor


class Method(Protocol):
    """A way of mixing."""

    def mix(self, step: int, agents: Agents) -> Sent:
        """Mix all agents at a step, counted from 0."""
        ...


@dataclass(frozen=True)
class Consensus:
    """Every edge whose both ends are due mixes."""

    flows: Flows
    periods: Sequence[int]
    message_bytes: int

    def mix(self, step: int, agents: Agents) -> Sent:
        """Mix."""
        active = due(self.flows.topology, step, self.periods)
        agents.gain_all(self.flows, active.nonzero().reshape(-1))
        messages = 2 * active.long()
        return Sent(messages, messages * self.message_bytes)


@dataclass(frozen=True)
class Gossip:
    """The ends of some edges drawn at random take their mean."""

    flows: Flows
    mix_every: int
    num_edges: int
    matching: bool
    message_bytes: int
    rng: Rng

    def mix(self, step: int, agents: Agents) -> Sent:
        """Mix."""
        topology = self.flows.topology
        drawn = torch.zeros(0, dtype=torch.int64)
        if step % self.mix_every == 0:
            draw = draw_matching if self.matching else draw_edges
            drawn = draw(topology, self.num_edges, self.rng.child(step))
        agents.gain_all(self.flows, drawn)
        messages = 2 * torch.bincount(drawn, minlength=len(topology.edges))
        return Sent(messages, messages * self.message_bytes)


@dataclass
class Compressed:
    """Consensus over compressed messages; statistics travel exactly.

    A message goes to all neighbours, those whose edge rests included, so that they
    know the sender's public copy.
    """

    choco: Choco
    flows: Flows  # of statistics
    periods: Sequence[int]
    statistics_bytes: int
    rng: Rng
    state: ChocoState

    def mix(self, step: int, agents: Agents) -> Sent:
        """Mix."""
        topology = self.choco.mixing.topology
        active = due(topology, step, self.periods)
        agents.parameters, self.state, sizes = self.choco.step(
            agents.parameters, self.state, self.rng.child(step), active
        )
        agents.gain_statistics(self.flows, active.nonzero().reshape(-1))
        first, second = topology.ends()
        sent = (sizes > 0).long()
        sizes = sizes + sent * self.statistics_bytes
        return Sent(sent[first] + sent[second], sizes[first] + sizes[second])
