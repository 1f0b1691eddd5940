"""Every strategy with compressors that lose something, against the same by hand.

By hand: clients of plain Flower that send, as whole models, what a server would make of
their compressed updates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message
from flwr.clientapp.mod import LocalDpMod
from flwr.clientapp.typing import ClientAppCallable, Mod
from flwr.common import Context
from flwr.serverapp.strategy import FedAvg, Result

from clients import CompressionMod
from strategies import Compressed

from .federation import (
    DIM,
    LR,
    NUM_NODES,
    distance,
    num_examples,
    partition_of,
    quadratic_app,
    train,
)
from .inners import LINEAR, OTHERS

KEPT = 9
UPLINK = f"*: topk(k={KEPT})"
NUM_ROUNDS = 4


def largest(x: np.ndarray) -> np.ndarray:
    out = np.zeros_like(x)
    kept = np.argsort(-np.abs(x))[:KEPT]
    out[kept] = x[kept]
    return out


def sending(make: Callable[[int, np.ndarray], np.ndarray]) -> Mod:
    """Give a mod that replaces a client's update."""

    def mod(
        message: Message, context: Context, call_next: ClientAppCallable
    ) -> Message:
        received = message.content["arrays"]["w"].numpy().astype(np.float64)
        reply = call_next(message, context)
        if message.metadata.message_type == "train":
            update = reply.content["arrays"]["w"].numpy() - received
            sent = received + make(partition_of(context), update)
            record = ArrayRecord({"w": Array(sent.astype(np.float32))})
            reply.content["arrays"] = record
        return reply

    return mod


def plain() -> Mod:
    return sending(lambda _, update: largest(update))


def ef21() -> Mod:
    memories: dict[int, np.ndarray] = {}

    def make(partition: int, update: np.ndarray) -> np.ndarray:
        unit = num_examples(partition) / LR
        memory = memories.get(partition, np.zeros(DIM))
        memories[partition] = memory + largest(unit * update - memory)
        return memories[partition] / unit

    return sending(make)


@pytest.mark.parametrize("feedback", [plain, ef21])
@pytest.mark.parametrize("name", [*LINEAR, *OTHERS])
def test_every_strategy_gets_what_clients_have_sent(
    name: str, feedback: Callable[[], Mod]
) -> None:
    make = (LINEAR | OTHERS)[name]
    wanted = train(make(), quadratic_app([feedback()]), num_rounds=NUM_ROUNDS)
    memory = "sum" if feedback is plain else "per-node"
    strategy = Compressed(make(), UPLINK, feedback.__name__, memory=memory)
    found = train(strategy, num_rounds=NUM_ROUNDS)
    assert distance(wanted.arrays, found.arrays) < 1e-5
    whole = train(make(), num_rounds=NUM_ROUNDS)
    assert distance(whole.arrays, found.arrays) > 1e-3


# --- noise that clients add themselves ------------------------------------------------

CLIP = 1.0


def seeding() -> Mod:
    """Let each client draw its own noise, in whatever order clients are asked."""
    calls: Counter[int] = Counter()

    def mod(
        message: Message, context: Context, call_next: ClientAppCallable
    ) -> Message:
        partition = partition_of(context)
        calls[partition] += 1
        np.random.seed([partition, calls[partition]])  # noqa: NPY002 - what Flower uses
        return call_next(message, context)

    return mod


def with_noise(
    epsilon: float, uplink: str | None, feedback: str, num_rounds: int = NUM_ROUNDS
) -> Result:
    """Train with local differential privacy, which knows no evaluation."""
    noisy = LocalDpMod(CLIP, sensitivity=1.0, epsilon=epsilon, delta=1e-5)
    # The mod's own first message, its introduction, does not come so far.
    mods = [seeding(), noisy]
    app = quadratic_app(mods if uplink is None else [CompressionMod(), *mods])
    inner = FedAvg(fraction_evaluate=0.0)
    strategy = inner if uplink is None else Compressed(inner, uplink, feedback)
    return train(strategy, app, num_rounds=num_rounds)


@pytest.mark.parametrize("feedback", ["plain", "ef", "ef21"])
def test_noise_of_local_dp_arrives(feedback: str) -> None:
    """What is sent is made of noisy updates alone, so any compressor will do."""
    wanted = with_noise(50.0, None, feedback)
    found = with_noise(50.0, "identity()", feedback)
    assert distance(wanted.arrays, found.arrays) < 1e-5
    quiet = with_noise(1e9, "identity()", feedback)
    assert distance(quiet.arrays, found.arrays) > 0.01


@pytest.mark.parametrize("feedback", ["plain", "ef", "ef21"])
def test_local_dp_goes_with_a_lossy_compressor(feedback: str) -> None:
    """Without noise: the first step is at most the clip, then the model moves on."""
    steps = [with_noise(1e12, UPLINK, feedback, n).arrays["w"].numpy() for n in (1, 30)]
    norms = [float(np.linalg.norm(step)) for step in steps]
    assert 0.1 * CLIP < norms[0] <= CLIP * (1 + 1e-6)
    assert norms[1] > 2 * CLIP
    assert np.count_nonzero(steps[0]) <= KEPT * NUM_NODES
