"""Tensors to measure on: drawn ones, and what a client of the simulation sends."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

import fl_lowrank as fll


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


@functools.cache
def real_update(model: str = "digits-cnn") -> dict[str, Tensor]:
    """Train a model of the simulations for one local epoch on scikit-learn's digits.

    Parameters
    ----------
    model : str
        A key of `simulations.models.MODELS` that takes images of 8 x 8.

    Returns
    -------
    dict[str, Tensor]
        The parameters after the epoch less those before, by name; do not write into
        them.
    """
    # Imported here: drawn tensors do without the data set's library.
    from simulations.data import load_dataset
    from simulations.models import build_model
    from simulations.training import train_locally

    data = load_dataset("digits")
    network = build_model(model, data.sample_shape, data.num_classes, seed=0)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    train_locally(
        network,
        data.train_x,
        data.train_y,
        lr=0.1,
        momentum=0.0,
        epochs=1,
        batch_size=16,
        seed=0,
    )
    return {name: p.detach() - before[name] for name, p in network.named_parameters()}


def flattened(update: dict[str, Tensor]) -> Tensor:
    """Join the tensors of an update to one vector."""
    return torch.cat([tensor.reshape(-1) for tensor in update.values()])
