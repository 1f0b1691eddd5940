"""Bytes over each edge, as if the link were direct."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..topology import Topology


@dataclass
class EdgeBytes:
    """Counts what vertices send to their neighbours.

    Attributes
    ----------
    topology : Topology
        The graph.
    messages, bytes : Tensor
        So far over each edge, both ways, int64, shape (edges,).
    """

    topology: Topology
    messages: Tensor = field(init=False)
    bytes: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.messages = torch.zeros(len(self.topology.edges), dtype=torch.int64)
        self.bytes = torch.zeros_like(self.messages)

    def add(self, vertex: int, num_bytes: int, edges: Tensor) -> None:
        """Note a message that a vertex sends over those of the edges that are its own.

        Parameters
        ----------
        vertex : int
            The sender.
        num_bytes : int
            Size of its message.
        edges : Tensor
            Positions in ``topology.edges``; one that comes twice is used twice.
        """
        first, second = (ends[edges] for ends in self.topology.ends())
        own = edges[(first == vertex) | (second == vertex)]
        counts = torch.bincount(own, minlength=len(self.messages))
        self.messages += counts
        self.bytes += num_bytes * counts

    def totals(self) -> dict[str, int | float]:
        """Give sums, and the mean and the most over an edge."""
        total = int(self.bytes.sum())
        return {
            "messages": int(self.messages.sum()),
            "bytes": total,
            "bytes_per_edge": total / max(len(self.bytes), 1),
            "bytes_per_edge_most": max(self.bytes.tolist(), default=0),
        }
