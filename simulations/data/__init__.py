"""Data sets, loaded once per process, and their partitions over clients."""

from __future__ import annotations

from .dataset import Dataset
from .load import DATASETS, load_dataset
from .partition import PARTITIONS, Partitioning, partition_dataset
from .statistics import partition_statistics

__all__ = [
    "DATASETS",
    "PARTITIONS",
    "Dataset",
    "Partitioning",
    "load_dataset",
    "partition_dataset",
    "partition_statistics",
]
