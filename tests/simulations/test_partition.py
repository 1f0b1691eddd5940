from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from simulations.config import Settings, default_run_config
from simulations.data import (
    PARTITIONS,
    Partitioning,
    load_dataset,
    partition_dataset,
    partition_statistics,
)
from simulations.data.partition import MIN_PARTITION_SIZE, power_law_sizes
from simulations.errors import SimulationError

NUM_CLIENTS = 20


def _how(**changes: object) -> Partitioning:
    settings = Settings.from_run_config(default_run_config())
    return dataclasses.replace(Partitioning.of(settings), **changes)


def _entropy(how: Partitioning) -> float:
    parts = partition_dataset(how, NUM_CLIENTS)
    labels = load_dataset("digits").train_y.numpy()
    return float(partition_statistics(parts, labels, 10)["label_entropy_bits_mean"])


@pytest.mark.parametrize("scheme", PARTITIONS)
def test_partitions_are_disjoint_and_repeat(scheme: str) -> None:
    parts = partition_dataset(_how(scheme=scheme), NUM_CLIENTS)
    assert len(parts) == NUM_CLIENTS
    together = np.concatenate(parts)
    assert len(np.unique(together)) == len(together)
    assert min(len(part) for part in parts) >= MIN_PARTITION_SIZE
    partition_dataset.cache_clear()
    again = partition_dataset(_how(scheme=scheme), NUM_CLIENTS)
    assert all(map(np.array_equal, parts, again))
    other = partition_dataset(_how(scheme=scheme, seed=1), NUM_CLIENTS)
    assert not all(map(np.array_equal, parts, other))


@pytest.mark.parametrize("scheme", ["iid", "dirichlet"])
def test_partitions_cover_all_samples(scheme: str) -> None:
    parts = partition_dataset(_how(scheme=scheme), NUM_CLIENTS)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(1437))


@pytest.mark.parametrize("scheme", PARTITIONS)
def test_sizes_are_skewed(scheme: str) -> None:
    sizes = [len(part) for part in partition_dataset(_how(scheme=scheme), NUM_CLIENTS)]
    assert max(sizes) > 4 * np.median(sizes)


def test_equal_sizes_without_skew() -> None:
    sizes = [len(p) for p in partition_dataset(_how(size_skew=0.0), NUM_CLIENTS)]
    assert max(sizes) - min(sizes) <= 1


def test_labels_are_skewed_as_asked() -> None:
    iid = _entropy(_how(scheme="iid"))
    mild, strong = _entropy(_how(alpha=1.0)), _entropy(_how(alpha=0.1))
    assert strong < mild - 0.5 < iid - 0.7
    assert _entropy(_how(scheme="pathological")) <= 1.0


def test_power_law_sizes() -> None:
    sizes = power_law_sizes(10_000, 40, 1.0, np.random.default_rng(0))
    assert sizes.sum() == 10_000
    spare = np.sort(sizes)[::-1] - MIN_PARTITION_SIZE
    # Rank times size is constant for exponent 1, up to rounding.
    assert np.allclose(spare * np.arange(1, 41), spare[0], rtol=0.03)


def test_too_many_clients() -> None:
    with pytest.raises(SimulationError, match=r"1437 training samples.* 200 clients"):
        partition_dataset(_how(), 200)


def test_unknown_partition() -> None:
    with pytest.raises(SimulationError, match="unknown partition 'shards'"):
        partition_dataset(_how(scheme="shards"), NUM_CLIENTS)


def test_statistics() -> None:
    labels = np.array([0, 0, 1, 1, 1, 1])
    parts = (np.array([0, 2]), np.array([3, 4, 5, 1]))
    found = partition_statistics(parts, labels, 2)
    assert (found["size_min"], found["size_median"], found["size_max"]) == (2, 3, 4)
    assert found["label_counts"] == [[1, 1], [1, 3]]
    assert found["label_entropy_bits_mean"] == pytest.approx((1 + 0.8112781) / 2)
