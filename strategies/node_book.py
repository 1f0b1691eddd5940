"""Mode ``per-node``: the server also keeps every client's shared vectors, on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from logging import WARNING

import torch
from flwr.common import log
from torch import Tensor

from fl_lowrank.envelope import Reply
from fl_lowrank.errors import ProtocolError

from .node_memories import NodeMemories
from .turns import Book, Member, Staged, keep, slices


@dataclass
class NodeBook(Book):
    """Knows what each client's vectors are, not only their sum.

    So a lost memory, or an evicted client, is subtracted from the sum exactly and costs
    nobody else; the mean is over those that answer; and a strategy that looks at
    single replies gets each client's own estimate.

    Attributes
    ----------
    memories : NodeMemories
        The vectors.
    """

    memories: NodeMemories = field(kw_only=True)
    _lost: set[str] = field(default_factory=set)
    _before: dict[str, Tensor] = field(default_factory=dict)
    _change: dict[str, Tensor] = field(default_factory=dict)
    _gone: dict[str, Tensor] = field(default_factory=dict)

    def check_memories(self) -> None:
        """Start anew if vectors are gone, as after a restart from an old checkpoint."""
        gone = [c for c, m in self._applied().items() if not self.memories.has(c, m)]
        if gone:
            text = "Compressed: %s memories are lost on the server, all start anew"
            log(WARNING, text, len(gone))
            self.reset()

    def _check_base(self, client: str, reply: Reply) -> None:
        """Refuse a turn made with another memory, but let an empty one join anew."""
        self._lost.discard(client)
        if reply.base == 0 != self.members.get(client, Member()).applied:
            self._lost.add(client)
            return
        super()._check_base(client, reply)

    def track(
        self, client: str, turn: int, sent: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Move a client's vectors by what it has sent, as it does itself.

        Returns
        -------
        dict
            The client's own estimate of its update, float64 and weighted.

        Raises
        ------
        ProtocolError
            If the vectors are damaged: all memories start anew after this round.
        """
        old: dict[str, Tensor] = {}
        applied = self.members.get(client, Member()).applied
        if applied:
            try:
                old = self.memories.read(client, applied)
            except ProtocolError:
                self._reset = True
                raise
        joins = not applied or client in self._lost
        before = {k: torch.zeros_like(v) if joins else old[k] for k, v in sent.items()}
        moved = self.feedback.moved(before, sent)
        self.memories.write(client, turn, moved)
        _add(self._before, before)
        _add(self._arrived, sent)
        _add(self._change, moved)
        _add(self._change, old, -1.0)
        if joins:
            _add(self._gone, old)
        return {k: before[k].to(torch.float64) + v for k, v in sent.items()}

    def stage(
        self,
        staged: list[Staged],
        arrived: dict[str, Tensor],
        give_back: Callable[[Tensor], None] = keep,
    ) -> None:
        """Note the turns of this round; `track` has summed what they sent."""
        del arrived, give_back
        self._staged = staged

    def estimate(self, name: str) -> Iterator[Tensor]:
        """Give the mean update of one tensor, over those who answered."""
        if self.feedback.over_members:
            yield from super().estimate(name)
            return
        weight = sum(s.num_examples for s in self._staged)
        before, arrived = ({name: t[name]} for t in (self._before, self._arrived))
        for old, new in slices(before, arrived):
            yield self.feedback.estimate(old, new, weight, weight)[name]

    def _total_of(self, name: str) -> dict[str, Tensor]:
        """Leave out what clients that lost their memory had in the sum."""
        found = super()._total_of(name)
        return {
            k: v - self._gone[k] if k in self._gone else v for k, v in found.items()
        }

    def commit(self, round_: int) -> None:
        """Apply the staged turns."""
        _add(self.total, self._change)
        super().commit(round_)

    def _share(self) -> dict[str, Tensor]:
        return {}  # the sum has got the change of the vectors themselves

    def _end_round(self) -> None:
        self._lost.clear()
        self._before, self._change, self._gone = {}, {}, {}
        super()._end_round()

    def evict(self, clients: Iterable[str]) -> None:
        """Subtract clients' vectors from the sum; they begin anew when they answer."""
        for client in clients:
            member = self.members.pop(client, None)
            if member is not None and member.applied:
                try:
                    _add(self.total, self.memories.read(client, member.applied), -1.0)
                except ProtocolError:
                    self.reset()
                    return

    def settled(self) -> None:
        """Remove vectors that no checkpoint needs any more."""
        self.memories.keep_only(self._applied())

    def _applied(self) -> dict[str, int]:
        return {c: m.applied for c, m in self.members.items() if m.applied}


def _add(
    total: dict[str, Tensor], values: Mapping[str, Tensor], weight: float = 1.0
) -> None:
    """Add to a float64 sum, in place."""
    for name, value in values.items():
        if name not in total:
            total[name] = torch.zeros(value.shape, dtype=torch.float64)
        total[name].add_(value, alpha=weight)
