"""The grid itself: what Flower's strategies see."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from flwr.app import Message, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from .faults import Faults
from .network import Network
from .node import NodeConfig, make_contexts
from .transport import become_server


class LoopbackGrid(Network, Grid):
    """Run a `ClientApp` for many nodes in this process, over a network with faults.

    Replies are those of the requests just sent and, under `Faults`, also second
    copies and late ones of earlier exchanges with the same message type. A lost
    reply is simply absent, as at Flower's timeout; nothing ever sleeps, so
    ``timeout`` has no effect.

    Parameters
    ----------
    client_app
        May be replaced at any time, as may ``faults``.
    num_nodes
        Node ``i`` has ``partition-id`` ``i``.
    run_config
        The ``Context.run_config`` of every node.
    node_configs
        One mapping for each node, added to ``partition-id`` and ``num-partitions``.
    faults
        What goes wrong; by default nothing.
    node_ids
        By default drawn from the seed; like Flower's, over the range of uint64.
    seed
        For run id, node ids and message ids.
    clock
        Unix time, for the time-to-live of messages.

    Attributes
    ----------
    contexts
        The saved `Context` of each node id. Look it up anew after each exchange.
    node_ids
        All node ids, ordered by partition id.
    offline
        Node ids that are neither listed nor reachable until removed from this set.
    exchange
        The number of the last exchange; 0 before the first.
    messages, events
        What was sent, and what became of it.
    on_request, on_reply
        Called with each message that reaches a client app or the strategy.
    """

    def __init__(
        self,
        client_app: ClientApp,
        num_nodes: int,
        *,
        run_config: UserConfig | None = None,
        node_configs: Sequence[NodeConfig] | None = None,
        faults: Faults | None = None,
        node_ids: Sequence[int] | None = None,
        seed: int = 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        rng = random.Random(f"loopback grid {seed}")
        run_id = rng.getrandbits(63)
        drawn = [rng.randrange(2, 2**64) for _ in range(num_nodes)]
        self.node_ids = drawn if node_ids is None else list(node_ids)
        if not num_nodes == len(self.node_ids) == len(set(self.node_ids)):
            raise ValueError(
                f"LoopbackGrid: expected {num_nodes} different node_ids, "
                f"found {self.node_ids}"
            )
        contexts = make_contexts(
            run_id,
            self.node_ids,
            [{}] * num_nodes if node_configs is None else node_configs,
            {} if run_config is None else run_config,
        )
        super().__init__(client_app, contexts, faults or Faults(), rng, clock)
        self._run = Run.create_empty(run_id)
        become_server(run_id)

    def forget(self, node_id: int) -> None:
        """Empty the node's ``Context.state``, as a restart of its SuperNode does."""
        self.contexts[node_id].state = RecordDict()

    def set_run(self, run: Run) -> None:
        """Refuse: the run is that of this grid."""
        raise RuntimeError(
            "LoopbackGrid: expected no set_run(), since its run is made with it; "
            f"found run {run.run_id}. Make another grid for another run"
        )

    @property
    def run(self) -> Run:
        """Run information; only the run id means something."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make a message (in Flower deprecated in favour of ``Message``)."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """List the nodes that are not `offline`, by id, never by partition."""
        # A strategy asks this before it makes messages, and another grid of this
        # process may have spoken last.
        become_server(self._run.run_id)
        return sorted(set(self.node_ids) - self.offline)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Begin an exchange: send requests and let those that arrive be handled."""
        if isinstance(messages, Iterator):
            raise TypeError(
                "LoopbackGrid: expected a list of messages, found "
                f"{type(messages).__name__}; Flower's grid for deployments goes "
                "through them twice and would send nothing"
            )
        batch = list(messages)
        return self.dispatch(batch) if batch else []

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Take the replies to given requests, as far as they have arrived."""
        ids = list(message_ids)
        wanted = set(ids)
        return self.collect(lambda request: request.message_id in wanted, ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Exchange messages; no messages are no exchange."""
        if not (message_ids := self.push_messages(messages)):
            return []
        # Flower returns replies by request, so one to train never shows up among
        # those to evaluate: a late one waits for an exchange of its own type.
        types = {message.metadata.message_type for message in messages}
        return self.collect(lambda request: request.message_type in types, message_ids)
