"""Handwritten digits, 1,797 grey images of 8 x 8, shipped inside scikit-learn.

References
----------
E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine
Learning Repository, 1998.
"""

from __future__ import annotations

import numpy as np
import torch

from .dataset import SPLIT_SEED, Dataset

_TEST_SHARE = 0.2
_LARGEST_PIXEL = 16.0


def load_digits() -> Dataset:
    """Load the digits, four fifths for training, classes in proportion.

    Returns
    -------
    Dataset
        1,437 training and 360 test images of shape (1, 8, 8).
    """
    # Imported here: a client of another data set does without.
    from sklearn import datasets, model_selection

    bunch = datasets.load_digits()
    train_x, test_x, train_y, test_y = (
        torch.from_numpy(part)
        for part in model_selection.train_test_split(
            (bunch.images[:, None] / _LARGEST_PIXEL).astype(np.float32),
            bunch.target.astype(np.int64),
            test_size=_TEST_SHARE,
            random_state=SPLIT_SEED,
            stratify=bunch.target,
        )
    )
    return Dataset(train_x, train_y, test_x, test_y, num_classes=10)
