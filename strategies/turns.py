"""The server's side of the memory protocol.

`Book` knows for each client the last turn that was applied, and for feedbacks with a
share the sum of all memories. A round is a transaction: turns are staged, then all
committed or all rolled back.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from torch import Tensor

from fl_lowrank.envelope import Reply, Ticket
from fl_lowrank.errors import ProtocolError
from fl_lowrank.feedback import Feedback

#: Entries of a tensor that are handled at a time.
SLICE = 2**16


def keep(part: Tensor) -> None:
    """Give back nothing."""
    del part


def new_fid() -> bytes:
    """Name a training, by 128 random bits."""
    return secrets.token_bytes(16)


@dataclass
class Member:
    """What the server keeps of one client: O(1), whatever the model.

    Attributes
    ----------
    applied : int
        Id of its last applied turn in this epoch; 0 for none.
    num_examples : float
        Weight with which its memory stands in the sum.
    round : int
        When that was.
    """

    applied: int = 0
    num_examples: float = 0.0
    round: int = 0


@dataclass(frozen=True)
class Staged:
    """A turn that is applied if the round succeeds."""

    client: str
    turn: int
    num_examples: float


@dataclass
class Book:
    """State of all memories of one training, in mode ``sum``.

    Attributes
    ----------
    feedback : Feedback
        What the clients remember.
    fid : bytes
        The training.
    epoch : int
        Changes when all memories start anew.
    start : int
        First part of all tickets; grows with each start of the server.
    members : dict
        By client key.
    total : dict
        Sum of all memories in weighted units, float64; only with a share.
    num_resets : int
        How often the epoch has changed.
    """

    feedback: Feedback
    fid: bytes = field(default_factory=new_fid)
    epoch: int = field(default_factory=lambda: secrets.randbits(64))
    start: int = field(default_factory=lambda: time.time_ns())
    members: dict[str, Member] = field(default_factory=dict)
    total: dict[str, Tensor] = field(default_factory=dict)
    num_resets: int = 0
    _seq: int = 0
    _open: dict[str, Ticket] = field(default_factory=dict)
    _staged: list[Staged] = field(default_factory=list)
    _arrived: dict[str, Tensor] = field(default_factory=dict)
    _give_back: Callable[[Tensor], None] = keep
    _reset: bool = False

    def plain(self) -> dict[str, Any]:
        """Give what must survive a restart; tickets need not."""
        return {
            "fid": self.fid.hex(),
            "epoch": self.epoch,
            "start": self.start,
            "members": {
                c: [m.applied, m.num_examples, m.round] for c, m in self.members.items()
            },
            "total": self.total,
            "num_resets": self.num_resets,
        }

    @classmethod
    def resumed(cls, feedback: Feedback, plain: Mapping[str, Any], **more: Any) -> Self:
        """Go on with what `plain` gave; all tickets are newer than before."""
        return cls(
            feedback,
            bytes.fromhex(plain["fid"]),
            plain["epoch"],
            max(plain["start"] + 1, time.time_ns()),
            {c: Member(*fields) for c, fields in plain["members"].items()},
            plain["total"],
            plain["num_resets"],
            **more,
        )

    def open(self, client: str) -> tuple[Ticket, int]:
        """Open a request to a client, closing its older one.

        Returns
        -------
        tuple of Ticket and int
            The ticket, and the last turn of this client that was applied.
        """
        self._seq += 1
        ticket = (self.start, self._seq)
        self._open[client] = ticket
        return ticket, self.members.get(client, Member()).applied

    def claim(self, client: str, reply: Reply) -> None:
        """Accept a reply to the open request, once, and close the request.

        Raises
        ------
        ProtocolError
            If the reply is late, repeated or of another training or epoch, or if the
            memory it was made with is not the one that the server knows.
        """
        if self._open.get(client) != reply.ticket:
            msg = f"its ticket {reply.ticket} is not the open one; late or repeated"
            raise ProtocolError(msg)
        if (reply.fid, reply.epoch) != (self.fid, self.epoch):
            msg = "it belongs to another training or epoch"
            raise ProtocolError(msg)
        del self._open[client]
        self._check_base(client, reply)

    def _check_base(self, client: str, reply: Reply) -> None:
        """Refuse a turn that was made with another memory than the server's."""
        applied = self.members.get(client, Member()).applied
        if not self.feedback.has_share or reply.base == applied:
            return
        if reply.base == 0:
            self._reset = True
            msg = (
                "its memory is lost; all memories start anew with the next round "
                '(memory="per-node" would spare the others)'
            )
            raise ProtocolError(msg)
        msg = f"its memory holds turn {reply.base:x}, the server applied {applied:x}"
        raise ProtocolError(msg)

    def stage(
        self,
        staged: list[Staged],
        arrived: dict[str, Tensor],
        give_back: Callable[[Tensor], None] = keep,
    ) -> None:
        """Note the turns of this round, and the float64 sum of what they sent.

        Where that is not to be committed, it is given back while estimates are made.
        """
        self._staged = staged
        self._arrived = arrived
        self._give_back = keep if self.feedback.has_share else give_back

    @property
    def staged(self) -> list[Staged]:
        """Turns of this round."""
        return self._staged

    def estimate(self, name: str) -> Iterator[Tensor]:
        """Give the mean update of one tensor, in units of ``update / scale``, once.

        Flat and in slices of `SLICE` entries, since models are large.
        """
        changed = {s.client: s.num_examples for s in self._staged}
        weights = {c: m.num_examples for c, m in self.members.items() if m.applied}
        members = sum((weights | changed).values())
        total = self._total_of(name)
        arrived = {name: self._arrived[name]}
        weight = sum(changed.values())
        for old, new in slices(total, arrived):
            yield self.feedback.estimate(old, new, weight, members)[name]
            self._give_back(new[name])

    def forget_arrived(self) -> None:
        """Free what estimates were made of, unless it is to be committed."""
        if not self.feedback.has_share:
            self._arrived = {}

    def _total_of(self, name: str) -> dict[str, Tensor]:
        return {name: self.total[name]} if name in self.total else {}

    def commit(self, round_: int) -> None:
        """Apply the staged turns."""
        for name, share in self._share().items():
            if name in self.total:
                self.total[name] += share
            else:
                self.total[name] = share
        if self.feedback.has_memory:
            for s in self._staged:
                self.members[s.client] = Member(s.turn, s.num_examples, round_)
        self._end_round()

    def _share(self) -> dict[str, Tensor]:
        return self.feedback.share(self._arrived) if self.feedback.has_share else {}

    def roll_back(self) -> None:
        """Apply none of the staged turns; the clients will take them back."""
        self._end_round()

    def _end_round(self) -> None:
        self._staged = []
        self._arrived = {}
        self._open.clear()
        if self._reset:
            self.reset()

    def evict(self, clients: Iterable[str]) -> None:
        """Take clients' memories out of the sum, between rounds.

        One client's part of the sum is not known here, so all memories start anew.
        """
        known = [c for c in clients if self.members.pop(c, None) is not None]
        if known and self.feedback.has_share:
            self.reset()

    def silent_since(self, round_: int) -> list[str]:
        """Give the members whose last applied turn is older than a round."""
        return [c for c, m in self.members.items() if m.round < round_]

    def settled(self) -> None:
        """Forget what only an older checkpoint needs."""

    def reset(self) -> None:
        """Let all memories start anew: a new epoch."""
        self.epoch = secrets.randbits(64)
        self.members.clear()
        self.total = {}
        self.num_resets += 1
        self._reset = False


def slices(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor]
) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Cut tensors of one size, of which there may be none in the first, into slices."""
    a, b = ({k: v.reshape(-1) for k, v in t.items()} for t in (first, second))
    for begin in range(0, max(v.numel() for v in b.values()), SLICE):
        end = begin + SLICE
        yield (
            {k: v[begin:end] for k, v in a.items()},
            {k: v[begin:end] for k, v in b.items()},
        )
