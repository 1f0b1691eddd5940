"""What each vertex gains when some edges mix, computed from public copies alone.

A flow is owed to both ends of an edge, so that it can arrive late without moving the
mean: an edge moves ``f_ij = gamma w_ij (h_j - h_i)`` from j to i, h the public copies,
and all flows of a round together are zero up to the rounding of float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..exchange import average_pairs
from ..mixing import Mixing
from ..topology import Topology


class Flows(Protocol):
    """A rule of mixing."""

    @property
    def topology(self) -> Topology:
        """The graph."""
        ...

    @property
    def tracks(self) -> bool:
        """Whether vertices send differences to public copies, and not their models."""
        ...

    def of(self, public: Tensor, num_parameters: int, edges: Tensor) -> Tensor:
        """Give the flow of every vertex.

        Parameters
        ----------
        public : Tensor
            Shape (n, d): parameters, then statistics of normalisation layers.
        num_parameters : int
            How many of the d are parameters.
        edges : Tensor
            Positions in ``topology.edges``, int64, in the order in which they mix.

        Returns
        -------
        Tensor
            float64, shape (n, d).
        """
        ...


@dataclass(frozen=True)
class Averaging:
    """All edges mix models at once.

    Attributes
    ----------
    mixing, statistics_mixing : Mixing
        Of parameters, and of statistics, whose weights should not be negative.
    """

    mixing: Mixing
    statistics_mixing: Mixing
    tracks = False

    @property
    def topology(self) -> Topology:
        """The graph."""
        return self.mixing.topology

    def of(self, public: Tensor, num_parameters: int, edges: Tensor) -> Tensor:
        """See `Flows`."""
        return _at_once(self, 1.0, public, num_parameters, edges)


@dataclass(frozen=True)
class Tracking:
    """CHOCO: parameters flow by differences of public copies.

    Attributes
    ----------
    mixing, statistics_mixing : Mixing
        As of `Averaging`; statistics are sent and mixed exactly.
    gamma : float
        See `choco.Choco`.
    """

    mixing: Mixing
    statistics_mixing: Mixing
    gamma: float
    tracks = True

    @property
    def topology(self) -> Topology:
        """The graph."""
        return self.mixing.topology

    def of(self, public: Tensor, num_parameters: int, edges: Tensor) -> Tensor:
        """See `Flows`."""
        return _at_once(self, self.gamma, public, num_parameters, edges)


@dataclass(frozen=True)
class Pairs:
    """One edge after the other, both ends take their mean: gossip."""

    topology: Topology
    tracks = False

    def of(self, public: Tensor, num_parameters: int, edges: Tensor) -> Tensor:
        """See `Flows`."""
        del num_parameters
        first, second = (ends[edges] for ends in self.topology.ends())
        known = public.double()
        return average_pairs(known, first, second) - known


def _at_once(
    rule: Averaging | Tracking,
    gamma: float,
    public: Tensor,
    num_parameters: int,
    edges: Tensor,
) -> Tensor:
    active = torch.zeros(len(rule.topology.edges), dtype=torch.bool)
    active[edges] = True
    if num_parameters == public.shape[1]:  # nothing to join, which would be a copy
        return rule.mixing.flow(public, active, gamma)
    parameters, statistics = public.tensor_split([num_parameters], dim=1)
    parts = (
        rule.mixing.flow(parameters, active, gamma),
        rule.statistics_mixing.flow(statistics, active),
    )
    return torch.cat(parts, dim=1)
