"""Fashion-MNIST: 60,000 and 10,000 grey images of 28 x 28 in ten classes.

References
----------
H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a Novel Image Dataset for
Benchmarking Machine Learning Algorithms", 2017, arXiv 1708.07747.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import SimulationError
from .dataset import DATA_VARIABLE, Dataset, data_folder
from .download import download

# Mean and standard deviation of the training pixels, scaled to [0, 1].
_MEAN, _DEVIATION = 0.2860, 0.3530
_IDX_UINT8 = 0x08


def load_fashion_mnist() -> Dataset:
    """Load the set from the data folder, or else download it once.

    Returns
    -------
    Dataset
        Standardized images of shape (1, 28, 28).
    """
    folder = _named_folder() or _downloaded_folder()
    arrays = [
        _read_idx(folder / f"{part}-ubyte.gz")
        for part in (
            "train-images-idx3",
            "train-labels-idx1",
            "t10k-images-idx3",
            "t10k-labels-idx1",
        )
    ]
    train_x, train_y, test_x, test_y = arrays
    return Dataset(
        _standardized(train_x),
        torch.from_numpy(train_y.astype(np.int64)),
        _standardized(test_x),
        torch.from_numpy(test_y.astype(np.int64)),
        num_classes=10,
    )


def _named_folder() -> Path | None:
    folder = data_folder()
    if folder is None:
        return None
    folder = folder / "fashion-mnist"
    if not (folder / "train-images-idx3-ubyte.gz").is_file():
        raise SimulationError(
            f"Fashion-MNIST not found in {folder}: put its four idx .gz files there, "
            f"let {DATA_VARIABLE} name another folder that has fashion-mnist/, or "
            f"unset it to download them."
        )
    return folder


def _downloaded_folder() -> Path:
    _, root = download("FashionMNIST", "the four idx .gz files in fashion-mnist/")
    return root / "FashionMNIST" / "raw"


def _read_idx(path: Path) -> np.ndarray:
    try:
        with gzip.open(path) as file:
            data = file.read()
    except (OSError, EOFError) as error:
        raise SimulationError(f"{path} cannot be read: {error}.") from error
    if len(data) < 4 or data[:3] != bytes([0, 0, _IDX_UINT8]):
        raise SimulationError(f"{path} is not an idx file of bytes.")
    head = 4 + 4 * data[3]
    shape = np.frombuffer(data[4:head], dtype=">u4").astype(np.int64)
    if len(data) - head != shape.prod():
        raise SimulationError(
            f"{path} is damaged: it announces {shape.prod()} bytes and has "
            f"{len(data) - head}."
        )
    return np.frombuffer(data, dtype=np.uint8, offset=head).reshape(shape)


def _standardized(images: np.ndarray) -> Tensor:
    pixels = torch.from_numpy(images.astype(np.float32)[:, None])
    return pixels.div_(255).sub_(_MEAN).div_(_DEVIATION)
