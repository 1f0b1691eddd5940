"""One simulated node: its Context and one call of the client app, crashes included."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence

from flwr.app import Context, Error, Message, RecordDict, UserConfig, UserConfigValue
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from .faults import Fault
from .records import EventKind
from .transport import acting_as_client

NodeConfig = Mapping[str, UserConfigValue]

logger = logging.getLogger(__name__)


def make_contexts(
    run_id: int,
    node_ids: Sequence[int],
    node_configs: Sequence[NodeConfig],
    run_config: UserConfig,
) -> dict[int, Context]:
    """Make the fresh Context of each node, with its partition in the node config."""
    if len(node_configs) != len(node_ids):
        raise ValueError(
            "LoopbackGrid: expected node_configs to hold one mapping for each of "
            f"{len(node_ids)} nodes, found {len(node_configs)}"
        )
    return {
        node_id: Context(
            run_id,
            node_id,
            {"partition-id": i, "num-partitions": len(node_ids), **node_configs[i]},
            RecordDict(),
            dict(run_config),
        )
        for i, node_id in enumerate(node_ids)
    }


def call_client(
    app: ClientApp,
    contexts: dict[int, Context],
    request: Message,
    fault: Fault,
    note: Callable[[EventKind], None],
) -> Message | None:
    """Let a node handle a request; return its reply unless it died before replying.

    As in Flower, the app works on a copy of the Context, which is saved after the
    reply is made: an exception or a crash leaves the Context as it was.

    Parameters
    ----------
    contexts
        The saved Context of each node id; replaced by the new one.
    note
        Called with each `EventKind` that happens.
    """
    node_id = request.metadata.dst_node_id
    if fault.lose_memory:
        note(EventKind.MEMORY_LOST)
        contexts[node_id].state = RecordDict()
    context = copy.deepcopy(contexts[node_id])
    try:
        with acting_as_client(context.run_id, node_id):
            reply = app(request, context)
    except Exception as exc:
        # Also if it was to crash: its state is gone either way, and a client that
        # is killed before it saves cannot report what went wrong.
        note(EventKind.CLIENT_RAISED)
        logger.warning("client app of node %d raised", node_id, exc_info=exc)
        reason = f"{type(exc)}:<'{exc}'>"
        error = Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=reason)
        return (
            None
            if fault.crash == "before_save"
            else Message(error=error, reply_to=request)
        )
    expected = request.metadata.message_id
    if reply.metadata.reply_to_message_id != expected:
        raise ValueError(
            f"client app of node {node_id}: expected a reply to message {expected}, "
            f"found reply_to_message_id={reply.metadata.reply_to_message_id!r}; "
            "make replies with Message(content, reply_to=message)"
        )
    if fault.crash == "before_save":
        note(EventKind.CRASHED_BEFORE_SAVE)
        return None
    if fault.crash == "after_reply":
        note(EventKind.CRASHED_AFTER_REPLY)
    else:
        contexts[node_id] = context
        note(EventKind.HANDLED)
    return reply
