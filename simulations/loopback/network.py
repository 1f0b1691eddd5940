"""The network of a `LoopbackGrid`: requests down, client calls, replies up."""

from __future__ import annotations

import copy
import random
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from flwr.app import Context, Message, Metadata
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from .channel import Channel, Parcel, expired
from .faults import Faults
from .node import call_client
from .records import Direction, Event, EventKind, MessageRecord, TrafficLog
from .transport import assign_message_id, from_bytes, superlink_error, to_bytes


class Network(TrafficLog):
    """Carry messages between one server and its nodes, under a policy of faults."""

    def __init__(
        self,
        client_app: ClientApp,
        contexts: dict[int, Context],
        faults: Faults,
        rng: random.Random,
        clock: Callable[[], float],
    ) -> None:
        super().__init__()
        self.client_app = client_app
        self.contexts = contexts
        self.faults = faults
        self.offline: set[int] = set()
        self.exchange = 0
        self.on_request: Callable[[Message], None] | None = None
        self.on_reply: Callable[[Message], None] | None = None
        self._index = {node_id: i for i, node_id in enumerate(contexts)}
        self._rng = rng
        self._clock = clock
        self._down = Channel(
            lost=EventKind.REQUEST_LOST,
            duplicated=EventKind.REQUEST_DUPLICATED,
            delayed=EventKind.REQUEST_DELAYED,
        )
        self._up = Channel(
            lost=EventKind.REPLY_LOST,
            duplicated=EventKind.REPLY_DUPLICATED,
            delayed=EventKind.REPLY_DELAYED,
        )
        self._mailbox: list[Parcel] = []
        self._unanswered: dict[str, Metadata] = {}
        self._unreachable: set[str] = set()

    def dispatch(self, requests: Sequence[Message]) -> list[str]:
        """Begin an exchange: send requests and let those that arrive be handled."""
        self.exchange += 1
        attempts: Counter[int] = Counter()
        message_ids = [self._send(request, attempts) for request in requests]
        arrivals = self._down.arrivals(self.exchange)
        self.faults.shuffle(self.exchange, "down", arrivals)
        attempts.clear()
        for parcel in arrivals:
            self._deliver(parcel, attempts)
        self._mailbox += self._up.arrivals(self.exchange)
        return message_ids

    def collect(
        self, wanted: Callable[[Metadata], bool], message_ids: Iterable[str]
    ) -> list[Message]:
        """Take the replies that have arrived to wanted requests.

        For each of ``message_ids`` that has no reply and never will, there is an
        error reply, as Flower gives it.
        """
        now = self._clock()
        replies = []
        mailbox, self._mailbox = self._mailbox, []
        for parcel in mailbox:
            if not wanted(parcel.request):
                self._mailbox.append(parcel)
            elif expired(parcel.request, now):
                self._note(parcel, EventKind.REPLY_EXPIRED)
            else:
                self._note(parcel, EventKind.REPLY_DELIVERED)
                self._unanswered.pop(parcel.request.message_id, None)
                replies.append(from_bytes(parcel.data))
        for request in [
            self._unanswered[m] for m in message_ids if m in self._unanswered
        ]:
            if expired(request, now):
                code = ErrorCode.MESSAGE_UNAVAILABLE
            elif request.message_id in self._unreachable:
                code = ErrorCode.NODE_UNAVAILABLE
            else:
                continue
            del self._unanswered[request.message_id]
            replies.append(superlink_error(request, code, now))
        self.faults.shuffle(self.exchange, "up", replies)
        if self.on_reply is not None:
            for reply in replies:
                self.on_reply(reply)
        return replies

    def _send(self, message: Message, attempts: Counter[int]) -> str:
        """Put one request under way; return its id."""
        metadata = message.metadata
        node = self._index.get(metadata.dst_node_id)
        if node is None or metadata.ttl <= 0 or metadata.reply_to_message_id:
            raise ValueError(
                "LoopbackGrid: expected a request with a positive ttl to one of its "
                f"nodes, {list(self.contexts)}; found {metadata}"
            )
        message_id = self._new_message_id()
        assign_message_id(message, message_id)
        data = self._record("down", metadata.dst_node_id, message)
        parcel = Parcel(copy.copy(metadata), node, data)
        self._unanswered[message_id] = parcel.request
        fault = self.faults.at(self.exchange, node, attempts[node])
        attempts[node] += 1
        if fault.offline or metadata.dst_node_id in self.offline:
            self._note(parcel, EventKind.UNREACHABLE)
            self._unreachable.add(message_id)
        else:
            note = partial(self._note, parcel)
            self._down.send(self.exchange, parcel, fault.request, note)
        return message_id

    def _deliver(self, parcel: Parcel, attempts: Counter[int]) -> None:
        """Let a node handle a request that has arrived and put its reply under way."""
        fault = self.faults.at(self.exchange, parcel.node, attempts[parcel.node])
        attempts[parcel.node] += 1
        note = partial(self._note, parcel)
        node_id = parcel.request.dst_node_id
        if expired(parcel.request, self._clock()):
            note(EventKind.REQUEST_EXPIRED)
            return
        if fault.offline or node_id in self.offline:
            note(EventKind.UNREACHABLE)
            return
        note(EventKind.REQUEST_DELIVERED)
        request = from_bytes(parcel.data)
        if self.on_request is not None:
            self.on_request(request)
        reply = call_client(self.client_app, self.contexts, request, fault, note)
        if reply is None:
            return
        assign_message_id(reply, self._new_message_id())
        data = self._record("up", node_id, reply)
        answer = Parcel(parcel.request, parcel.node, data)
        self._up.send(self.exchange, answer, fault.reply, note)

    def _record(self, direction: Direction, node_id: int, message: Message) -> bytes:
        """Serialize a message and write down what it weighs."""
        data = to_bytes(message)
        records = message.content.array_records if message.has_content() else {}
        self.messages.append(
            MessageRecord(
                self.exchange,
                direction,
                node_id,
                message.metadata.message_id,
                message.metadata.message_type,
                sum(len(a.data) for r in records.values() for a in r.values()),
                len(data),
            )
        )
        return data

    def _note(self, parcel: Parcel, kind: EventKind) -> None:
        """Write an event down."""
        self.events.append(
            Event(self.exchange, parcel.node, kind, parcel.request.message_id)
        )

    def _new_message_id(self) -> str:
        """Draw a message id of the form that Flower uses."""
        return str(uuid.UUID(int=self._rng.getrandbits(128), version=4))
