"""What a partition looks like, in numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .partition import Indices


def partition_statistics(
    parts: tuple[Indices, ...], labels: NDArray[np.int64], num_classes: int
) -> dict[str, Any]:
    """Describe a partition.

    Parameters
    ----------
    parts : tuple[Indices, ...]
        From `partition_dataset`.
    labels : NDArray[np.int64]
        Of the training samples.
    num_classes : int
        Number of classes.

    Returns
    -------
    dict[str, Any]
        Sizes (smallest, median, largest), mean entropy in bits of a client's labels
        and of all labels, and each client's label counts.
    """
    counts = np.stack([np.bincount(labels[p], minlength=num_classes) for p in parts])
    sizes = counts.sum(axis=1)
    return {
        "num_clients": len(parts),
        "num_samples": int(sizes.sum()),
        "size_min": int(sizes.min()),
        "size_median": float(np.median(sizes)),
        "size_max": int(sizes.max()),
        "label_entropy_bits_mean": float(np.mean([_entropy(row) for row in counts])),
        "label_entropy_bits_all": _entropy(counts.sum(axis=0)),
        "label_counts": counts.tolist(),
    }


def _entropy(counts: NDArray[np.int64]) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())
