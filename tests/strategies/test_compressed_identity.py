"""``identity()`` gives what the plain strategy gives, up to rounding.

What is left is Flower's own rounding: it averages in float32, in the order in which
replies come, while `Compressed` sums in float64 and rounds once. FedAdam divides small
updates by a small number, so it makes both visible. The last test holds that apart.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvg, Result, Strategy, fedavg

from simulations.loopback import LoopbackGrid
from strategies import Compressed
from tests.strategies.batchnorm import batchnorm_app, batchnorm_arrays
from tests.strategies.federation import distance, train

NUM_ROUNDS = 10
NUM_NODES = 4
MOST = 1e-6

STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "FedAvg": FedAvg,
    "FedAdam": lambda: FedAdam(eta=0.01),
}


def run(strategy: Strategy, seed: int = 0) -> Result:
    grid = LoopbackGrid(batchnorm_app(), NUM_NODES, seed=seed)
    arrays = batchnorm_arrays()
    return train(strategy, grid=grid, arrays=arrays, num_rounds=NUM_ROUNDS)


@cache
def run_plain(name: str) -> Result:
    return run(STRATEGIES[name]())


@pytest.mark.parametrize("feedback", ["plain", "ef", "ef21"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_ten_rounds_deviate_by_at_most_a_millionth(name: str, feedback: str) -> None:
    plain = run_plain(name)
    inner = STRATEGIES[name]()
    ours = run(Compressed(inner, uplink="identity()", feedback=feedback))

    losses = [m["loss"] for m in plain.train_metrics_clientapp.values()]
    assert losses[-1] < 0.8 * losses[0]  # it has learnt something
    assert distance(batchnorm_arrays(), plain.arrays) > 0.05
    assert 0.0 < distance(plain.arrays, ours.arrays) <= MOST
    for name_, array in batchnorm_arrays().items():
        assert ours.arrays[name_].dtype == array.dtype
        assert ours.arrays[name_].shape == array.shape


def test_counts_of_batches_are_those_that_plain_clients_load() -> None:
    plain = run_plain("FedAvg")
    ours = run(Compressed(FedAvg(), uplink="identity()"))
    name = "1.num_batches_tracked"
    assert plain.arrays[name].dtype == "float64"  # torch drops its fraction
    assert ours.arrays[name].dtype == "int64"
    assert int(ours.arrays[name].numpy()) == int(plain.arrays[name].numpy()) > 0


def mean_in_float64(records: list[RecordDict], weight_key: str) -> ArrayRecord:
    """Average as Flower does, but for the rounding."""
    weights = [float(r["metrics"][weight_key]) for r in records]
    first = records[0]["arrays"]
    means = {
        name: np.average([r["arrays"][name].numpy() for r in records], 0, weights)
        for name in first
    }
    return ArrayRecord(
        {
            name: Array(np.asarray(mean, np.float64 if "num" in name else np.float32))
            for name, mean in means.items()
        }
    )


class ExactFedAdam(FedAdam):
    """FedAdam, with its default step of 0.1, on exact averages."""

    def aggregate_train(self, *args: object) -> object:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fedavg, "aggregate_arrayrecords", mean_in_float64)
            arrays, metrics = super().aggregate_train(*args)
        assert arrays is not None
        rounded = {
            k: v if "num" in k else Array(v.numpy().astype(np.float32))
            for k, v in arrays.items()
        }
        return ArrayRecord(rounded), metrics


def test_what_a_large_server_step_shows_is_the_rounding_of_flower() -> None:
    exact = run(ExactFedAdam())
    ours = run(Compressed(FedAdam(), uplink="identity()"))
    plain, other_order = run(FedAdam()), run(FedAdam(), seed=7)

    assert distance(exact.arrays, ours.arrays) <= 0.5 * MOST
    # Plain FedAdam differs that much from itself when replies come in another order.
    noise = distance(plain.arrays, other_order.arrays)
    assert noise > distance(exact.arrays, ours.arrays)
    assert distance(plain.arrays, ours.arrays) <= 2.0 * noise
