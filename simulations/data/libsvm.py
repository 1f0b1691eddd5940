"""Binary classification sets of the LIBSVM collection.

References
----------
C.-C. Chang, C.-J. Lin, "LIBSVM: a library for support vector machines", ACM TIST
2(3), 2011. https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/binary.html
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ..errors import SimulationError
from .dataset import DATA_VARIABLE, SPLIT_SEED, Dataset, data_folder

_TEST_SHARE = 0.2


def load_libsvm(name: str, *, num_features: int) -> Dataset:
    """Load one set, four fifths of the rows for training, drawn at random.

    Parameters
    ----------
    name : str
        The set's name in the collection.
    num_features : int
        Columns; a file may not mention the last ones.

    Returns
    -------
    Dataset
        Samples of shape (num_features,), labels 0 and 1 in the order of the file's.
    """
    from sklearn.datasets import load_svmlight_file

    rows, targets = load_svmlight_file(str(_find(name)), n_features=num_features)
    x = torch.from_numpy(rows.toarray().astype(np.float32))
    y = torch.from_numpy(np.unique(targets, return_inverse=True)[1].astype(np.int64))
    order = torch.from_numpy(np.random.default_rng(SPLIT_SEED).permutation(len(y)))
    test, train = order.tensor_split([int(len(y) * _TEST_SHARE)])
    return Dataset(x[train], y[train], x[test], y[test], num_classes=2)


def _find(name: str) -> Path:
    folder = data_folder()
    places = [] if folder is None else [folder / "libsvm" / f"{name}.txt.gz"]
    places += [place.with_suffix("") for place in places]
    for place in places:
        if place.is_file():
            return place
    looked = places[0] if places else f"nowhere, since {DATA_VARIABLE} is not set"
    raise SimulationError(
        f"data set {name!r} not found (looked for it in {looked}): put the LIBSVM "
        f"file as libsvm/{name}.txt or libsvm/{name}.txt.gz into a folder and let "
        f"{DATA_VARIABLE} name that folder."
    )
