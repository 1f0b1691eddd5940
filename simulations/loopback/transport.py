"""Everything of Flower's that is private, in one place.

Flower has no public way to make a message outside a run started by its own
runtime, to give a message its id, or to turn it into bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from flwr.app import Error, Message, Metadata
from flwr.app.message.message import make_message
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.supercore.constant import SYSTEM_MESSAGE_TYPE
from flwr.supercore.task_identity import TaskIdentity


def become_server(run_id: int) -> None:
    """Let this process make messages as the ServerApp of a run.

    ``Message(...)`` takes its run and its sender from this process-wide identity,
    which Flower's runtime sets before it starts an app, and raises if it is unset.
    """
    TaskIdentity.task_id = 1
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = SUPERLINK_NODE_ID


@contextmanager
def acting_as_client(run_id: int, node_id: int) -> Iterator[None]:
    """Let this process be a ClientApp for a while, then what it was before."""
    before = TaskIdentity.run_id, TaskIdentity.node_id
    TaskIdentity.run_id, TaskIdentity.node_id = run_id, node_id
    try:
        yield
    finally:
        TaskIdentity.run_id, TaskIdentity.node_id = before


def assign_message_id(message: Message, message_id: str) -> None:
    """Fill in the id, as Flower's grids and SuperNodes do when they send."""
    message.metadata.__dict__["_message_id"] = message_id


def to_bytes(message: Message) -> bytes:
    """Serialize a message to protobuf."""
    return cast(bytes, message_to_proto(message).SerializeToString())


def from_bytes(data: bytes) -> Message:
    """Make a message that shares nothing with the one serialized."""
    return message_from_proto(ProtoMessage.FromString(data))


def superlink_error(request: Metadata, code: int, now: float) -> Message:
    """Make the error reply that the SuperLink itself gives for a request.

    Source and destination are both the SuperLink: such a reply names its node only
    through the request that it answers. For an expired request not even the type of
    that is known any more.
    """
    forgotten = code == ErrorCode.MESSAGE_UNAVAILABLE
    metadata = Metadata(
        run_id=request.run_id,
        message_id="",
        src_node_id=SUPERLINK_NODE_ID,
        dst_node_id=SUPERLINK_NODE_ID,
        reply_to_message_id=request.message_id,
        group_id="" if forgotten else request.group_id,
        created_at=now,
        ttl=0.0 if forgotten else max(request.created_at + request.ttl - now, 0.0),
        message_type=SYSTEM_MESSAGE_TYPE if forgotten else request.message_type,
    )
    reason = "The request has expired." if forgotten else "The node is offline."
    return make_message(metadata=metadata, error=Error(code=code, reason=reason))
