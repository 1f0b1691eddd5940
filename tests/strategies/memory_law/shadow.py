"""What one client must remember, told only from what can be seen from outside.

A `Shadow` is dense and float64. It knows which turns the server has applied, and
which misfortunes the network has brought; it knows nothing of ids, tickets and bases,
by which the two ends find that out themselves.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from fl_lowrank.envelope import Request, Ticket

Vector = NDArray[np.float64]

#: Turns in a row that do not arrive, after which error feedback gives up its error.
PATIENCE = 3


@dataclass(eq=False)
class Turn:
    """One training that a client brought to its end.

    Attributes
    ----------
    client, ticket, number, base, payload
        Read from the reply's bytes as they left the client.
    num_examples : float
        Weight that the training reported.
    update : Vector
        ``num_examples / scale * (trained - received)``.
    sent : Vector
        The payload, decoded.
    move : Vector
        What its being applied adds to the memory.
    before : Vector
        The memory that it should have been made with.
    saved : bool
        The client's state outlived it.
    counted : bool
        Its update has entered the sum of updates.
    applied : bool
        The server has committed it.
    forgotten : bool
        The memory that held it was lost afterwards.
    committed, undone : Ticket, optional
        Newest request when the server applied it, and when a restart undid that. What
        was asked in between, and comes late, still says that it was applied.
    """

    client: str
    ticket: Ticket
    number: int
    base: int
    payload: bytes
    num_examples: float
    update: Vector
    sent: Vector
    move: Vector
    before: Vector
    saved: bool = False
    counted: bool = False
    applied: bool = False
    forgotten: bool = False
    committed: Ticket = (0, 0)
    undone: Ticket = (0, 0)

    def arrived(self, request: Request) -> bool:
        """Whether this request says, or said when it was made, that it was applied."""
        return self.applied or self.misleads(request)

    def misleads(self, request: Request) -> bool:
        return not self.applied and self.committed < request.ticket <= self.undone


@dataclass
class Books:
    """The three sums of error feedback; what is left of the first is the error."""

    updates: Vector
    applied: Vector
    given_up: Vector
    causes: list[str] = field(default_factory=list)

    @property
    def error(self) -> Vector:
        return self.updates - self.applied - self.given_up


@dataclass(frozen=True)
class Shadow:
    """The memory that a client should have.

    Attributes
    ----------
    memory : Vector
        As saved: with error feedback it includes the update that is under way.
    epoch : int, optional
        That of the last request served.
    base : int
        Number of the last turn that the memory has settled; 0 after a reset.
    pending : Turn, optional
        The one whose fate the client does not know.
    num_lost : int
        Turns in a row that did not arrive.
    estranged : frozenset of Ticket
        The server has applied turns of these tickets which the client has not saved,
        or has lost: the next request that is newer than one of them must make it give
        up its memory.
    seen : Ticket
        Newest request served.
    ghosts : tuple of Turn
        Never saved, applied, and undone by a restart before the client heard of it. A
        late request from that time still names them.
    """

    memory: Vector
    epoch: int | None = None
    base: int = 0
    pending: Turn | None = None
    num_lost: int = 0
    estranged: frozenset[Ticket] = frozenset()
    seen: Ticket = (0, 0)
    ghosts: tuple[Turn, ...] = ()

    def emptied(self) -> Shadow:
        return Shadow(np.zeros_like(self.memory), self.epoch, seen=self.seen)

    def settled(
        self, request: Request, *, has_share: bool
    ) -> tuple[Shadow, Vector, str]:
        """Give the shadow after a request, what was given up, and why."""
        nothing = np.zeros_like(self.memory)
        now = replace(self, seen=request.ticket, epoch=request.epoch)
        if has_share and request.epoch != self.epoch:
            return now.emptied(), self.memory, "epoch"
        if now.pending is not None:
            arrived = now.pending.arrived(request)
            if now.pending.misleads(request):
                now = replace(now, estranged=now.estranged | {now.pending.undone})
            now = replace(
                now,
                memory=now.memory + now.pending.move if arrived else now.memory,
                base=now.pending.number if arrived else now.base,
                num_lost=0 if arrived else now.num_lost + 1,
                pending=None,
            )
        misled = {g.undone for g in now.ghosts if g.misleads(request)}
        left = {ticket for ticket in now.estranged if ticket >= request.ticket}
        if misled or left != now.estranged:
            cause = "estranged" if now.memory.any() else ""
            emptied = replace(now.emptied(), estranged=frozenset(left | misled))
            return emptied, now.memory, cause
        if now.num_lost >= PATIENCE and not has_share:
            return replace(now.emptied(), base=now.base), now.memory, "stale"
        return now, nothing, ""
