"""Sampling that can be repeated and that ends.

Flower samples with the global ``random`` from node ids, which are new in each run,
and waits for ever for the nodes it wants. What an inner strategy sees of the grid is
therefore an `OrderedGrid`, for as long as `seeded` lasts.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from flwr.app import Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fl_lowrank.errors import ProtocolError
from fl_lowrank.rng import stream

from .directory import Directory


class OrderedGrid(Grid):
    """What the inner strategy sees of the grid: known nodes, in a lasting order.

    Flower's own sampling waits for ever for the nodes it wants; here the wait ends
    with an error.

    Attributes
    ----------
    num_nodes : int
        How many it has listed last.
    """

    def __init__(self, grid: Grid, directory: Directory, fid: bytes, wait: float):
        self._grid = grid
        self._directory = directory
        self._fid = fid
        self._wait = wait
        self._deadline = time.monotonic() + wait
        self.num_nodes = 0

    def get_node_ids(self) -> Iterable[int]:
        """Give the known nodes ordered by client key."""
        # A part of the wait, so that one node that hangs does not use it up.
        nodes = self._directory.refresh(self._grid, self._fid, self._wait / 4)
        if time.monotonic() > self._deadline:
            msg = (
                f"Compressed: waited {self._wait:.0f} s for enough nodes to connect, "
                f"{len(nodes)} are; start more or lower min_available_nodes"
            )
            raise ProtocolError(msg)
        self.num_nodes = len(nodes)
        return nodes

    def set_run(self, run: Run) -> None:
        """Pass on."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """Pass on."""
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Pass on."""
        return self._grid.create_message(
            content, message_type, dst_node_id, group_id, ttl
        )

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Pass on."""
        return self._grid.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Pass on."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pass on."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Pass on."""
        return self._grid.send_and_receive(messages, timeout=timeout)


@contextmanager
def seeded(seed: int, *keys: int | str) -> Iterator[None]:
    """Make the global ``random``, which Flower samples with, repeatable for a while."""
    before = random.getstate()
    random.seed(stream(seed, *keys).key)
    try:
        yield
    finally:
        random.setstate(before)
