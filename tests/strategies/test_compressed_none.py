"""``uplink=None``: the plain strategy, bit for bit, with its bytes counted."""

from __future__ import annotations

import pytest
from flwr.app import ArrayRecord, Message
from flwr.common.serde import recorddict_to_proto
from flwr.serverapp.strategy import FedAdam, FedAvg, Krum, Strategy

from simulations.loopback import LoopbackGrid
from strategies import Compressed
from tests.strategies.batchnorm import batchnorm_app, batchnorm_arrays
from tests.strategies.federation import quadratic_app, train

NUM_ROUNDS = 4
STRATEGIES = {"FedAvg": FedAvg, "FedAdam": FedAdam, "Krum": Krum}


def bits(arrays: ArrayRecord) -> dict[str, tuple[str, str, tuple[int, ...], bytes]]:
    return {k: (a.stype, a.dtype, tuple(a.shape), a.data) for k, a in arrays.items()}


def run(
    strategy: Strategy,
) -> tuple[object, LoopbackGrid, list[tuple[int, str, bytes]]]:
    seen: list[tuple[int, str, bytes]] = []

    def note(message: Message) -> None:
        content = recorddict_to_proto(message.content).SerializeToString(
            deterministic=True
        )
        metadata = message.metadata
        seen.append((metadata.dst_node_id, metadata.message_type, content))

    grid = LoopbackGrid(batchnorm_app(), 4)
    grid.on_request = note
    arrays = batchnorm_arrays()
    return train(strategy, grid=grid, arrays=arrays, num_rounds=NUM_ROUNDS), grid, seen


@pytest.mark.parametrize("name", STRATEGIES)
def test_it_is_the_plain_strategy_bit_for_bit(name: str) -> None:
    make = STRATEGIES[name]
    plain, _, plain_seen = run(make(fraction_train=0.75))
    wrapped = Compressed(make(fraction_train=0.75), uplink=None)
    ours, grid, seen = run(wrapped)

    assert bits(ours.arrays) == bits(plain.arrays)
    assert bits(ours.arrays) != bits(batchnorm_arrays())
    # What the clients see, and in which order they are asked, is the same too: no
    # introductions, no request in the config.
    assert seen == plain_seen
    assert len(seen) == NUM_ROUNDS * (3 + 4)

    bytes_up = {r["round"]: r["bytes_up"] for r in wrapped.ledger.rounds()}
    assert sorted(bytes_up) == [1, 2, 3, 4]
    assert sum(bytes_up.values()) == grid.array_bytes_up > 0
    assert wrapped.ledger.bytes_of(direction="down") == grid.array_bytes_down


def test_metrics_are_the_plain_ones_and_the_bytes() -> None:
    plain, _, _ = run(FedAvg())
    ours, _, _ = run(Compressed(FedAvg(), uplink=None))
    for round_, metrics in plain.train_metrics_clientapp.items():
        found = dict(ours.train_metrics_clientapp[round_].items())
        assert {k: found.pop(k) for k in metrics} == dict(metrics.items())
        assert found["bytes_up"] > 0
    assert ours.evaluate_metrics_clientapp == plain.evaluate_metrics_clientapp
    assert len(plain.evaluate_metrics_clientapp) == NUM_ROUNDS


def test_arrays_that_numpy_cannot_read_pass() -> None:
    """Trees of boosting travel as text in an Array; nothing may look inside."""
    arrays = batchnorm_arrays()
    for array in arrays.values():
        array.stype = "another"
    grid = LoopbackGrid(quadratic_app(), 4)
    strategy = Compressed(FedAvg(fraction_train=0.0), uplink=None)
    train(strategy, grid=grid, arrays=arrays, num_rounds=1)
    assert strategy.ledger.bytes_of(direction="down") == grid.array_bytes_down > 0
