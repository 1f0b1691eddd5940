"""Memories as they are commonly written: right as long as nothing is lost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..loopback import Fault
from .ends import VECTOR, Ends, replies


@dataclass
class CommitOnSend(Ends):
    """A turn moves the client's memory when it is sent, and the server's if it arrives.

    What a program does that follows the paper's algorithm line by line. State is saved
    after the reply, and nobody checks anything.
    """

    total: dict[str, Tensor] = field(init=False, default_factory=dict)
    members: set[int] = field(init=False, default_factory=set)

    def _exchange(
        self,
        number: int,
        gradients: Tensor,
        asked: Iterable[int],
        faults: Sequence[Fault],
    ) -> Tensor | None:
        arrived = torch.zeros(self.dimension, dtype=torch.float64)
        answers = 0
        for i in asked:
            if not faults[i].request:
                continue
            after, sent = self._take_turn(number, i, self.saved[i], gradients[i])
            if faults[i].crash is None:
                memory = self.feedback.settle(after.memory, sent, applied=True)
                self.saved[i] = replace(after, memory=memory)
            if replies(faults[i]):
                arrived += sent[VECTOR]
                self.members.add(i)
                answers += 1
        if not answers:
            return None
        mean = self._mean(self.total, arrived, len(self.members))
        for name, share in self.feedback.share({VECTOR: arrived}).items():
            self.total[name] = self.total.get(name, 0.0) + share
        return mean
