"""What a home is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import Literal, TypeAlias

from flwr.app import Context

from ..turns import Memory

#: What a client keeps of a training: what its feedback remembers, and the model that
#: compressed models are sent relative to.
Part: TypeAlias = Literal["memory", "reference"]


def client_key(context: Context) -> str:
    """Name of this client that stays the same from run to run."""
    partition = context.node_config.get("partition-id")
    return f"node-{context.node_id}" if partition is None else f"partition-{partition}"


class Slot(ABC):
    """The memory of one client in one training, in the hands of one request.

    Attributes
    ----------
    memory : Memory, optional
        As it was saved last; None if there is none, or it is lost.
    """

    def __init__(self, memory: Memory | None) -> None:
        self.memory = memory

    @abstractmethod
    def save(self, memory: Memory) -> None:
        """Replace the memory, entirely or not at all; durable when this returns."""


class Home(ABC):
    """Keeps memories by training and client key."""

    @abstractmethod
    def peek(self, context: Context, fid: bytes) -> Memory | None:
        """Give the state of a memory, without its tensors, and wait for nobody.

        What it tells may be outdated by the time it is used: it saves a client from
        training in vain, and nothing more.

        Raises
        ------
        SettingError
            As for `open`.
        """

    @abstractmethod
    def open(
        self, context: Context, fid: bytes, part: Part = "memory"
    ) -> AbstractContextManager[Slot]:
        """Give a part to hold until it is saved; no other request has it then.

        Raises
        ------
        ProtocolError
            If another request has held it for too long.
        SettingError
            If there is a place, but it cannot be used.
        """
