"""The mail room and its vertices without Flower, over a network that loses messages."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from clients import vertex
from clients.turns import Memory
from fl_lowrank import rng
from fl_lowrank.consensus import Flows, MailRoom, Parcel, Rows, node
from fl_lowrank.envelope import TRAIN, Reply, Request
from fl_lowrank.rng import Rng

#: What a vertex does between two messages: its number, the round, its model.
Training = Callable[[int, int, Mapping[str, Tensor]], dict[str, Tensor]]


class PostOffice:
    """Carries every message as bytes.

    ``total`` is what the sum of all models must be: that of the initial ones and of all
    that was trained, in float64.
    """

    def __init__(
        self,
        flows: Flows,
        initial: Mapping[str, Tensor],
        codec: str = "identity()",
        *,
        loss: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.room = MailRoom(flows, initial)
        self.codec = codec
        self.loss = loss
        self.memories: list[Memory | None] = [None] * flows.topology.num_nodes
        self.total = len(self.memories) * self.room.rows.join(initial).double()
        self.away: set[int] = set()
        self.num_mixed = 0
        self._random = random.Random(seed)

    def round(self, number: int, edges: Tensor, training: Training) -> None:
        """Ask the ends of edges, then mix."""
        ends = torch.cat([e[edges] for e in self.room.flows.topology.ends()])
        for i in sorted(set(ends.tolist()) - self.away):
            draws = rng.stream(7, number, i).key
            asked = self.room.write(
                i, TRAIN, deadline=1e12, codec=self.codec, draws=draws
            )
            if self._is_lost():
                continue
            data = self._answer(i, number, *asked, training)
            if self._is_lost():
                continue
            reply = self.room.claim(i, data)
            if reply is not None:
                self.room.enter(i, reply)
        self.num_mixed += len(self.room.mix(edges))

    def missing(self) -> Tensor:
        """Sum of all models and of the flows that are not in them, less ``total``."""
        found = torch.zeros_like(self.total)
        for memory, box, copy in zip(
            self.memories, self.room.boxes, self.room.public, strict=True
        ):
            if memory is None:
                found += copy
            else:
                found += self.model(memory)
            if box.flow is not None and (memory is None or memory.epoch != box.flow_id):
                found += box.flow
        return found - self.total

    def model(self, memory: Memory) -> Tensor:
        """The model in a memory, float64."""
        parts = []
        for name in self.room.rows.mixed:
            x, rest = (memory.tensors[key + name] for key in ("model/", "rest/"))
            parts.append((x.double() + rest).reshape(-1))
        return torch.cat(parts)

    def models(self) -> Tensor:
        """All models, shape (n, d)."""
        return torch.stack([self.model(m) for m in self.memories if m is not None])

    def distance(self) -> float:
        """Largest distance of a model to the mean, over its norm."""
        models = self.models()
        mean = models.mean(dim=0)
        return float((models - mean).norm(dim=1).max() / mean.norm())

    def _answer(
        self,
        i: int,
        number: int,
        request: Request,
        parcel: Parcel,
        training: Training,
    ) -> bytes:
        request, parcel = (
            Request.unpack(request.pack()),
            Parcel.unpack(parcel.pack()),
        )
        rows = Rows(parcel.layout, request.exact)
        memory = vertex.receive(self.memories[i], request, parcel, rows)
        answer = Reply(
            request.fid, 0, request.ticket, 0, 1, 0.0, False, lossy=b"", exact=b""
        )
        if memory is None:
            return answer.pack()
        before = node.model_of(rows, memory.tensors)
        after = training(i, number, before)
        moved = [after[n].double() - before[n].double() for n in rows.mixed]
        self.total += torch.cat([x.reshape(-1) for x in moved])
        memory = replace(memory, tensors=node.train(memory.tensors, before, after))
        memory, turn, lossy, exact = vertex.speak(memory, request, rows)
        self.memories[i] = memory
        return replace(
            answer,
            epoch=memory.epoch,
            base=memory.base,
            turn=turn,
            lossy=lossy,
            exact=exact,
        ).pack()

    def _is_lost(self) -> bool:
        return self._random.random() < self.loss


def noisy(step: float) -> Training:
    """Take random steps, a function of vertex and round."""

    def train(i: int, number: int, model: Mapping[str, Tensor]) -> dict[str, Tensor]:
        source: Rng = rng.stream(11, i, number)
        return {
            name: x + step * source.child(name).normal(*x.shape).to(x.dtype)
            for name, x in model.items()
        }

    return train


def pulled(i: int, number: int, model: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take the same part of the way to a target of the vertex, in each round."""
    del number
    source: Rng = rng.stream(12, i)
    return {
        name: x - 0.2 * (x - 1.0 - source.child(name).normal(*x.shape).to(x.dtype))
        for name, x in model.items()
    }


def idle(i: int, number: int, model: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Train nothing."""
    del i, number
    return dict(model)
