"""One direction of the network: what is under way, and when it arrives."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from flwr.app import Metadata

from .faults import Copies
from .records import EventKind


@dataclass(frozen=True)
class Parcel:
    """A message under way, as bytes; ``request`` is what it is, or what it answers."""

    request: Metadata
    node: int
    data: bytes


def expired(request: Metadata, now: float) -> bool:
    """Whether Flower has forgotten a request, and with it any reply to it."""
    return request.created_at + request.ttl <= now


class Channel:
    """Parcels of one direction, sorted by the exchange in which they arrive."""

    def __init__(
        self, *, lost: EventKind, duplicated: EventKind, delayed: EventKind
    ) -> None:
        self._lost = lost
        self._duplicated = duplicated
        self._delayed = delayed
        self._under_way: dict[int, list[Parcel]] = defaultdict(list)

    def send(
        self,
        exchange: int,
        parcel: Parcel,
        copies: Copies,
        note: Callable[[EventKind], None],
    ) -> None:
        """Put the copies of a parcel under way and note what befalls them."""
        if not copies:
            note(self._lost)
        for _ in copies[1:]:
            note(self._duplicated)
        for delay in copies:
            if delay:
                note(self._delayed)
            self._under_way[exchange + delay].append(parcel)

    def arrivals(self, exchange: int) -> list[Parcel]:
        """Take out what arrives in an exchange."""
        return self._under_way.pop(exchange, [])
