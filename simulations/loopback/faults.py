"""What goes wrong between server and clients: scripted by hand, or drawn from a seed.

A policy answers two questions: what happens to node ``node`` in exchange
``exchange`` (`Faults.at`), and in which order messages arrive (`Faults.shuffle`).
An exchange is one non-empty ``send_and_receive``, counted from 1; a node is given
by its index, which is its partition id.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .records import Direction

Copies = tuple[int, ...]
"""One entry for each copy that arrives: after how many further exchanges."""

Crash = Literal["before_save", "after_reply"]

LOST: Copies = ()
DELIVERED: Copies = (0,)
DUPLICATED: Copies = (0, 0)


def late(num_exchanges: int) -> Copies:
    """One copy, delayed by so many exchanges."""
    return (num_exchanges,)


@dataclass(frozen=True)
class Fault:
    """What happens to one request, to the client that handles one, and to its reply.

    Parameters
    ----------
    request, reply
        The copies that arrive; ``(0, 2)`` is one at once and one two exchanges late.
    crash
        ``"before_save"``: the client is killed when its work is done; neither its
        reply nor its state survives. ``"after_reply"``: the reply has left, the
        state is not saved (Flower sends the reply before it saves the Context).
    lose_memory
        The client finds ``Context.state`` empty.
    offline
        Nothing reaches the node in this exchange. The server gets the error reply
        that Flower gives for a node whose heartbeat has lapsed.
    """

    request: Copies = DELIVERED
    reply: Copies = DELIVERED
    crash: Crash | None = None
    lose_memory: bool = False
    offline: bool = False

    def __post_init__(self) -> None:
        for name, copies in (("request", self.request), ("reply", self.reply)):
            if any(delay < 0 for delay in copies):
                raise ValueError(
                    f"Fault.{name}: expected delays of 0 or more exchanges, "
                    f"found {copies}; an empty tuple means that it is lost"
                )


class Faults:
    """The policy under which nothing goes wrong; base of the others."""

    def at(self, exchange: int, node: int, attempt: int) -> Fault:
        """Say what happens to a node in an exchange.

        Asked when a request is sent (``request`` and ``offline`` count) and when one
        arrives (all the rest counts), each with its own ``attempt``: how many
        requests were sent to, or have arrived at, this node in this exchange before.
        The answer must be a function of the arguments alone.
        """
        return Fault()

    def shuffle(self, exchange: int, direction: Direction, arrivals: list[Any]) -> None:
        """Reorder, in place, what arrives in an exchange."""


@dataclass(frozen=True)
class ScriptedFaults(Faults):
    """Faults at fixed places, keyed by exchange number (from 1) and node index."""

    script: Mapping[tuple[int, int], Fault] = field(default_factory=dict)

    def at(self, exchange: int, node: int, attempt: int) -> Fault:
        """Look the fault up; it holds for every attempt in that exchange."""
        return self.script.get((exchange, node), Fault())


@dataclass(frozen=True)
class RandomFaults(Faults):
    """Independent faults, a function of the seed, the exchange and the node only.

    They depend neither on the order of messages nor on which nodes are sampled, so
    two runs that differ in their strategy meet the same weather.

    Parameters
    ----------
    delay
        Probability that a copy of a request or reply is late, by 1 to ``max_delay``
        exchanges.
    shuffle_order
        Whether requests and replies arrive in random order.

    All other fields are probabilities too.
    """

    seed: int
    lose_request: float = 0.0
    lose_reply: float = 0.0
    duplicate_request: float = 0.0
    duplicate_reply: float = 0.0
    delay: float = 0.0
    max_delay: int = 3
    crash_before_save: float = 0.0
    crash_after_reply: float = 0.0
    lose_memory: float = 0.0
    offline: float = 0.0
    shuffle_order: bool = True

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name in ("seed", "max_delay", "shuffle_order"):
                continue
            if not 0.0 <= value <= 1.0:
                raise ValueError(
                    f"RandomFaults.{name}: expected a probability in [0, 1], "
                    f"found {value}"
                )
        if self.crash_before_save + self.crash_after_reply > 1.0:
            raise ValueError(
                "RandomFaults: crash_before_save and crash_after_reply exclude each "
                "other; expected a sum of at most 1, found "
                f"{self.crash_before_save + self.crash_after_reply}"
            )
        if self.max_delay < 1:
            raise ValueError(
                "RandomFaults.max_delay: expected at least 1 exchange, "
                f"found {self.max_delay}; use delay=0.0 for no delays"
            )

    def at(self, exchange: int, node: int, attempt: int) -> Fault:
        """Draw the fault of this place."""
        rng = random.Random(f"{self.seed}/{exchange}/{node}/{attempt}")
        request = self._copies(rng, self.lose_request, self.duplicate_request)
        reply = self._copies(rng, self.lose_reply, self.duplicate_reply)
        crash: Crash | None = None
        at_crash = rng.random()
        if at_crash < self.crash_before_save:
            crash = "before_save"
        elif at_crash < self.crash_before_save + self.crash_after_reply:
            crash = "after_reply"
        lose_memory = rng.random() < self.lose_memory
        # Offline is a matter of the exchange: all attempts must agree on it.
        weather = random.Random(f"{self.seed}/{exchange}/{node}")
        offline = weather.random() < self.offline
        return Fault(request, reply, crash, lose_memory, offline)

    def shuffle(self, exchange: int, direction: Direction, arrivals: list[Any]) -> None:
        """Put the arrivals in a random order."""
        if self.shuffle_order:
            random.Random(f"{self.seed}/{exchange}/{direction}").shuffle(arrivals)

    def _copies(self, rng: random.Random, lose: float, duplicate: float) -> Copies:
        """Draw the fate of one message: lost, or one or two copies, each maybe late."""
        if rng.random() < lose:
            return LOST
        num_copies = 2 if rng.random() < duplicate else 1
        return tuple(
            rng.randint(1, self.max_delay) if rng.random() < self.delay else 0
            for _ in range(num_copies)
        )
