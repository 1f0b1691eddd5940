"""The home in Flower's Context."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from flwr.app import Context

from .. import storage
from ..turns import Memory
from .base import Home, Part, Slot

_KEYS: dict[Part, str] = {
    "memory": storage.STATE_KEY,
    "reference": storage.REFERENCE_KEY,
}


class ContextHome(Home):
    """Keeps a memory in ``context.state``, under keys that begin with ``fl-lowrank``.

    Flower hands it to the client with every message and takes it back after the reply
    has left, so a client that dies in between has forgotten its turn; a restarted
    SuperNode has forgotten everything. The protocol notices both. Two requests that a
    simulation serves at once have a Context each, of which the last one stays.
    """

    def peek(self, context: Context, fid: bytes) -> Memory | None:
        """Read the head alone."""
        del fid
        return storage.load_state(context)

    @contextmanager
    def open(
        self, context: Context, fid: bytes, part: Part = "memory"
    ) -> Iterator[Slot]:
        """Give the memory in the context, of whichever training it is."""
        del fid
        yield _ContextSlot(context, _KEYS[part])


class _ContextSlot(Slot):
    def __init__(self, context: Context, key: str) -> None:
        super().__init__(storage.load(context, key))
        self._context = context
        self._key = key

    def save(self, memory: Memory) -> None:
        storage.save(self._context, memory, self._key)
