"""Short trainings with faults at chosen places, and what they leave round by round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from clients.turns import Memory
from simulations.loopback import DUPLICATED, Fault, Faults

from .actors import SIZE
from .scene import AfterRound, Scene, Stage, play, set_up
from .shadow import Turn, Vector
from .verdict import flat


@dataclass(frozen=True)
class Script(Faults):
    """Faults by round and node; a tuple tells those of the 1st, 2nd... copy.

    Without evaluation each round is one exchange; the first is the introductions.
    """

    script: Mapping[tuple[int, int], Fault | tuple[Fault, ...]]
    with_evaluation: bool = False

    def at(self, exchange: int, node: int, attempt: int) -> Fault:
        per_round = 2 if self.with_evaluation else 1
        round_, rest = divmod(exchange - 2, per_round)
        found = self.script.get((round_ + 1, node), Fault()) if not rest else Fault()
        if isinstance(found, tuple):
            return found[min(attempt, len(found) - 1)]
        return found


#: Two copies of a request; the state of the first is not saved though it replied.
COPY_NOT_SAVED = (Fault(request=DUPLICATED, crash="after_reply"), Fault())


@dataclass(frozen=True)
class Scenario:
    """Memories, applied turns and sums after each round; index 0 is before all."""

    stage: Stage
    memories: list[list[Memory | None]] = field(default_factory=list)
    applied: list[dict[str, int]] = field(default_factory=list)
    totals: list[Vector] = field(default_factory=list)
    resets: list[int] = field(default_factory=list)

    def turns(self, node: int) -> list[Turn]:
        """Give all turns that a node has made, in order of their requests."""
        own = [t for t in self.stage.oracle.turns.values() if t.client == name(node)]
        return sorted(own, key=lambda t: t.ticket)

    def memory(self, round_: int, node: int = 0) -> Memory:
        memory = self.memories[round_][node]
        assert memory is not None
        return memory

    def vector(self, round_: int, node: int = 0) -> Vector:
        return flat(self.memory(round_, node).tensors, np.zeros(SIZE))


def name(node: int) -> str:
    return f"partition-{node}"


def act(
    feedback: str,
    script: Mapping[tuple[int, int], Fault | tuple[Fault, ...]] | None = None,
    num_rounds: int = 5,
    *,
    after_round: AfterRound | None = None,
    stage: Stage | None = None,
    **settings: object,
) -> Scenario:
    """Play a short training of three nodes without evaluation, law included."""
    with_evaluation = bool(settings.get("fraction_evaluate", 0.0))
    usual: dict[str, object] = {
        "faults": Script(script or {}, with_evaluation),
        "num_nodes": 3,
        "num_rounds": num_rounds,
        "num_quiet": 0,
        "fraction_evaluate": 0.0,
    }
    scene = Scene(feedback, **(usual | settings))
    scenario = Scenario(set_up(scene) if stage is None else stage)

    def record(stage: Stage, round_: int) -> None:
        book = stage.book
        scenario.memories.append([stage.memory(i) for i in range(scene.num_nodes)])
        scenario.applied.append({c: m.applied for c, m in book.members.items()})
        scenario.totals.append(flat(book.total, np.zeros(SIZE)).copy())
        scenario.resets.append(book.num_resets)
        if after_round is not None:
            after_round(stage, round_)

    play(scene, record, scenario.stage)
    return scenario
