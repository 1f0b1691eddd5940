"""The mail room's requests and replies in Flower's messages."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from logging import INFO, WARNING

from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    RecordDict,
)
from flwr.app.typing import ConfigRecordValues
from flwr.common import log
from flwr.serverapp import Grid

from fl_lowrank.consensus import CONSENSUS_KEY, MailRoom
from fl_lowrank.envelope import STYPE, TRAIN, Reply
from fl_lowrank.errors import CompressionError, ProtocolError, WireError

from .directory import Directory
from .ledger import Direction, Entry, Ledger, Purpose, array_bytes

_POLL_SECONDS = 1.0
_PARTITION = re.compile(r"partition-(0|[1-9][0-9]*)")


class Post:
    """Knows which node is which vertex, and which message answers which.

    Parameters
    ----------
    who : str
        The strategy, for messages to the user.
    room : MailRoom
        Whose requests are carried.
    timeout : float
        Seconds that a message stays of use.
    node_timeout : float
        Seconds to wait for all nodes before the first round.
    """

    def __init__(
        self, who: str, room: MailRoom, timeout: float, node_timeout: float
    ) -> None:
        self.ledger = Ledger()
        self._who = who
        self._room = room
        self._timeout = timeout
        self._node_timeout = node_timeout
        self._directory = Directory(who, "ConsensusMod", CONSENSUS_KEY)
        self._sent: dict[int, Message] = {}
        self._strangers: list[str] = []
        self._dense = 4 * sum(t.numel for t in room.rows.layout.values())

    def wait_for_all(self, grid: Grid) -> None:
        """Wait until there is a node for every vertex.

        Raises
        ------
        ProtocolError
            If they do not come in time.
        """
        num_vertices = len(self._room.boxes)
        found = self.wait_for(grid, num_vertices)
        if len(found) < num_vertices:
            msg = (
                f"{self._who}: waited {self._node_timeout:.0f} s for nodes with "
                f"partition-id 0 to {num_vertices - 1}, found none with "
                f"{self._missing(found)}, and {len(self._strangers)} that are no "
                "vertex; start more, give each its partition-id in its node config, or "
                "take a smaller graph"
            )
            raise ProtocolError(msg)

    def wait_for(self, grid: Grid, count: int) -> dict[int, int]:
        """Give `vertices` as soon as there are so many, or after the wait for nodes."""
        deadline = time.monotonic() + self._node_timeout
        told = None
        while len(found := self.vertices(grid)) < count:
            if time.monotonic() > deadline:
                break
            if found.keys() != told:
                text = "%s: %s of %s nodes are here, waiting up to %.0f s for %s"
                here, total = len(found), len(self._room.boxes)
                wait = deadline - time.monotonic()
                who = self._missing(found) if count == total else "one to come back"
                log(INFO, text, self._who, here, total, wait, who)
                told = found.keys()
            time.sleep(_POLL_SECONDS)
        return found

    def vertices(self, grid: Grid) -> dict[int, int]:
        """Give the connected vertices and their node ids, in order."""
        found, strangers = {}, list[str]()
        # A part of the wait, so that one node that hangs does not use it up.
        wait = self._node_timeout / 4
        for node in self._directory.refresh(grid, self._room.fid, wait):
            key = self._directory.key(node)
            match = _PARTITION.fullmatch(key)
            if match and int(match[1]) < len(self._room.boxes):
                found[int(match[1])] = node
            else:
                strangers.append(key)
        if strangers != self._strangers:
            text = "%s: nodes that are no vertex of the graph: %s"
            log(WARNING, text, self._who, ", ".join(strangers) or "none any more")
        self._strangers = strangers
        return dict(sorted(found.items()))

    def request(
        self,
        vertex: int,
        node: int,
        config: Mapping[str, ConfigRecordValues],
        purpose: int,
        *,
        codec: str = "",
        draws: int = 0,
    ) -> Message:
        """Write to a vertex; the arguments are those of `MailRoom.write`."""
        deadline = time.time() + self._timeout
        request, parcel = self._room.write(
            vertex, purpose, deadline=deadline, codec=codec, draws=draws
        )
        data = parcel.pack()
        array = Array(dtype="uint8", shape=(len(data),), stype=STYPE, data=data)
        content = RecordDict(
            {
                "arrays": ArrayRecord({CONSENSUS_KEY: array}),
                "config": ConfigRecord({**config, CONSENSUS_KEY: request.pack()}),
            }
        )
        kind = MessageType.TRAIN if purpose == TRAIN else MessageType.EVALUATE
        return Message(content, node, kind, ttl=self._timeout)

    def sent(
        self, round_: int, requests: Mapping[int, Message], purpose: int
    ) -> list[Message]:
        """Note requests to vertices that are about to leave."""
        self._sent = dict(requests)
        for vertex, message in requests.items():
            self._note(round_, vertex, message, "down", purpose)
        return list(requests.values())

    def match(
        self, round_: int, replies: Iterable[Message], purpose: int
    ) -> tuple[dict[int, Message], list[Message]]:
        """Give valid replies by vertex, in order, and the errors.

        A reply belongs to the vertex that the request went to, whatever it says of
        itself; late and repeated ones are left out.
        """
        asked = {m.metadata.message_id: v for v, m in self._sent.items()}
        self._sent = {}
        valid: dict[int, Message] = {}
        errors: list[Message] = []
        for message in replies:
            vertex = asked.get(message.metadata.reply_to_message_id)
            if vertex is None or vertex in valid:
                log(WARNING, "%s: left out a late or repeated reply", self._who)
            elif message.has_error():
                errors.append(message)
            else:
                valid[vertex] = message
                self._note(round_, vertex, message, "up", purpose)
        return dict(sorted(valid.items())), errors

    def read(self, round_: int, vertex: int, message: Message) -> Reply | None:
        """Give what a vertex has sent, or None if it cannot be used."""
        try:
            reply = self._room.claim(vertex, _answer_in(message))
        except CompressionError as error:
            self.leave_out(round_, vertex, error)
            return None
        if reply is None:
            text = "%s: vertex %s has lost its model and restarts from its public copy"
            log(WARNING, text, self._who, vertex)
        return reply

    def leave_out(self, round_: int, vertex: int, error: CompressionError) -> None:
        """Tell of a message that is of no use."""
        log(WARNING, "%s: left out vertex %s: %s", self._who, vertex, error)
        self.ledger.add_dropped(round_)

    def _missing(self, found: Mapping[int, int]) -> list[int]:
        """Give the first vertices without a node."""
        return sorted(set(range(len(self._room.boxes))) - found.keys())[:10]

    def _note(
        self, round_: int, vertex: int, message: Message, way: Direction, purpose: int
    ) -> None:
        what: Purpose = "train" if purpose == TRAIN else "evaluate"
        client, size = f"partition-{vertex}", array_bytes(message)
        self.ledger.add(Entry(round_, client, way, what, size, self._dense))


def _answer_in(message: Message) -> bytes:
    """Give the bytes of a vertex's answer; `WireError` if there are none."""
    record = message.content.array_records.get(CONSENSUS_KEY, ArrayRecord())
    array = record.get(CONSENSUS_KEY)
    if array is None or array.stype != STYPE:
        msg = (
            f"expected an array of type {STYPE} under {CONSENSUS_KEY!r}, found "
            f"{list(message.content)}; put ConsensusMod() first in the ClientApp's mods"
        )
        raise WireError(msg)
    return array.data
