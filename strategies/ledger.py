"""What was sent, in bytes that were really there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

import numpy as np
from flwr.app import Message

Direction = Literal["up", "down"]
Purpose = Literal["train", "evaluate"]
_DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
_PURPOSES: tuple[Purpose, ...] = get_args(Purpose)


@dataclass(frozen=True)
class Entry:
    """The arrays of one message.

    ``size_bytes`` is the sum of ``len(array.data)``, which Flower carries unchanged;
    ``dense_bytes`` is what the same model takes as float32.
    """

    round: int
    client: str
    direction: Direction
    purpose: Purpose
    size_bytes: int
    dense_bytes: int


@dataclass
class Ledger:
    """All messages of a training, by round, client, direction and purpose.

    Sizes are measured on the arrays that the messages carry, envelopes included.
    Flower adds about 20 kB for each exchange of its own, and 3 kB for each array of the
    model, which are not in here.
    """

    entries: list[Entry] = field(default_factory=list)
    seconds: dict[int, dict[str, float]] = field(default_factory=dict)
    dropped: dict[int, int] = field(default_factory=dict)
    gradients: dict[int, int] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """Give all entries, in columns."""
        clients = {e.client: None for e in self.entries}
        number = {client: i for i, client in enumerate(clients)}
        rows = [
            (
                e.round,
                number[e.client],
                _DIRECTIONS.index(e.direction),
                _PURPOSES.index(e.purpose),
                e.size_bytes,
                e.dense_bytes,
            )
            for e in self.entries
        ]
        return {
            "clients": list(clients),
            "entries": np.array(rows, np.int64).reshape(len(rows), len(fields(Entry))),
            "seconds": list(self.seconds.items()),
            "dropped": list(self.dropped.items()),
            "gradients": list(self.gradients.items()),
        }

    @classmethod
    def resumed(cls, plain: Mapping[str, Any]) -> Ledger:
        """Go on with what `plain` gave."""
        clients = plain["clients"]
        entries = [
            Entry(
                round_,
                clients[client],
                _DIRECTIONS[direction],
                _PURPOSES[purpose],
                size,
                dense,
            )
            for round_, client, direction, purpose, size, dense in plain[
                "entries"
            ].tolist()
        ]
        tables = (dict(plain[name]) for name in ("seconds", "dropped", "gradients"))
        return cls(entries, *tables)

    def add(self, entry: Entry) -> None:
        """Note a message."""
        self.entries.append(entry)

    def add_seconds(self, round_: int, what: str, seconds: float) -> None:
        """Note time spent encoding (all clients together) or decoding."""
        times = self.seconds.setdefault(round_, {})
        times[what] = times.get(what, 0.0) + seconds

    def add_gradients(self, round_: int, count: int) -> None:
        """Note gradients that a client took to find importance weights."""
        self.gradients[round_] = self.gradients.get(round_, 0) + count

    def add_dropped(self, round_: int) -> None:
        """Note a reply that could not be used."""
        self.dropped[round_] = self.dropped.get(round_, 0) + 1

    def bytes_of(
        self,
        round_: int | None = None,
        direction: Direction | None = None,
        purpose: Purpose | None = None,
    ) -> int:
        """Sum the bytes of the matching messages; ``None`` matches all."""
        return sum(
            e.size_bytes
            for e in self.entries
            if round_ in (None, e.round)
            and direction in (None, e.direction)
            and purpose in (None, e.purpose)
        )

    def round(self, round_: int) -> dict[str, int | float]:
        """Give the totals of one round.

        ``bytes_up``, ``bytes_down`` are of training, ``bytes_up_dense`` is what the
        same replies take as float32, and ``bytes_down_dense`` all messages down, those
        to evaluate included; times are in seconds; ``extra_gradients`` were taken by
        clients to find importance weights.
        """
        entries = [e for e in self.entries if e.round == round_]
        times = self.seconds.get(round_, {})
        replies = [e for e in entries if (e.direction, e.purpose) == ("up", "train")]
        return {
            "round": round_,
            "bytes_up": sum(e.size_bytes for e in replies),
            "bytes_down": _total(entries, "down", "train"),
            "bytes_down_evaluate": _total(entries, "down", "evaluate"),
            "bytes_up_evaluate": _total(entries, "up", "evaluate"),
            "bytes_up_dense": sum(e.dense_bytes for e in replies),
            "bytes_down_dense": sum(
                e.dense_bytes for e in entries if e.direction == "down"
            ),
            "encode_seconds": times.get("encode", 0.0),
            "decode_seconds": times.get("decode", 0.0),
            "extra_gradients": self.gradients.get(round_, 0),
            "num_replies": len(replies),
            "dropped": self.dropped.get(round_, 0),
        }

    def rounds(self) -> list[dict[str, int | float]]:
        """Give the totals of every round, in order."""
        return [self.round(r) for r in sorted({e.round for e in self.entries})]


def _total(entries: Iterable[Entry], direction: str, purpose: str) -> int:
    return sum(
        e.size_bytes
        for e in entries
        if (e.direction, e.purpose) == (direction, purpose)
    )


def array_bytes(message: Message) -> int:
    """Bytes of all arrays in a message."""
    if message.has_error():
        return 0
    records = message.content.array_records.values()
    return sum(len(array.data) for record in records for array in record.values())
