"""What a client would send: the update of a model after some steps on real data.

The networks are those of federated-averaging papers and of CIFAR experiments; the
data are Fashion-MNIST and CIFAR-10, or for ``digits-cnn`` the digits that scikit-learn
brings.
"""

from __future__ import annotations

import os

from torch import Tensor

from fl_lowrank.updates import is_exact
from simulations.data import load_dataset
from simulations.data.dataset import DATA_VARIABLE
from simulations.models import build_model
from simulations.training import train_locally

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
        Differences of the parameters; running statistics, which travel exactly, are
        left out.
    """
    dataset, num_batches, batch_size, lr = TRAINING[name]
    data = load_dataset(dataset, num_batches * batch_size)
    model = build_model(name, data.sample_shape, data.num_classes, seed)
    before = {k: v.clone() for k, v in model.state_dict().items()}
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
