"""The law of the two memories, checked from outside.

The `Oracle` sees the requests and replies that cross the clients' doors, what the
training function did, the Contexts that were saved, and which turns the server
commits. From these it keeps a dense `Shadow` of each client and of the server's sum,
and notes as a `Violation` whatever the real memories do otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from flwr.app import Context

from clients import storage
from fl_lowrank.envelope import Reply, Request, Ticket
from fl_lowrank.feedback import Feedback
from strategies.turns import Book, Staged

from .shadow import Books, Shadow, Turn, Vector

#: Agreement that the protocol promises, relative to the largest number involved.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Violation:
    """One breach: ``memory``, ``sum``, ``ids``, ``accept``, ``tickets``, ``reset``, ``step``, ``agreement``."""

    law: str
    text: str

    def __str__(self) -> str:
        return f"{self.law}: {self.text}"


@dataclass
class Call:
    """One request that a client app has handled."""

    client: str
    request: Request
    context: Context
    refused: bool
    turn: Turn | None


class Oracle:
    """Follows one training.

    Parameters
    ----------
    feedback : Feedback
        Only its flags are used.
    size : int
        Entries of the compressed arrays.
    contexts : dict
        The grid's, by node id; looked up, never changed.
    node_ids : dict
        By client key.
    """

    def __init__(
        self,
        feedback: Feedback,
        size: int,
        contexts: dict[int, Context],
        node_ids: dict[str, int],
    ) -> None:
        self.has_share = feedback.has_share
        self.zero = np.zeros(size)
        self.contexts = contexts
        self.node_ids = node_ids
        self.violations: list[Violation] = []
        self.events: Counter[str] = Counter()
        self.shadows = {c: Shadow(self.zero) for c in node_ids}
        self.books = {
            c: Books(self.zero.copy(), self.zero.copy(), self.zero.copy())
            for c in node_ids
        }
        self.scale = dict.fromkeys(node_ids, 1e-30)
        self.turns: dict[tuple[str, Ticket, int, bytes], Turn] = {}
        self.numbers: dict[int, Turn] = {}
        self.last_ticket: Ticket = (0, 0)
        # The server, as it should be: what each client has in the sum, and when.
        self.shares: dict[str, Vector] = {}
        self.last_applied: dict[str, int] = {}
        self.num_examples: dict[str, float] = {}
        self.newest: dict[str, Ticket] = {}  # ticket of the last applied turn
        self.claimed: list[Turn] = []
        self.step = self.zero  # of the model in this round, in units of the scale
        self.cause_of_reset = False
        self._calls: dict[str, Call] = {}
        self.worst = 0.0

    # --- what happens at a client

    def begins(self, client: str, *, lost_memory: bool) -> None:
        """Note that a client is about to handle a message, maybe with no memory."""
        self._end_call(client, compare=not lost_memory)
        if lost_memory:
            self._lose(client)

    def _lose(self, client: str) -> None:
        shadow = self.shadows[client]
        self._give_up(client, _settled_by_truth(shadow, self.has_share), "lost")
        for turn in self.turns.values():
            if turn.client == client and turn.saved:
                turn.forgotten = True
        if self.last_applied.get(client) or shadow.pending is not None:
            self.cause_of_reset = True
        # The server's turn is not in the new memory; any request that names it says so.
        self.shadows[client] = Shadow(self.zero, estranged=self.newest.get(client))

    def handled(self, call: Call) -> None:
        """Check what a client has done with a request."""
        shadow = self.shadows[call.client]
        expected = call.request.ticket <= shadow.seen
        if expected != call.refused:
            what = "refused" if call.refused else "served"
            self._breach(
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

    def _end_call(self, client: str, *, compare: bool = True) -> None:
        """Find out whether the client's last state was saved, and follow it."""
        call = self._calls.pop(client, None)
        if call is None or self.contexts[self.node_ids[client]] is not call.context:
            return
        shadow = self.shadows[client]
        after, dropped, cause = shadow.settled(call.request, has_share=self.has_share)
        if cause:
            self._give_up(client, dropped, cause)
        if (turn := call.turn) is not None:
            turn.saved = True
            self._count(turn)
            memory = after.memory if self.has_share else after.memory + turn.update
            after = replace(after, memory=memory, pending=turn)
        self.shadows[client] = after
        if compare:
            self._compare_state(client)

    def _register(self, turn: Turn) -> None:
        for value in (turn.update, turn.sent, turn.before):
            size = float(np.abs(value).max(initial=0.0))
            self.scale[turn.client] = max(self.scale[turn.client], size)
        if self.numbers.setdefault(turn.number, turn) is not turn:
            self._breach("ids", f"{turn.client} reuses number {turn.number:x}")
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
            self._breach("tickets", f"{ticket} opened after {self.last_ticket}")
        self.last_ticket = ticket

    def claim(self, client: str, reply: Reply) -> None:
        """Note a reply that the server has accepted for this round."""
        turn = self.turns.get((client, reply.ticket, reply.turn, reply.lossy))
        if turn is None:
            self._breach("accept", f"a reply that {client} has never sent")
        else:
            self.claimed.append(turn)

    def commit(self, staged: Iterable[Staged]) -> None:
        """Apply to the shadows what the server is about to apply."""
        for client in self.node_ids:
            self._end_call(client)
        found = [(s.client, s.turn, s.num_examples) for s in staged]
        wanted = [(t.client, t.number, t.num_examples) for t in self.claimed]
        if found != wanted:
            self._breach("accept", f"committed {found}, claimed {wanted}")
        for turn in self.claimed:
            self._apply(turn)
        self.step = self._mean()
        self.claimed = []

    def _mean(self) -> Vector:
        """Give the mean update of the round."""
        arrived = sum(t.num_examples for t in self.claimed)
        if not self.has_share:
            return sum((t.sent for t in self.claimed), self.zero) / arrived
        members = sum(self.num_examples.values())
        mean = sum(self.shares.values(), self.zero) / members
        return mean * (arrived / members)  # all members, damped by who took part

    def _apply(self, turn: Turn) -> None:
        client, books = turn.client, self.books[turn.client]
        self.events["applied"] += 1
        if turn.applied:
            self._breach("accept", f"{client}: the same turn applied twice")
        own = self.shadows[client].pending is turn
        if not own:
            self._estrange(turn)
        turn.applied = True
        books.applied += turn.sent
        if self.has_share:
            share = self.shares.get(client, self.zero)
            self._close(client, "accept", "was made with another", turn.before, share)
            if turn.base != self.last_applied.get(client, 0):
                self._breach("accept", f"{client}: base {turn.base:x} is wrong")
            self.shares[client] = share + turn.sent
        self.last_applied[client] = turn.number
        self.newest[client] = turn.ticket
        self.num_examples[client] = turn.num_examples

    def _estrange(self, turn: Turn) -> None:
        """Applied without its client's knowing: this needs an excuse."""
        client = turn.client
        if turn.saved and not turn.forgotten:
            text = f"{client}: a turn that was taken back is applied, {turn.ticket}"
            self._breach("accept", text)
        self.events["applied, but not saved"] += 1
        self.cause_of_reset = True
        if not turn.counted:
            self._count(turn)
            self._give_up(client, turn.update, "not saved")
        self.books[client].given_up -= turn.sent  # this much has arrived after all
        shadow = self.shadows[client]
        newest = max(turn.ticket, shadow.estranged or turn.ticket)
        self.shadows[client] = replace(shadow, estranged=newest)

    def roll_back(self) -> None:
        """Forget what was claimed."""
        self.events["rolled back"] += bool(self.claimed)
        self.claimed = []

    def reset(self) -> None:
        """Begin a new epoch, for which there must be a cause."""
        self.events["reset"] += 1
        if not self.cause_of_reset:
            self._breach("reset", "all memories start anew without a cause")
        self.cause_of_reset = False
        self.shares.clear()
        self.last_applied.clear()
        self.num_examples.clear()

    # --- the laws

    def check(self, book: Book) -> None:
        """Compare all memories with their shadows, at the end of a round."""
        for client in self.node_ids:
            self._end_call(client)
            self._compare_state(client)
            if not self.has_share:
                self._check_error(client)
        self._check_book(book)

    def check_step(self, before: Vector, after: Vector, scale: float) -> None:
        """Compare the model's move in a round of FedAvg with the mean update."""
        distance = np.abs(after - before - scale * self.step).max()
        if distance > TOLERANCE * max(1.0, np.abs(before).max()):
            self._breach("step", f"the model moved otherwise, by {distance:.2g}")
        self.step = self.zero

    def _compare_state(self, client: str) -> None:
        """Compare the saved memory with the shadow."""
        shadow = self.shadows[client]
        number, tensors, base = self.actual(client)
        self._close(client, "memory", "is not", tensors, shadow.memory)
        saved = storage.load(self.contexts[self.node_ids[client]])
        if (seen := (0, 0) if saved is None else saved.seen) != shadow.seen:
            self._breach("tickets", f"{client}: seen {seen}, not {shadow.seen}")
        wanted = 0 if shadow.pending is None else shadow.pending.number
        if number != wanted:
            self._breach("ids", f"{client}: pending {number:x}, not {wanted:x}")
        if self.has_share and base != shadow.base:
            self._breach("ids", f"{client}: base {base:x}, not {shadow.base:x}")

    def _check_error(self, client: str) -> None:
        """Sum of updates = applied + error + what was given up with a cause."""
        _, memory, _ = self.actual(client)
        pending = self.shadows[client].pending
        if pending is not None and pending.applied:
            memory = memory - pending.sent
        self._close(client, "sum", "leaves not", memory, self.books[client].error)

    def _check_book(self, book: Book) -> None:
        """Compare the server's sum, ids and weights with what was applied."""
        members = {c: m for c, m in book.members.items() if m.applied}
        applied = {c: m.applied for c, m in members.items()}
        if applied != self.last_applied:
            self._breach("ids", f"applied {applied}, not {self.last_applied}")
        weights = {c: m.num_examples for c, m in members.items()}
        if weights != self.num_examples:
            self._breach("sum", f"weights {weights}, not {self.num_examples}")
        if self.has_share:
            total = sum(self.shares.values(), self.zero)
            self._close("server", "sum", "is not", flat(book.total, self.zero), total)

    def check_quiescence(self, book: Book) -> None:
        """After quiet rounds over all nodes the two ends must be one.

        Straight from the bytes in the Contexts, without the shadows.
        """
        total = self.zero
        for client in self.node_ids:
            number, memory, base = self.actual(client)
            applied = book.members[client].applied
            if number:
                self._breach("agreement", f"{client}: still pending {number:x}")
            if base != applied:
                text = f"{client}: holds turn {base:x}, the server {applied:x}"
                self._breach("agreement", text)
            total = total + memory
        if self.has_share:
            found = flat(book.total, self.zero)
            self._close("server", "agreement", "is not", found, total)

    def actual(self, client: str) -> tuple[int, Vector, int]:
        """Give number of the pending turn, memory and base that are saved."""
        memory = storage.load(self.contexts[self.node_ids[client]])
        if memory is None:
            return 0, self.zero, 0
        pending = memory.pending[0] if memory.pending is not None else 0
        return pending, flat(memory.tensors, self.zero), memory.base

    def _close(
        self, client: str, law: str, verb: str, found: Vector, wanted: Vector
    ) -> None:
        scale = self.scale.get(client) or max(self.scale.values())
        distance = float(np.abs(found - wanted).max(initial=0.0)) / scale
        if distance > TOLERANCE:
            text = f"{client}: its memory {verb} what it should, by {distance:.2g}"
            self._breach(law, text)
        else:
            self.worst = max(self.worst, distance)

    def _breach(self, law: str, text: str) -> None:
        self.violations.append(Violation(law, text))


def flat(tensors: dict, zero: Vector) -> Vector:
    """Join tensors to one dense float64 vector; an empty memory is zero."""
    if not tensors:
        return zero
    return np.concatenate(
        [t.numpy().reshape(-1).astype(float) for t in tensors.values()]
    )


def _settled_by_truth(shadow: Shadow, has_share: bool) -> Vector:
    pending = shadow.pending
    if pending is None or not pending.applied:
        return shadow.memory
    return shadow.memory + (pending.sent if has_share else -pending.sent)
