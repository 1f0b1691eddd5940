"""One evaluation of all nodes: what they measured, and their models."""

from __future__ import annotations

from dataclasses import dataclass, field

from flwr.app import Message, MetricRecord
from torch import Tensor

from fl_lowrank.consensus import MailRoom
from fl_lowrank.consensus.measures import average, consensus_distance
from fl_lowrank.envelope import Reply

from .node_metrics import numbers_in, spreads


@dataclass
class Survey:
    """Answers of vertices, in the order of arrival.

    Attributes
    ----------
    round : int
        After which nodes were asked.
    models : dict
        By vertex.
    """

    round: int = 0
    models: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    _numbers: dict[int, dict[str, float]] = field(default_factory=dict)

    def add(self, room: MailRoom, vertex: int, reply: Reply, message: Message) -> None:
        """Note an answer; `WireError` if it holds no model."""
        self.models[vertex] = room.model(reply)
        self._numbers[vertex] = numbers_in(message)

    def mean(self) -> dict[str, Tensor]:
        """Average the models."""
        return average([self.models[vertex] for vertex in sorted(self.models)])

    def metrics(self, room: MailRoom) -> MetricRecord:
        """Give metrics of all nodes, distance to consensus and bytes over edges.

        What most nodes have measured is given as mean, as ``..._deviation`` over the
        nodes, and as ``..._agents``, the list by vertex.
        """
        vertices = sorted(self.models)
        record = spreads(self._numbers[vertex] for vertex in vertices)
        models = [self.models[vertex] for vertex in vertices]
        record["num_nodes"] = len(vertices)
        distance = consensus_distance(room.rows, models, self.mean())
        record["consensus_distance"] = distance
        for key, value in room.edges.totals().items():
            record[key] = value
        return record
