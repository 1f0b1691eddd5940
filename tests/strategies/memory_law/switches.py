"""Parts of the protocol switched off, to show that the law needs them.

Each function takes a MonkeyPatch and a `Clients`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest
from flwr.app import Message

import clients.turns
from clients.turns import Memory
from fl_lowrank.envelope import Reply, Request
from fl_lowrank.errors import ProtocolError
from strategies.conversation import Conversation
from strategies.node_book import NodeBook
from strategies.turns import Book

from .actors import Clients

Switch = Callable[[pytest.MonkeyPatch, Clients], None]


def nothing(patch: pytest.MonkeyPatch, around: Clients) -> None:
    """Leave the protocol as it is."""


def attribution(patch: pytest.MonkeyPatch, around: Clients) -> None:
    """Believe who a reply says it is from, and take late and repeated ones.

    `Conversation.match` lets only one reply to each of the last requests pass, which
    hides the tickets behind it; without it they must do alone.
    """

    def match(
        self: Conversation, round_: int, replies: Iterable[Message], purpose: str
    ) -> tuple[list[tuple[str, Message]], list[Message]]:
        self._sent = []
        valid = [
            (self.directory.key(m.metadata.src_node_id), m)
            for m in replies
            if not m.has_error()
        ]
        return sorted(valid, key=lambda v: self.directory.order(v[0])), []

    patch.setattr(Conversation, "match", match)


def base_check(patch: pytest.MonkeyPatch, around: Clients) -> None:
    """Take turns that were made with any memory."""
    for book in (Book, NodeBook):
        patch.setattr(book, "_check_base", lambda self, client, reply: None)


def servers_tickets(patch: pytest.MonkeyPatch, around: Clients) -> None:
    """Take replies to requests that are no longer open."""

    def claim(self: Book, client: str, reply: Reply) -> None:
        if (reply.fid, reply.epoch) != (self.fid, self.epoch):
            raise ProtocolError("another training or epoch")
        self._open.pop(client, None)
        self._check_base(client, reply)

    attribution(patch, around)
    patch.setattr(Book, "claim", claim)


def clients_tickets(patch: pytest.MonkeyPatch, around: Clients) -> None:
    """Serve requests that are repeated or old."""
    admit = clients.turns.admit

    def forgetful(memory: Memory | None, request: Request) -> Memory:
        if memory is not None:
            memory = replace(memory, seen=(0, 0))
        return admit(memory, request)

    patch.setattr(clients.turns, "admit", forgetful)


def random_ids(patch: pytest.MonkeyPatch, around: Clients) -> None:
    """Number the turns of each client 1, 2, 3..., counted in its memory."""

    def count() -> int:
        memory = around.current
        if memory is None:
            return 1
        pending = 0 if memory.pending is None else memory.pending[0]
        return max(memory.base, pending) + 1

    patch.setattr(clients.turns, "new_turn", count)
