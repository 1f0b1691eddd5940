"""Each part of the protocol is needed: without it the law breaks on some schedule.

Runs go on to their end after the first breach, to show what remains of it: whether
the two ends still disagree, in silence, after quiet rounds over all nodes.
"""

from __future__ import annotations

import pytest

from simulations.loopback import RandomFaults
from tests.strategies.memory_law import switches
from tests.strategies.memory_law.scene import (
    LawBrokenError,
    Scene,
    Stage,
    play,
    set_up,
)
from tests.strategies.memory_law.switches import Switch

SEEDS = (3, 0, 1, 4)


def run(feedback: str, seed: int, switch: Switch) -> tuple[Stage, set[str]]:
    """Give a run with a part of the protocol off, and the laws that it broke."""
    faults = RandomFaults(
        seed,
        lose_request=0.1,
        lose_reply=0.15,
        duplicate_request=0.3,
        duplicate_reply=0.15,
        delay=0.2,
        crash_after_reply=0.04,
    )
    scene = Scene(
        feedback,
        faults=faults,
        num_rounds=24,
        num_quiet=3,
        fraction_evaluate=0.5,
        seed=seed,
    )
    stage = set_up(scene)
    with pytest.MonkeyPatch.context() as patch:
        switch(patch, stage.clients)
        try:
            play(scene, stage=stage, to_the_end=True)
        except LawBrokenError as error:
            return stage, error.laws
    return stage, set()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("feedback", ["ef", "ef21"])
def test_law_holds_with_everything_on(feedback: str, seed: int) -> None:
    # Odd seeds without the attribution by message ids: the tickets do alone.
    switch = switches.attribution if seed % 2 else switches.nothing
    stage, broken = run(feedback, seed, switch)
    assert broken == set()
    assert stage.oracle.events["applied, but not saved"] > 0
    assert stage.oracle.events["refused"] > 0


@pytest.mark.parametrize(
    ("switch", "feedback", "law"),
    [
        # A turn that leaves while its state is not saved: the client goes on from
        # another memory than the server's.
        (switches.base_check, "ef21", "agreement"),
        # A late and a timely reply of one node in the same round, with the same base.
        (switches.servers_tickets, "ef21", "agreement"),
        (switches.servers_tickets, "ef", "sum"),
        # A repeated request takes back the turn that the server has just applied.
        (switches.clients_tickets, "ef21", "memory"),
        (switches.clients_tickets, "ef", "sum"),
        # The state of the first of two copies is not saved, so that two different
        # turns get one number, and the wrong one is settled.
        (switches.random_ids, "ef21", "agreement"),
        (switches.random_ids, "ef", "sum"),
    ],
)
def test_law_breaks_without(switch: Switch, feedback: str, law: str) -> None:
    for seed in SEEDS:
        _, broken = run(feedback, seed, switch)
        if law in broken:
            return
    pytest.fail(f"without {switch.__name__} the law of {feedback} held on all seeds")
