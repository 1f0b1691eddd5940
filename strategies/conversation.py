"""One training's exchange of messages: who was asked what, and who answered."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from logging import WARNING

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common import log
from flwr.common.constant import ErrorCode

from fl_lowrank.envelope import REQUEST_KEY, Request
from fl_lowrank.rng import stream

from .directory import Directory
from .downlink import Downlink
from .ledger import Direction, Entry, Ledger, Purpose, array_bytes
from .turns import Book
from .uplink import Uplink


@dataclass
class Conversation:
    """Attaches requests to messages and matches replies with them.

    Attributes
    ----------
    book : Book
        The server's side of all memories.
    seed : int
        Of the clients' random draws.
    timeout : float
        Seconds that a message stays of use.
    dense_bytes : int
        Size of the model as float32.
    downlink : Downlink, optional
        What models are sent by, if not as they are.
    num_behind : int
        Clients that could not follow the last models, and will be sent whole ones.
    """

    book: Book
    seed: int
    timeout: float
    dense_bytes: int
    directory: Directory = field(default_factory=Directory)
    ledger: Ledger = field(default_factory=Ledger)
    downlink: Downlink | None = None
    num_behind: int = 0
    _sent: list[Message] = field(default_factory=list)

    def attach(
        self, message: Message, round_: int, purpose: int, uplink: Uplink, scale: float
    ) -> None:
        """Add a request to a message, in a copy of its content.

        Flower shares one content among all messages of a round. The request stands in
        the only ConfigRecord where there is one, since some mods refuse a second.
        """
        client = self.directory.key(message.metadata.dst_node_id)
        ticket, applied = self.book.open(client)
        request = Request(
            purpose=purpose,
            fid=self.book.fid,
            epoch=self.book.epoch,
            ticket=ticket,
            applied=applied,
            draws=stream(self.seed, client, round_, ticket[1]).key,
            scale=scale,
            deadline=time.time() + self.timeout,
            codec=uplink.codec.at(round_),
            feedback=uplink.feedback,
            weight_key=uplink.weight_key,
            exact=uplink.exact,
        )
        content = RecordDict(dict(message.content.items()))
        key = next(iter(message.content.config_records), REQUEST_KEY)
        config = dict(message.content.config_records.get(key, ConfigRecord()).items())
        content[key] = ConfigRecord(config | {REQUEST_KEY: request.pack()})
        message.content = content
        message.metadata.ttl = self.timeout

    def compress(
        self,
        messages: list[Message],
        number: int,
        arrays: ArrayRecord,
        num_nodes: int,
    ) -> None:
        """Compress the model in messages with requests; see `Downlink.send`."""
        if self.downlink is not None:
            clients = [self.directory.key(m.metadata.dst_node_id) for m in messages]
            pairs = list(zip(clients, messages, strict=True))
            self.downlink.send(pairs, number, arrays, num_nodes)

    def sent(
        self, round_: int, messages: list[Message], purpose: Purpose
    ) -> list[Message]:
        """Note messages that are about to leave."""
        self._sent = messages
        for message in messages:
            self.note(round_, message.metadata.dst_node_id, message, "down", purpose)
        return messages

    def note(
        self, round_: int, node: int, message: Message, way: Direction, purpose: Purpose
    ) -> None:
        """Enter the arrays of a message into the ledger."""
        client = self.directory.key(node)
        size = array_bytes(message)
        self.ledger.add(Entry(round_, client, way, purpose, size, self.dense_bytes))

    @property
    def num_sent(self) -> int:
        """Messages whose replies have not been matched yet."""
        return len(self._sent)

    def match(
        self, round_: int, replies: Iterable[Message], purpose: Purpose
    ) -> tuple[list[tuple[str, Message]], list[Message]]:
        """Give valid replies with their clients, ordered by client, and the errors.

        A reply belongs to the node that the request went to, whatever it says of
        itself. Late and repeated replies are left out. The order, and so every sum,
        does not depend on the order of arrival.
        """
        asked = {m.metadata.message_id: m.metadata.dst_node_id for m in self._sent}
        self._sent = []
        valid: dict[str, Message] = {}
        errors: dict[str, Message] = {}
        for message in replies:
            request = message.metadata.reply_to_message_id
            if request not in asked or request in valid:
                log(WARNING, "Compressed: left out a late or repeated reply")
            elif message.has_error():
                errors[request] = message
            else:
                valid[request] = message
                self.note(round_, asked[request], message, "up", purpose)
        self._learn(
            [self.directory.key(asked[r]) for r in valid],
            [
                self.directory.key(asked[r])
                for r, m in errors.items()
                if r not in valid and m.error.code == ErrorCode.MOD_FAILED_PRECONDITION
            ],
        )
        by_client = [(self.directory.key(asked[r]), m) for r, m in valid.items()]
        by_client.sort(key=lambda item: self.directory.order(item[0]))
        return by_client, [m for r, m in errors.items() if r not in valid]

    def _learn(self, answered: list[str], refused: list[str]) -> None:
        """Tell the downlink who has followed, and who could not."""
        if self.downlink is not None:
            for client in answered:
                self.downlink.heard(client)
            self.num_behind = sum(map(self.downlink.refused, refused))
