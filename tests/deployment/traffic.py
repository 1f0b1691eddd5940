"""Bytes on a node's socket, beside those of the ledger."""

from __future__ import annotations

from dataclasses import dataclass

from strategies.ledger import Ledger

#: What Flower may add to an exchange of messages, both ways together: heads of HTTP and
#: signatures for the messages themselves, and for each array of the model, since each
#: is asked for by itself (measured: 20 kB and 3 kB).
MOST_PER_EXCHANGE = 25_000
MOST_PER_ARRAY = 5_000
#: And to each second: a node asks for messages every 3 s, and tells that it lives.
MOST_PER_SECOND = 600


@dataclass(frozen=True)
class Traffic:
    """Bytes that have passed a node's relay so far, and when that was."""

    up: int
    down: int
    seconds: float

    def since(self, before: Traffic) -> Traffic:
        return Traffic(
            self.up - before.up, self.down - before.down, self.seconds - before.seconds
        )


def check_traffic(
    traffic: Traffic,
    ledger: Ledger,
    client: str,
    *,
    after_round: int,
    num_arrays: int,
) -> str:
    """Compare what a node's socket has carried with the ledger, and tell it in words.

    Everything that the ledger counts must have passed, and Flower may add so much.
    """
    entries = [
        e for e in ledger.entries if e.client == client and e.round > after_round
    ]
    up = sum(e.size_bytes for e in entries if e.direction == "up")
    down = sum(e.size_bytes for e in entries if e.direction == "down")
    number = sum(e.direction == "up" for e in entries)
    own_up, own_down = traffic.up - up, traffic.down - down
    said = (
        f"{client}, {number} exchanges in {traffic.seconds:.0f} s, bytes for each: "
        f"ledger {up / number:.0f} up and {down / number:.0f} down; socket "
        f"{traffic.up / number:.0f} and {traffic.down / number:.0f}; Flower's own "
        f"{own_up / number:.0f} and {own_down / number:.0f}"
    )
    assert own_up > 0, said
    assert own_down > 0, said
    most = (MOST_PER_EXCHANGE + MOST_PER_ARRAY * num_arrays) * number
    most += MOST_PER_SECOND * traffic.seconds
    assert own_up + own_down < most, said
    return said
