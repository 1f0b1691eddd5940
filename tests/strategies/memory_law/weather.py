"""What goes wrong in one round, drawn by hypothesis."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from simulations.loopback import (
    DELIVERED,
    DUPLICATED,
    LOST,
    Copies,
    Fault,
    Faults,
    late,
)
from simulations.loopback.records import Direction

from .scene import ServerKilled

NUM_NODES = 3
#: By exchange of the round, from 1, and node: faults of the 1st and all later copies of
#: the request.
Script = Mapping[tuple[int, int], list[Fault]]


class Weather(Faults):
    """Faults of one round, by hand.

    Parameters
    ----------
    first : int
        The exchange before this round.
    script : Script
        What goes wrong.
    order : int
        How arrivals are shuffled; 0 for not at all.
    dies : int, optional
        The exchange of the round in which the server is killed: its requests have been
        handled, replies have left, and it sees none of them.
    """

    def __init__(
        self, first: int, script: Script, order: int = 0, dies: int | None = None
    ) -> None:
        self.first = first
        self.script = script
        self.order = order
        self.dies = dies

    def at(self, exchange: int, node: int, attempt: int) -> Fault:
        copies = self.script.get((exchange - self.first, node), [Fault()])
        return copies[min(attempt, len(copies) - 1)]

    def shuffle(self, exchange: int, direction: Direction, arrivals: list[Any]) -> None:
        if self.order:
            random.Random(f"{self.order}/{exchange}/{direction}").shuffle(arrivals)
        if direction == "up" and exchange - self.first == self.dies:
            raise ServerKilled


_COPIES: tuple[Copies, ...] = (
    DELIVERED,
    LOST,
    DUPLICATED,
    late(1),
    (0, 1),
    late(2),
    (0, 3),
    DELIVERED,
    DELIVERED,
)
_FAULTS = st.builds(
    Fault,
    request=st.sampled_from(_COPIES),
    reply=st.sampled_from(_COPIES),
    crash=st.sampled_from((None, "before_save", "after_reply", "after_reply", None)),
    lose_memory=st.sampled_from((False,) * 9 + (True,)),
    offline=st.sampled_from((False,) * 9 + (True,)),
)
#: Most rounds need no introductions, and some have no evaluation.
EXCHANGES = st.sampled_from((1, 2, 1, 3))
NODES = st.integers(0, NUM_NODES - 1)
SCRIPTS = st.dictionaries(
    st.tuples(EXCHANGES, NODES), st.lists(_FAULTS, min_size=1, max_size=2), max_size=6
)
ORDERS = st.integers(0, 3)
