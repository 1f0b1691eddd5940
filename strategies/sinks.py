"""Where decoded replies go: into one sum, to single replies, or to the nodes' vectors.

A reply is first read, which finds all that is wrong with it, then claimed, then put.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fl_lowrank.envelope import Reply
from fl_lowrank.errors import CompressionError, WireError
from fl_lowrank.model import Layout, ModelCodec
from fl_lowrank.summing import UpdateSum

from .node_book import NodeBook
from .turns import Book

Update = Mapping[str, Tensor]


class Sink(ABC):
    """Takes the compressed updates of a round."""

    @abstractmethod
    def read_all(self, replies: Iterable[Reply]) -> Iterator[Any]:
        """Decode one after the other; an error where one is no update of the model."""

    @abstractmethod
    def norm(self, parts: Any) -> float:
        """Euclidean norm of what was read, without what is in sketches."""

    @abstractmethod
    def put(self, client: str, reply: Reply, parts: Any) -> Update:
        """Take what was read; gives the update if single ones are asked for."""

    def close(self) -> tuple[dict[str, Tensor], Mapping[str, WireError]]:
        """Give the sum, if there is one, and who could not be added after all."""
        return {}, {}

    def give_back(self, part: Tensor) -> None:
        """Free a piece of the sum that is not needed any more; here all is kept."""
        del part


@dataclass
class Summing(Sink):
    """For strategies that need the sum alone: no dense update is made for each."""

    sums: UpdateSum

    def read_all(self, replies: Iterable[Reply]) -> Iterator[Any]:
        """See `Sink`."""
        return self.sums.read_all(reply.lossy for reply in replies)

    def norm(self, parts: Any) -> float:
        """See `Sink`."""
        return float(parts.norm)

    def put(self, client: str, reply: Reply, parts: Any) -> Update:
        """See `Sink`."""
        del reply
        self.sums.put(client, parts)
        return {}

    def close(self) -> tuple[dict[str, Tensor], Mapping[str, WireError]]:
        """See `Sink`."""
        return self.sums.close()

    def give_back(self, part: Tensor) -> None:
        """See `Sink`."""
        self.sums.give_back(part)


@dataclass
class Dense(Sink):
    """What the sinks that decode every reply have in common."""

    layout: Layout

    def read_all(self, replies: Iterable[Reply]) -> Iterator[Any]:
        """See `Sink`."""
        for reply in replies:
            try:
                parts = ModelCodec.decode(reply.lossy, self.layout)
            except CompressionError as error:
                yield error
            else:
                yield parts

    def norm(self, parts: Any) -> float:
        """See `Sink`."""
        norms = (
            float(torch.linalg.vector_norm(x, dtype=torch.float64))
            for x in parts.values()
        )
        return math.hypot(*norms)


@dataclass
class Singly(Dense):
    """For strategies that look at every reply."""

    def put(self, client: str, reply: Reply, parts: Any) -> Update:
        """See `Sink`."""
        del client, reply
        return dict(parts)


@dataclass
class Tracking(Dense):
    """For memories that the server keeps of every client."""

    book: NodeBook
    singly: bool = field(kw_only=True)

    def put(self, client: str, reply: Reply, parts: Any) -> Update:
        """See `Sink`."""
        own = self.book.track(client, reply.turn, parts)
        return own if self.singly else {}


def sink_for(book: Book, layout: Layout, *, singly: bool, norms: bool) -> Sink:
    """Choose by the book's mode and by what the inner strategy needs.

    With ``norms`` everything tells its own, sketches too.
    """
    if isinstance(book, NodeBook):
        return Tracking(layout, book, singly=singly)
    if singly:
        return Singly(layout)
    return Summing(UpdateSum(layout, exact=book.feedback.has_share, norms=norms))
