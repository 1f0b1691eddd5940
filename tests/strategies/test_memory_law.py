"""Clients' memories and the server's sum stay one, whatever the network does.

An oracle beside the protocol keeps a dense shadow of every memory and of what entered
the server's sum, and compares after every round; see ``memory_law/oracle.py``.
"""

from __future__ import annotations

import pytest

from simulations.loopback import EventKind
from tests.strategies.memory_law.scene import Scene, bad_weather, play

#: At least so many in each scene: 10,000 for each feedback.
NUM_EVENTS = {
    "all nodes": 3_200,
    "half of the nodes, no evaluation": 1_300,
    "FedAdam, low rank": 2_900,
    "half of the nodes, warm starts": 2_600,
}

SCENES = {
    "all nodes": {"uplink": "topk(fraction=0.2)", "num_rounds": 80},
    "half of the nodes, no evaluation": {
        "uplink": "natural_stochastic()",
        "num_nodes": 8,
        "num_rounds": 85,
        "fraction_train": 0.5,
        "fraction_evaluate": 0.0,
    },
    "FedAdam, low rank": {
        "uplink": "*.bias: identity(); *: svd(rank=1)",
        "num_nodes": 5,
        "num_rounds": 105,
        "inner": "fedadam",
        "fraction_evaluate": 0.6,
    },
    "half of the nodes, warm starts": {
        "uplink": "*.bias: topk(k=2) >> natural_stochastic(); *: powersgd(rank=1)",
        "num_nodes": 8,
        "num_rounds": 70,
        "fraction_train": 0.5,
    },
}
#: What can happen here; nothing expires within seconds.
KINDS = set(EventKind) - {EventKind.REQUEST_EXPIRED, EventKind.REPLY_EXPIRED}


#: For feedbacks that need an unbiased compressor.
UNBIASED = {
    "all nodes": "randk(fraction=0.4)",
    "half of the nodes, no evaluation": "natural_stochastic()",
    "FedAdam, low rank": "*.bias: identity(); *: sparse_dithering_unbiased(omega=2)",
    "half of the nodes, warm starts": "*: randk(k=3) >> natural_stochastic()",
}
CASES = [
    *((feedback, name) for feedback in ("ef", "ef21") for name in SCENES),
    *(
        pytest.param(feedback, name, marks=[pytest.mark.slow] if name in later else [])
        for later in [list(SCENES)[1:]]
        for feedback in (
            "ef21sgdm(momentum=0.3)",
            "diana(rate=0.25)",
            "dasha(rate=0.3)",
        )
        for name in SCENES
    ),
]


@pytest.mark.parametrize(("feedback", "name"), CASES)
def test_memories_agree_in_bad_weather(feedback: str, name: str) -> None:
    seed = list(SCENES).index(name)
    changes = SCENES[name]
    if feedback.startswith(("diana", "dasha")):
        changes = changes | {"uplink": UNBIASED[name]}
    scene = Scene(
        feedback,
        faults=bad_weather(seed),
        damage=0.03,
        refuse_every=11,
        seed=seed,
        **changes,
    )
    stage = play(scene)
    print(name, len(stage.grid.events), dict(happened := stage.oracle.events))
    assert len(stage.grid.events) >= NUM_EVENTS[name]
    # Nothing above is worth anything unless all of it has happened.
    assert set(stage.grid.counts()) >= KINDS - {EventKind.CLIENT_RAISED}
    happened = stage.oracle.events
    causes = ["gave up, stale"] if feedback == "ef" else ["reset", "gave up, epoch"]
    for event in ["refused", "rolled back", "applied, but not saved", *causes]:
        assert happened[event] > 0, event
    assert happened["applied"] >= NUM_EVENTS[name] // 25
    assert set(stage.book.members) == set(stage.oracle.node_ids)
    if feedback == "ef":
        assert stage.book.num_resets == 0


@pytest.mark.parametrize("feedback", ["ef21", "diana(rate=0.25)"])
def test_memories_of_single_nodes_agree_in_bad_weather(feedback: str) -> None:
    """A lost memory costs its client alone: no epoch ever ends."""
    scene = Scene(
        feedback,
        UNBIASED["all nodes"] if "diana" in feedback else "topk(fraction=0.2)",
        faults=bad_weather(3),
        damage=0.03,
        refuse_every=11,
        num_rounds=50,
        fraction_train=0.6,
        memory="per-node",
        seed=3,
    )
    stage = play(scene)
    happened = stage.oracle.events
    for event in ["refused", "rolled back", "applied, but not saved", "gave up, lost"]:
        assert happened[event] > 0, event
    assert happened["applied"] > 50
    assert stage.book.num_resets == 0


@pytest.mark.parametrize("feedback", ["ef", "ef21"])
def test_memories_agree_after_restarts_from_older_checkpoints(feedback: str) -> None:
    scene = Scene(
        feedback,
        faults=bad_weather(9),
        num_rounds=60,
        inner="fedavg",
        restarts={7: 0, 15: 1, 16: 3, 24: 0, 33: 6, 41: 2, 48: 1},
        seed=9,
    )
    happened = play(scene).oracle.events
    assert happened["restart"] == len(scene.restarts)
    assert happened["undone"] > 20
    assert happened["applied"] > 120


@pytest.mark.parametrize("seed", [31, 100])
@pytest.mark.parametrize("feedback", ["ef", "ef21"])
def test_so_they_do_where_few_nodes_hear_of_a_restart(feedback: str, seed: int) -> None:
    """Turns are applied that no client saved, and undone before it hears of them."""
    scene = Scene(
        feedback,
        faults=bad_weather(seed, crash_after_reply=0.1, lose_memory=0.03),
        num_rounds=30,
        fraction_train=0.5,
        fraction_evaluate=0.2,
        restarts={12: 0, 20: 3},
        seed=seed,
    )
    happened = play(scene).oracle.events
    assert happened["applied, but not saved"] > 0
    assert happened["undone"] > 0


def test_long_epoch_of_float32_memories() -> None:
    """Rounding at the two ends must not drive them apart."""
    faults = bad_weather(5, crash_after_reply=0.0, lose_memory=0.0)
    stage = play(Scene("ef21", faults=faults, num_rounds=100, num_nodes=4, seed=5))
    assert stage.book.num_resets == 0
    assert stage.oracle.events["applied"] > 100
    assert stage.oracle.verdict.worst < 5e-7
