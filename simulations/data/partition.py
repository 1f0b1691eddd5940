"""Who holds which samples: label skew by flwr-datasets, sizes by a power law.

The sizes fall as rank ** -size_skew (Zipf), in random order, with a floor of
`MIN_PARTITION_SIZE`. The Dirichlet partition fills clients of these sizes; the
pathological one has sizes of its own, so there each client keeps its power-law
share of what it got, and the rest of the samples is not used.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import SimulationError, choose
from .load import load_dataset

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

    from ..config import Settings

Indices = NDArray[np.int64]
MIN_PARTITION_SIZE = 10


@dataclass(frozen=True)
class Partitioning:
    """How to split a data set; hashable, so that a process splits it once."""

    dataset: str
    train_samples: int
    scheme: str
    alpha: float
    size_skew: float
    classes_per_client: int
    seed: int

    @classmethod
    def of(cls, settings: Settings) -> Partitioning:
        """Take what matters for the partition from a run's settings.

        Parameters
        ----------
        settings : Settings
            The run's settings.

        Returns
        -------
        Partitioning
            The part of them that says who holds which samples.
        """
        return cls(
            settings.dataset,
            settings.train_samples,
            settings.partition,
            settings.alpha,
            settings.size_skew,
            settings.classes_per_client,
            settings.seed,
        )


def _iid(how: Partitioning, sizes: Indices) -> Partitioner:
    from flwr_datasets.partitioner import SizePartitioner

    return SizePartitioner(partition_sizes=sizes.tolist())


def _dirichlet(how: Partitioning, sizes: Indices) -> Partitioner:
    from flwr_datasets.partitioner import InnerDirichletPartitioner

    return InnerDirichletPartitioner(
        partition_sizes=sizes.tolist(),
        partition_by="label",
        alpha=how.alpha,
        seed=how.seed,
    )


def _pathological(how: Partitioning, sizes: Indices) -> Partitioner:
    from flwr_datasets.partitioner import PathologicalPartitioner

    return PathologicalPartitioner(
        num_partitions=len(sizes),
        partition_by="label",
        num_classes_per_partition=how.classes_per_client,
        class_assignment_mode="first-deterministic",
        seed=how.seed,
    )


PARTITIONS: dict[str, Callable[[Partitioning, Indices], Partitioner]] = {
    "iid": _iid,
    "dirichlet": _dirichlet,
    "pathological": _pathological,
}


@functools.cache
def partition_dataset(how: Partitioning, num_clients: int) -> tuple[Indices, ...]:
    """Split the training samples of a data set over the clients.

    Parameters
    ----------
    how : Partitioning
        The data set, the scheme and its settings.
    num_clients : int
        Number of partitions.

    Returns
    -------
    tuple[Indices, ...]
        For each client its samples' indices, disjoint and in random order.
    """
    make = choose(PARTITIONS, how.scheme, "partition")
    labels = load_dataset(how.dataset, how.train_samples).train_y.numpy()
    rng = np.random.default_rng((how.seed, num_clients))
    sizes = power_law_sizes(len(labels), num_clients, how.size_skew, rng)
    # Partitioners cut a data set in its own order: shuffle it first.
    order = rng.permutation(len(labels))
    parts = _apply(make(how, sizes), labels[order], order)
    if how.scheme == "pathological":
        shares = sizes / sizes.max()
        parts = [
            part[: max(int(len(part) * share), MIN_PARTITION_SIZE)]
            for part, share in zip(parts, shares, strict=True)
        ]
    smallest = min(len(part) for part in parts)
    if smallest < MIN_PARTITION_SIZE:
        raise SimulationError(
            f"partition {how.scheme!r}: a client would hold {smallest} samples, fewer "
            f"than {MIN_PARTITION_SIZE}: ask for fewer clients or more train-samples."
        )
    return tuple(parts)


def power_law_sizes(
    num_samples: int, num_clients: int, skew: float, rng: np.random.Generator
) -> Indices:
    """Share out samples in proportion to rank ** -skew, in random order.

    Parameters
    ----------
    num_samples, num_clients : int
        What to share out, and among how many.
    skew : float
        The exponent; 0 gives equal sizes.
    rng : np.random.Generator
        Says which client is how large.

    Returns
    -------
    Indices
        Sizes of at least `MIN_PARTITION_SIZE` that sum to `num_samples`.
    """
    spare = num_samples - num_clients * MIN_PARTITION_SIZE
    if num_clients < 1 or spare < 0:
        raise SimulationError(
            f"partition: {num_samples} training samples cannot give each of "
            f"{num_clients} clients the {MIN_PARTITION_SIZE} that it needs: ask for "
            f"fewer clients or more train-samples."
        )
    weights = np.arange(1, num_clients + 1, dtype=np.float64) ** -skew
    # Rounded cumulative shares: the sizes sum exactly.
    ends = np.rint(np.cumsum(weights) / weights.sum() * spare).astype(np.int64)
    sizes = np.diff(ends, prepend=0) + MIN_PARTITION_SIZE
    shuffled: Indices = rng.permutation(sizes)
    return shuffled


def _apply(
    partitioner: Partitioner, labels: NDArray[np.int64], indices: Indices
) -> list[Indices]:
    # datasets and flwr_datasets take seconds to import: only who partitions pays.
    from datasets import Dataset as Table

    partitioner.dataset = Table.from_dict({"label": labels, "index": indices})
    try:
        return [
            np.asarray(partitioner.load_partition(i)["index"], dtype=np.int64)
            for i in range(partitioner.num_partitions)
        ]
    except (ValueError, FloatingPointError) as error:
        raise SimulationError(f"partition: flwr-datasets refused: {error}") from error
