"""What every data set of the simulations is."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

DATA_VARIABLE = "FL_LOWRANK_DATA"
# Splits and subsets are part of a data set, so they do not follow a run's seed.
SPLIT_SEED = 2010


@dataclass(frozen=True)
class Dataset:
    """Training and test samples; features float32, labels int64 from 0."""

    train_x: Tensor  # (n, *sample shape)
    train_y: Tensor  # (n,)
    test_x: Tensor
    test_y: Tensor
    num_classes: int

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.train_x.shape[1:])

    def limited(self, train_samples: int) -> Dataset:
        """Keep a random subset of the training samples, always the same one.

        Parameters
        ----------
        train_samples : int
            How many; 0, or more than there are, keeps all.

        Returns
        -------
        Dataset
            The data set with fewer training samples.
        """
        if not 0 < train_samples < len(self.train_y):
            return self
        order = np.random.default_rng(SPLIT_SEED).permutation(len(self.train_y))
        kept = torch.from_numpy(np.sort(order[:train_samples]))
        return Dataset(
            self.train_x[kept],
            self.train_y[kept],
            self.test_x,
            self.test_y,
            self.num_classes,
        )


def data_folder() -> Path | None:
    """Return the folder that the environment names for data, if it names one.

    Returns
    -------
    Path | None
        The folder, absolute; None if the variable is unset or empty.
    """
    named = os.environ.get(DATA_VARIABLE, "")
    return Path(named).expanduser().resolve() if named else None
