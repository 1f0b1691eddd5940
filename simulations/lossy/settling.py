"""Memories by the protocol: a turn is settled once its fate is known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from clients.turns import new_turn
from fl_lowrank.envelope import Reply
from fl_lowrank.errors import ProtocolError
from strategies.turns import Book, Staged

from ..loopback import Fault
from .ends import VECTOR, Ends, Saved, replies


@dataclass
class Settling(Ends):
    """A turn moves the client's memory once the server has named it as applied.

    The server is that of ``Compressed`` in mode ``sum``, `strategies.turns.Book`.

    Attributes
    ----------
    save_first : bool
        The memory is on disk before the reply leaves, as in `clients.FileHome`; else
        after, as Flower saves its Context: a client that is killed in between has lost
        a turn which the server has, so that all memories start anew.
    """

    save_first: bool = True
    book: Book = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.book = Book(self.feedback)

    def _exchange(
        self,
        number: int,
        gradients: Tensor,
        asked: Iterable[int],
        faults: Sequence[Fault],
    ) -> Tensor | None:
        staged: list[Staged] = []
        arrived = torch.zeros(self.dimension, dtype=torch.float64)
        for i in asked:
            ticket, applied = self.book.open(str(i))
            if not faults[i].request:
                continue
            before = self.settled(self.saved[i], applied)
            after, sent = self._take_turn(number, i, before, gradients[i])
            turn = new_turn()
            crash = faults[i].crash
            if crash is None or (crash == "after_reply" and self.save_first):
                self.saved[i] = replace(after, pending=(turn, sent))
            if not replies(faults[i]):
                continue
            reply = Reply(
                fid=self.book.fid,
                epoch=self.book.epoch,
                ticket=ticket,
                base=before.base,
                turn=turn,
                encode_seconds=0.0,
                error_dropped=False,
                lossy=b"",  # what it decodes to is at hand
                exact=b"",
            )
            try:
                self.book.claim(str(i), reply)
            except ProtocolError:
                continue  # a lost memory: it and all others start anew
            staged.append(Staged(str(i), turn, num_examples=1.0))
            arrived += sent[VECTOR]
        if not staged:
            self.book.roll_back()
            return None
        members = self.book.members.keys() | {s.client for s in staged}
        mean = self._mean(self.book.total, arrived, len(members))
        self.book.stage(staged, {VECTOR: arrived})
        self.book.commit(number)
        return mean

    def settled(self, saved: Saved, applied: int) -> Saved:
        """Bring a memory in line with what the server has applied.

        The rules of `clients.turns.settle`, on tensors instead of bytes.
        """
        if saved.epoch != self.book.epoch:
            saved = replace(self._empty(), epoch=self.book.epoch)
        if saved.pending is not None and applied == saved.pending[0]:
            turn, sent = saved.pending
            memory = self.feedback.settle(saved.memory, sent, applied=True)
            return replace(saved, memory=memory, base=turn, pending=None)
        if applied != saved.base:
            return replace(self._empty(), epoch=self.book.epoch)
        memory = self.feedback.settle(saved.memory, {}, applied=False)
        return replace(saved, memory=memory, pending=None)
