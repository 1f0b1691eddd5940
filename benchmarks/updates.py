"""Tensors to measure on: drawn ones, and what a client of the simulation sends."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import fl_lowrank as fll
from fl_lowrank.updates import is_exact

if TYPE_CHECKING:
    from simulations.data import Dataset


def gaussian(d: int) -> Tensor:
    """Draw standard normal numbers."""
    return fll.rng.stream(0, "gaussian").normal(d)


def student(d: int, degrees: int = 3) -> Tensor:
    """Draw numbers with Student's t distribution, whose tails are heavy."""
    rng = fll.rng.stream(0, "student")
    squares = torch.zeros(d)
    for i in range(degrees):
        squares += rng.child(i).normal(d).square()
    return rng.normal(d) / (squares / degrees).sqrt()


def local_update(
    name: str, data: Dataset, *, lr: float, batch_size: int, seed: int = 0
) -> dict[str, Tensor]:
    """Train a fresh model of the simulations for one epoch; give what has changed.

    Parameters
    ----------
    name : str
        A key of `simulations.models.MODELS`.
    data : Dataset
        Its training samples are used.
    lr : float
        Step of SGD.
    batch_size : int
        Samples a batch.
    seed : int
        Of the initial weights and of the batches.

    Returns
    -------
    dict[str, Tensor]
        Differences of the parameters; running statistics, which travel exactly, are
        left out.
    """
    # Imported here: drawn tensors do without the simulations' libraries.
    from simulations.models import build_model
    from simulations.training import train_locally

    model = build_model(name, data.sample_shape, data.num_classes, seed)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    train_locally(
        model,
        data.train_x,
        data.train_y,
        lr=lr,
        momentum=0.0,
        epochs=1,
        batch_size=batch_size,
        seed=seed,
    )
    return {
        key: after - before[key]
        for key, after in model.state_dict().items()
        if not is_exact(key, after.dtype)
    }


@functools.cache
def real_update(model: str = "digits-cnn") -> dict[str, Tensor]:
    """Train a model for one local epoch on all of scikit-learn's digits.

    Parameters
    ----------
    model : str
        A key of `simulations.models.MODELS` that takes images of 8 x 8.

    Returns
    -------
    dict[str, Tensor]
        See `local_update`; do not write into them.
    """
    from simulations.data import load_dataset

    return local_update(model, load_dataset("digits"), lr=0.1, batch_size=16)


def flattened(update: dict[str, Tensor]) -> Tensor:
    """Join the tensors of an update to one vector."""
    return torch.cat([tensor.reshape(-1) for tensor in update.values()])
