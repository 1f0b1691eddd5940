"""Sampling: repeatable from the seed whatever the node ids, and never for ever."""

from __future__ import annotations

import random
import time
from collections import Counter

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import FedAvg

from fl_lowrank.errors import ProtocolError
from simulations.loopback import LoopbackGrid, RandomFaults
from strategies import Compressed
from tests.strategies.federation import (
    DIM,
    initial_arrays,
    quadratic_app,
    train,
)

NUM_NODES = 12
UPLINK = "topk(fraction=0.2) >> natural_stochastic()"


def sampled(strategy: Compressed) -> list[tuple[int, str, str]]:
    return [
        (e.round, e.purpose, e.client)
        for e in strategy.ledger.entries
        if e.direction == "down"
    ]


def run(
    *, seed: int = 5, grid_seed: int = 0, state: int = 0, fraction: float = 0.5
) -> tuple[Compressed, bytes]:
    strategy = Compressed(
        FedAvg(fraction_train=fraction, fraction_evaluate=0.25), UPLINK, seed=seed
    )
    grid = LoopbackGrid(quadratic_app(), NUM_NODES, seed=grid_seed)
    random.seed(state)
    result = strategy.start(grid, initial_arrays(), num_rounds=4)
    return strategy, result.arrays["w"].data


def test_the_seed_decides_and_node_ids_do_not() -> None:
    first, model = run()
    again, same_model = run(grid_seed=77, state=99)
    assert sampled(first) == sampled(again)
    assert model == same_model  # draws of the compressors and all sums included
    other, other_model = run(seed=6)
    assert sampled(first) != sampled(other)
    assert model != other_model


def test_the_order_of_arrival_does_not_matter() -> None:
    models = set()
    for faults in (None, RandomFaults(seed=1), RandomFaults(seed=2)):
        grid = LoopbackGrid(quadratic_app(), NUM_NODES, faults=faults)
        arrays = ArrayRecord({"w": Array(np.zeros(DIM))})  # float64: sums round too
        result = Compressed(FedAvg(), "identity()").start(grid, arrays)
        models.add(result.arrays["w"].data)
    assert len(models) == 1


def test_fractions_are_kept_and_rounds_differ() -> None:
    strategy, _ = run()
    counts = Counter((r, p) for r, p, _ in sampled(strategy))
    assert counts == {(r, "train"): 6 for r in range(1, 5)} | {
        (r, "evaluate"): 3 for r in range(1, 5)
    }
    chosen = {
        r: frozenset(c for r_, p, c in sampled(strategy) if (r_, p) == (r, "train"))
        for r in range(1, 5)
    }
    assert len(set(chosen.values())) > 1
    assert len(frozenset().union(*chosen.values())) > 6


def test_the_users_own_random_numbers_are_not_disturbed() -> None:
    random.seed(42)
    before = random.getstate()
    grid = LoopbackGrid(quadratic_app(), NUM_NODES)
    Compressed(FedAvg(fraction_train=0.5), UPLINK).start(grid, initial_arrays())
    assert random.getstate() == before


def test_they_are_not_disturbed_by_an_error_either() -> None:
    class Failing(FedAvg):
        def configure_train(self, *args: object) -> object:
            random.random()
            raise RuntimeError("no")

    before = random.getstate()
    grid = LoopbackGrid(quadratic_app(), NUM_NODES)
    with pytest.raises(RuntimeError, match="no"):
        Compressed(Failing(), UPLINK).start(grid, initial_arrays())
    assert random.getstate() == before


def test_waiting_for_nodes_ends_with_an_error() -> None:
    strategy = Compressed(FedAvg(min_available_nodes=5), UPLINK, node_timeout=1.5)
    begin = time.monotonic()
    text = r"waited 2 s for enough nodes to connect, 4 are; .*min_available_nodes"
    with pytest.raises(ProtocolError, match=text):
        train(strategy, num_nodes=4)
    assert time.monotonic() - begin < 30.0


def test_waiting_ends_when_enough_nodes_have_come() -> None:
    strategy = Compressed(FedAvg(min_available_nodes=4), UPLINK, node_timeout=60.0)
    grid = LoopbackGrid(quadratic_app(), 4)
    grid.offline.add(grid.node_ids[3])
    calls = iter(range(100))

    class Joining(LoopbackGrid):
        def get_node_ids(self) -> list[int]:
            if next(calls) == 2:
                self.offline.clear()
            return super().get_node_ids()

    grid.__class__ = Joining
    train(strategy, grid=grid, num_rounds=1)
    assert strategy.ledger.round(1)["num_replies"] == 3  # sampled from 3, then 4 came
    clients = {c for _, purpose, c in sampled(strategy) if purpose == "evaluate"}
    assert "partition-3" in clients


def test_a_node_that_hangs_leaves_time_for_the_others() -> None:
    """Introductions may take a part of the wait, never all of it."""
    timeouts: list[float | None] = []

    class Noting(LoopbackGrid):
        def send_and_receive(self, messages: object, **options: object) -> object:
            timeouts.append(options["timeout"])
            return super().send_and_receive(messages, **options)

    grid = Noting(quadratic_app(), 4)
    strategy = Compressed(FedAvg(), UPLINK, node_timeout=100.0)
    train(strategy, grid=grid, num_rounds=1, timeout=300.0)
    assert timeouts == [25.0, 300.0, 300.0]
