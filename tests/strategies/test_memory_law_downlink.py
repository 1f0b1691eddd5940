"""The memories' law where models come compressed too, and the references' own law."""

from __future__ import annotations

import pytest
from flwr.app import Array, ArrayRecord

import strategies.downlink
from clients import storage
from strategies.books import MemoryMode
from tests.strategies.memory_law.actors import MODEL
from tests.strategies.memory_law.scene import Scene, Stage, bad_weather, play, set_up
from tests.strategies.reference_oracle import ReferenceOracle


@pytest.fixture(autouse=True)
def _move_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    # So few nodes would move the reference in every round.
    monkeypatch.setattr(strategies.downlink, "CATCH_UP_SHARE", 0.3)


def watched(scene: Scene) -> tuple[Stage, ReferenceOracle]:
    stage = set_up(scene)
    model = ArrayRecord({k: Array(v) for k, v in MODEL.items()})
    return stage, ReferenceOracle(stage.grid, model)


@pytest.mark.parametrize(
    ("feedback", "memory", "uplink", "seed"),
    [
        ("ef", "sum", "topk(fraction=0.2)", 31),
        ("ef21", "sum", "topk(fraction=0.2)", 32),
        ("ef21", "per-node", "topk(fraction=0.2)", 33),
        ("diana(rate=0.25)", "sum", "randk(fraction=0.4)", 34),
    ],
)
def test_the_law_holds_on_a_bad_day(
    feedback: str, memory: MemoryMode, uplink: str, seed: int
) -> None:
    scene = Scene(
        feedback,
        uplink,
        fraction_train=0.7,
        fraction_evaluate=0.2,
        num_rounds=25,
        faults=bad_weather(seed, lose_memory=0.03),
        damage=0.03,
        refuse_every=11,
        memory=memory,
        downlink="*: natural()",
        seed=seed,
    )
    stage, references = watched(scene)
    play(scene, after_round=lambda *_: check(references), stage=stage)
    assert stage.oracle.events["applied"] > 30
    assert references.counts["links"] > 50
    assert references.counts["steps"] > 10
    # Lost memories and lost replies were met, and mended.
    assert scene.num_nodes < references.counts["whole"] < 100
    assert references.check_clients() == scene.num_nodes


@pytest.mark.parametrize("feedback", ["ef", "ef21"])
def test_the_law_holds_after_restarts(feedback: str) -> None:
    """Clients hold references that the server, come back, has never had."""
    scene = Scene(
        feedback,
        faults=bad_weather(9),
        num_rounds=30,
        restarts={7: 0, 15: 1, 16: 3, 22: 5},
        downlink="*: natural()",
        seed=9,
    )
    stage, references = watched(scene)
    play(scene, after_round=lambda *_: check(references), stage=stage)
    happened = stage.oracle.events
    assert happened["restart"] == len(scene.restarts)
    assert happened["undone"] > 10
    assert happened["applied"] > 50


def check(references: ReferenceOracle) -> None:
    references.check_clients()


def test_without_faults_nobody_is_refused() -> None:
    scene = Scene("ef", num_rounds=15, downlink="*: natural()", num_quiet=1)
    stage, references = watched(scene)
    play(scene, stage=stage)
    assert stage.oracle.events["refused"] == 0
    assert references.counts["whole"] == scene.num_nodes
    for context in stage.grid.contexts.values():
        assert {storage.STATE_KEY, storage.REFERENCE_KEY} <= set(context.state)
