"""What a `LoopbackGrid` writes down: every message sent, and what became of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

Direction = Literal["down", "up"]


@dataclass(frozen=True)
class MessageRecord:
    """One message that its sender put on the wire, whatever became of it there.

    Parameters
    ----------
    exchange
        When it was sent.
    array_bytes
        The sum of ``len(array.data)`` over all arrays of all ArrayRecords.
    proto_bytes
        The length of the whole message in protobuf.
    """

    exchange: int
    direction: Direction
    node_id: int
    message_id: str
    message_type: str
    array_bytes: int
    proto_bytes: int


class EventKind(StrEnum):
    """Everything that can befall a message or a client.

    Delivered and expired are written once for each copy that arrives; lost,
    duplicated and delayed when the fate is decided; handled when a call of the
    client app has come to its end and its state is saved.
    """

    REQUEST_LOST = "request_lost"
    REQUEST_DUPLICATED = "request_duplicated"
    REQUEST_DELAYED = "request_delayed"
    REQUEST_DELIVERED = "request_delivered"
    REQUEST_EXPIRED = "request_expired"
    UNREACHABLE = "unreachable"
    MEMORY_LOST = "memory_lost"
    HANDLED = "handled"
    CLIENT_RAISED = "client_raised"
    CRASHED_BEFORE_SAVE = "crashed_before_save"
    CRASHED_AFTER_REPLY = "crashed_after_reply"
    REPLY_LOST = "reply_lost"
    REPLY_DUPLICATED = "reply_duplicated"
    REPLY_DELAYED = "reply_delayed"
    REPLY_DELIVERED = "reply_delivered"
    REPLY_EXPIRED = "reply_expired"


@dataclass(frozen=True)
class Event:
    """One thing that happened; ``message_id`` is that of the request concerned."""

    exchange: int
    node: int
    kind: EventKind
    message_id: str


@dataclass
class TrafficLog:
    """All messages sent and all events, in order."""

    messages: list[MessageRecord] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    @property
    def bytes_down(self) -> int:
        """Protobuf bytes of all requests sent, lost ones too."""
        return sum(m.proto_bytes for m in self.messages if m.direction == "down")

    @property
    def bytes_up(self) -> int:
        """Protobuf bytes of all replies sent, lost ones too."""
        return sum(m.proto_bytes for m in self.messages if m.direction == "up")

    @property
    def array_bytes_down(self) -> int:
        """Bytes of the array data in all requests sent, lost ones too."""
        return sum(m.array_bytes for m in self.messages if m.direction == "down")

    @property
    def array_bytes_up(self) -> int:
        """Bytes of the array data in all replies sent, lost ones too."""
        return sum(m.array_bytes for m in self.messages if m.direction == "up")

    def counts(self) -> Counter[EventKind]:
        """How often each kind of event has happened."""
        return Counter(event.kind for event in self.events)
