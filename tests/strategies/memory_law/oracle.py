"""The law of the two memories, checked from outside.

The `Oracle` sees the requests and replies that cross the clients' doors, what the
training function did, the Contexts that were saved, and which turns the server
commits. From these it keeps a dense `Shadow` of each client and of the server's sum,
and notes in a `Verdict` whatever the real memories do otherwise.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from flwr.app import Context

from clients import storage
from fl_lowrank.envelope import Reply, Request, Ticket
from fl_lowrank.feedback import Feedback
from strategies.turns import Staged

from .shadow import Books, Shadow, Turn, Vector
from .verdict import Verdict, flat


@dataclass
class Call:
    """One request that a client app has handled."""

    client: str
    request: Request
    context: Context
    refused: bool
    turn: Turn | None


@dataclass(frozen=True)
class Snapshot:
    """What the server knows when it writes a checkpoint."""

    num_applied: int
    tables: tuple[dict[str, Any], ...]


class Oracle:
    """Follows one training.

    Parameters
    ----------
    feedback : Feedback
        Only its flags are used, and its rate if it has one.
    size : int
        Entries of the compressed arrays.
    contexts : dict
        The grid's, by node id; looked up, never changed.
    node_ids : dict
        By client key.
    per_node : bool
        The server knows every client's vector.
    """

    def __init__(
        self,
        feedback: Feedback,
        size: int,
        contexts: dict[int, Context],
        node_ids: dict[str, int],
        *,
        per_node: bool = False,
    ) -> None:
        self.per_node = per_node
        self.has_share = feedback.has_share
        #: DIANA moves the shared vector by a part of what is sent, and estimates.
        self.rate = getattr(feedback, "rate", 1.0) if feedback.name == "diana" else None
        self.zero = np.zeros(size)
        self.contexts = contexts
        self.node_ids = node_ids
        self.clock: Callable[[], float] = time.time
        self.verdict = Verdict()
        self.events: Counter[str] = Counter()
        self.shadows = {c: Shadow(self.zero) for c in node_ids}
        self.books = {
            c: Books(self.zero.copy(), self.zero.copy(), self.zero.copy())
            for c in node_ids
        }
        self.turns: dict[tuple[str, Ticket, int, bytes], Turn] = {}
        self.numbers: dict[int, Turn] = {}
        self.last_ticket: Ticket = (0, 0)
        # The server, as it should be: what each client has in the sum, and when.
        self.shares: dict[str, Vector] = {}
        self.last_applied: dict[str, int] = {}
        self.num_examples: dict[str, float] = {}
        self.newest: dict[str, Ticket] = {}  # ticket of the last applied turn
        self.history: list[Turn] = []  # all that the server has applied, in order
        self.claimed: list[Turn] = []
        self.step = self.zero  # of the model in this round, in units of the scale
        self.cause_of_reset = False
        self._calls: dict[str, Call] = {}

    def move(self, sent: Vector) -> Vector:
        """Give what the memory gains when the server applies what was sent."""
        if not self.has_share:
            return -sent
        return sent if self.rate is None else self.rate * sent

    # --- what happens at a client

    def begins(self, client: str, *, lost_memory: bool) -> None:
        """Note that a client is about to handle a message, maybe with no memory."""
        self.end_call(client, compare=not lost_memory)
        if lost_memory:
            self._lose(client)

    def _lose(self, client: str) -> None:
        shadow = self.shadows[client]
        self._give_up(client, _settled_by_truth(shadow), "lost")
        for turn in self.turns.values():
            if turn.client == client and turn.saved:
                turn.forgotten = True
        if self.last_applied.get(client) or shadow.pending is not None:
            self.cause_of_reset = True
        # The server's turn is not in the new memory; any request that names it says so.
        named = {self.newest[client]} if client in self.newest else set()
        self.shadows[client] = Shadow(self.zero, estranged=frozenset(named))

    def handled(self, call: Call) -> None:
        """Check what a client has done with a request."""
        shadow = self.shadows[call.client]
        expired = self.clock() > call.request.deadline
        expected = expired or call.request.ticket <= shadow.seen
        if expected != call.refused:
            what = "refused" if call.refused else "served"
            self.verdict.breach(
                "tickets",
                f"{call.client} {what} {call.request.ticket} after {shadow.seen}",
            )
        if call.refused:
            self.events["refused"] += 1
            return
        after, _, _ = shadow.settled(call.request, has_share=self.has_share)
        if call.turn is not None:
            call.turn.before = after.memory
            self._register(call.turn)
        self._calls[call.client] = call

    def end_call(self, client: str, *, compare: bool = True) -> None:
        """Find out whether the client's last state was saved, and follow it."""
        call = self._calls.pop(client, None)
        if call is None or self.contexts[self.node_ids[client]] is not call.context:
            return
        shadow = self.shadows[client]
        after, dropped, cause = shadow.settled(call.request, has_share=self.has_share)
        if shadow.pending is not None and shadow.pending.misleads(call.request):
            self._give_up(client, shadow.pending.sent, "undone")
        if cause:
            self._give_up(client, dropped, cause)
        if (turn := call.turn) is not None:
            turn.saved = True
            self._count(turn)
            memory = after.memory if self.has_share else after.memory + turn.update
            after = replace(after, memory=memory, pending=turn)
        self.shadows[client] = after
        if compare:
            self.compare(client)

    def _register(self, turn: Turn) -> None:
        self.verdict.scale_with(turn.client, turn.update, turn.sent, turn.before)
        if self.numbers.setdefault(turn.number, turn) is not turn:
            self.verdict.breach("ids", f"{turn.client} reuses number {turn.number:x}")
        self.turns[turn.client, turn.ticket, turn.number, turn.payload] = turn

    def _count(self, turn: Turn) -> None:
        turn.counted = True
        self.books[turn.client].updates += turn.update

    def _give_up(self, client: str, what: Vector, cause: str) -> None:
        self.books[client].given_up += what
        self.books[client].causes.append(cause)
        self.events[f"gave up, {cause}"] += 1

    # --- what happens at the server

    def opened(self, ticket: Ticket) -> None:
        """Check that tickets grow."""
        if not ticket > self.last_ticket:
            self.verdict.breach("tickets", f"{ticket} opened after {self.last_ticket}")
        self.last_ticket = ticket

    def claim(self, client: str, reply: Reply) -> None:
        """Note a reply that the server has accepted for this round."""
        turn = self.turns.get((client, reply.ticket, reply.turn, reply.lossy))
        if turn is None:
            self.verdict.breach("accept", f"a reply that {client} has never sent")
        else:
            self.claimed.append(turn)

    def commit(self, staged: Iterable[Staged]) -> None:
        """Apply to the shadows what the server is about to apply."""
        for client in self.node_ids:
            self.end_call(client)
        found = [(s.client, s.turn, s.num_examples) for s in staged]
        wanted = [(t.client, t.number, t.num_examples) for t in self.claimed]
        if found != wanted:
            self.verdict.breach("accept", f"committed {found}, claimed {wanted}")
        for turn in self.claimed:
            if self.per_node and turn.base == 0:
                self.shares.pop(turn.client, None)  # it joins anew
                self.last_applied.pop(turn.client, None)
        before = sum(self.shares.values(), self.zero)
        for turn in self.claimed:
            self._apply(turn)
        self.step = self._mean(before)
        self.claimed = []

    def _mean(self, before: Vector) -> Vector:
        """Give the mean update of the round."""
        arrived = sum(t.num_examples for t in self.claimed)
        mean_sent = sum((t.sent for t in self.claimed), self.zero) / arrived
        if not self.has_share:
            return mean_sent
        members = sum(self.num_examples.values())
        if self.rate is not None:
            return before / members + mean_sent
        if self.per_node:
            moved = (self.shares[t.client] for t in self.claimed)
            return sum(moved, self.zero) / arrived
        mean = sum(self.shares.values(), self.zero) / members
        return mean * (arrived / members)  # all members, damped by who took part

    def _apply(self, turn: Turn) -> None:
        client, books = turn.client, self.books[turn.client]
        self.events["applied"] += 1
        if turn.applied:
            self.verdict.breach("accept", f"{client}: the same turn applied twice")
        own = self.shadows[client].pending is turn
        if not own:
            self._estrange(turn)
        turn.applied, turn.committed = True, self.last_ticket
        self.history.append(turn)
        books.applied += turn.sent
        if self.has_share:
            share = self.shares.get(client, self.zero)
            what = "the memory it was made with"
            self.verdict.close(client, "accept", what, turn.before, share)
            if turn.base != self.last_applied.get(client, 0):
                self.verdict.breach("accept", f"{client}: base {turn.base:x} is wrong")
            self.shares[client] = share + turn.move
        self.last_applied[client] = turn.number
        self.newest[client] = turn.ticket
        self.num_examples[client] = turn.num_examples

    def _estrange(self, turn: Turn) -> None:
        """Applied without its client's knowing: this needs an excuse."""
        client = turn.client
        if turn.saved and not turn.forgotten:
            text = f"{client}: a turn that was taken back is applied, {turn.ticket}"
            self.verdict.breach("accept", text)
        self.events["applied, but not saved"] += 1
        self.cause_of_reset = True
        if not turn.counted:
            self._count(turn)
            self._give_up(client, turn.update, "not saved")
        self.books[client].given_up -= turn.sent  # this much has arrived after all
        shadow = self.shadows[client]
        estranged = shadow.estranged | {turn.ticket}
        self.shadows[client] = replace(shadow, estranged=estranged)

    def checkpoint(self) -> Snapshot:
        """Note what the server knows now."""
        tables = (self.shares, self.last_applied, self.num_examples, self.newest)
        return Snapshot(len(self.history), tuple(map(dict, tables)))

    def restart(self, snapshot: Snapshot) -> None:
        """Let the server be as it was; what it has applied since is undone.

        A client that still holds such a turn as pending takes it back. One that has
        settled it holds a memory that the server does not know, and must give it up;
        but not one that has never saved the turn, nor heard that it was applied.
        """
        for client in self.node_ids:
            self.end_call(client)
        self.events["restart"] += 1
        undone = self.history[snapshot.num_applied :]
        self.events["undone"] += len(undone)
        del self.history[snapshot.num_applied :]
        for turn in undone:
            turn.applied, turn.undone = False, self.last_ticket
            self.books[turn.client].applied -= turn.sent
            shadow = self.shadows[turn.client]
            if shadow.pending is turn:
                continue
            self._give_up(turn.client, turn.sent, "undone")
            if not turn.saved and turn.ticket in shadow.estranged:
                now = replace(shadow, ghosts=(*shadow.ghosts, turn))
                estranged = shadow.estranged - {turn.ticket}
            else:
                now, estranged = shadow, shadow.estranged | {self.last_ticket}
            self.shadows[turn.client] = replace(now, estranged=estranged)
        tables = (dict(table) for table in snapshot.tables)
        self.shares, self.last_applied, self.num_examples, self.newest = tables
        self.cause_of_reset = True
        # It may have died in the middle of a round.
        self.claimed, self.step = [], self.zero

    def roll_back(self) -> None:
        """Forget what was claimed."""
        self.events["rolled back"] += bool(self.claimed)
        self.claimed = []

    def reset(self) -> None:
        """Begin a new epoch, for which there must be a cause."""
        self.events["reset"] += 1
        if not self.cause_of_reset:
            self.verdict.breach("reset", "all memories start anew without a cause")
        self.cause_of_reset = False
        self.shares.clear()
        self.last_applied.clear()
        self.num_examples.clear()

    # --- what is saved

    def compare(self, client: str) -> None:
        """Compare the saved memory with the shadow."""
        shadow = self.shadows[client]
        number, tensors, base = self.actual(client)
        self.verdict.close(client, "memory", "its memory", tensors, shadow.memory)
        saved = storage.load(self.contexts[self.node_ids[client]])
        if (seen := (0, 0) if saved is None else saved.seen) != shadow.seen:
            self.verdict.breach("tickets", f"{client}: seen {seen}, not {shadow.seen}")
        wanted = 0 if shadow.pending is None else shadow.pending.number
        if number != wanted:
            self.verdict.breach("ids", f"{client}: pending {number:x}, not {wanted:x}")
        if self.has_share and base != shadow.base:
            self.verdict.breach("ids", f"{client}: base {base:x}, not {shadow.base:x}")

    def actual(self, client: str) -> tuple[int, Vector, int]:
        """Give number of the pending turn, memory and base that are saved."""
        memory = storage.load(self.contexts[self.node_ids[client]])
        if memory is None:
            return 0, self.zero, 0
        pending = memory.pending[0] if memory.pending is not None else 0
        # What only the client keeps stands under names with a slash.
        shared = {k: v for k, v in memory.tensors.items() if "/" not in k}
        return pending, flat(shared, self.zero), memory.base


def _settled_by_truth(shadow: Shadow) -> Vector:
    pending = shadow.pending
    if pending is None or not pending.applied:
        return shadow.memory
    return shadow.memory + pending.move
