"""What a client would send: the update of a model after some steps on real data.

The networks are those of federated-averaging papers and of CIFAR experiments; the
data are Fashion-MNIST and CIFAR-10, or for ``digits-cnn`` the digits that scikit-learn
brings.
"""

from __future__ import annotations

import os

from torch import Tensor

from simulations.data import load_dataset
from simulations.data.dataset import DATA_VARIABLE

from .updates import local_update

#: Data set, batches, samples a batch and step of the local training.
TRAINING = {
    "digits-cnn": ("digits", 60, 16, 0.1),
    "cnn": ("fashion-mnist", 40, 32, 0.05),
    "resnet20": ("cifar10", 20, 32, 0.1),
    "resnet18": ("cifar10", 20, 32, 0.1),
}


def available(*names: str) -> list[str]:
    """Those of the models whose data are at hand without a download."""
    found = bool(os.environ.get(DATA_VARIABLE))
    return [name for name in names if found or TRAINING[name][0] == "digits"]


def real_update(name: str, seed: int = 0) -> dict[str, Tensor]:
    """Train a fresh model for some batches; give what has changed.

    Parameters
    ----------
    name : str
        A key of `TRAINING`.
    seed : int
        Of the initial weights and of the batches.

    Returns
    -------
    dict[str, Tensor]
        See `benchmarks.updates.local_update`.
    """
    dataset, num_batches, batch_size, lr = TRAINING[name]
    data = load_dataset(dataset, num_batches * batch_size)
    return local_update(name, data, lr=lr, batch_size=batch_size, seed=seed)
