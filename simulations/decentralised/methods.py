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
    draw_edges,
    draw_matching,
    due,
)
from fl_lowrank.exchange import average_pairs
from fl_lowrank.mixing import Mixing
from fl_lowrank.rng import Rng
from fl_lowrank.topology import Topology


@dataclass(frozen=True)
class Mixed:
    """What a step of mixing leaves.

    Attributes
    ----------
    parameters, statistics : Tensor
        Of all agents.
    messages, bytes : Tensor
        Sent over each edge, both ways, int64, shape (edges,).
    """

    parameters: Tensor
    statistics: Tensor
    messages: Tensor
    bytes: Tensor


class Method(Protocol):
    """A way of mixing."""

    def mix(self, step: int, parameters: Tensor, statistics: Tensor) -> Mixed:
        """Mix all agents at a step, counted from 0."""
        ...


@dataclass(frozen=True)
class Consensus:
    """Every edge whose both ends are due mixes.

    Statistics of normalisation layers mix with `statistics_mixing`, whose weights are
    not negative, so that variances stay positive.
    """

    mixing: Mixing
    statistics_mixing: Mixing
    periods: Sequence[int]
    message_bytes: int

    def mix(self, step: int, parameters: Tensor, statistics: Tensor) -> Mixed:
        """Mix."""
        active = due(self.mixing.topology, step, self.periods)
        messages = 2 * active.long()
        if not bool(active.any()):
            return Mixed(parameters, statistics, messages, messages)
        return Mixed(
            self.mixing.step(parameters, active),
            self.statistics_mixing.step(statistics, active),
            messages,
            messages * self.message_bytes,
        )


@dataclass(frozen=True)
class Gossip:
    """The ends of some edges drawn at random take their mean."""

    topology: Topology
    mix_every: int
    num_edges: int
    matching: bool
    message_bytes: int
    rng: Rng

    def mix(self, step: int, parameters: Tensor, statistics: Tensor) -> Mixed:
        """Mix."""
        drawn = torch.zeros(0, dtype=torch.int64)
        if step % self.mix_every == 0:
            draw = draw_matching if self.matching else draw_edges
            drawn = draw(self.topology, self.num_edges, self.rng.child(step))
        messages = 2 * torch.bincount(drawn, minlength=len(self.topology.edges))
        first, second = (ends[drawn] for ends in self.topology.ends())
        return Mixed(
            average_pairs(parameters, first, second),
            average_pairs(statistics, first, second),
            messages,
            messages * self.message_bytes,
        )


@dataclass
class Compressed:
    """Consensus over compressed messages; statistics travel exactly.

    A message goes to all neighbours, those whose edge rests included, so that they
    know the sender's public copy.
    """

    choco: Choco
    statistics_mixing: Mixing
    periods: Sequence[int]
    statistics_bytes: int
    rng: Rng
    state: ChocoState

    def mix(self, step: int, parameters: Tensor, statistics: Tensor) -> Mixed:
        """Mix."""
        topology = self.choco.mixing.topology
        active = due(topology, step, self.periods)
        mixed, self.state, sizes = self.choco.step(
            parameters, self.state, self.rng.child(step), active
        )
        first, second = topology.ends()
        sent = (sizes > 0).long()
        sizes = sizes + sent * self.statistics_bytes
        return Mixed(
            mixed,
            self.statistics_mixing.step(statistics, active),
            sent[first] + sent[second],
            sizes[first] + sizes[second],
        )
