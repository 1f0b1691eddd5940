"""The table of data sets, and the cache in front of it."""

from __future__ import annotations

import functools
from collections.abc import Callable

from ..errors import choose
from .cifar import load_cifar
from .dataset import Dataset
from .digits import load_digits
from .fashion_mnist import load_fashion_mnist
from .libsvm import load_libsvm

DATASETS: dict[str, Callable[[], Dataset]] = {
    "digits": load_digits,
    "fashion-mnist": load_fashion_mnist,
    "cifar10": functools.partial(load_cifar, 10),
    "cifar100": functools.partial(load_cifar, 100),
    "mushrooms": functools.partial(load_libsvm, "mushrooms", num_features=112),
    "a9a": functools.partial(load_libsvm, "a9a", num_features=123),
    "w8a": functools.partial(load_libsvm, "w8a", num_features=300),
    "phishing": functools.partial(load_libsvm, "phishing", num_features=68),
}


# A Ray actor serves many clients one after the other: it loads a data set once.
@functools.cache
def load_dataset(name: str, train_samples: int = 0) -> Dataset:
    """Load a data set of the table, from memory if this process has it already.

    Parameters
    ----------
    name : str
        A key of `DATASETS`.
    train_samples : int
        Keep only so many training samples; 0 keeps all.

    Returns
    -------
    Dataset
        The data; do not write into it.
    """
    return choose(DATASETS, name, "dataset")().limited(train_samples)
