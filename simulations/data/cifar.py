"""CIFAR-10 and CIFAR-100: 50,000 and 10,000 colour images of 32 x 32.

The data folder may hold them as lossless atlases, which are a third of the size of
the originals: ``train_1.webp`` to ``train_5.webp`` and ``test.webp``, each a grid of
images in row-major order, with ``train_labels.npy`` and ``test_labels.npy``.

References
----------
A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", technical
report, University of Toronto, 2009.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import SimulationError
from .dataset import DATA_VARIABLE, Dataset, data_folder
from .download import download

_SIDE = 32
_ATLASES = {"train": [f"train_{i}" for i in range(1, 6)], "test": ["test"]}


@dataclass(frozen=True)
class _Set:
    """One of the two sets; mean and deviation of the training pixels by channel."""

    folder: str
    torchvision_class: str
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]
    num_classes: int


_SETS = {
    10: _Set(
        "cifar10", "CIFAR10", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), 10
    ),
    100: _Set(
        "cifar100", "CIFAR100", (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), 100
    ),
}


def load_cifar(num_classes: int) -> Dataset:
    """Load the set from the data folder, or else download it once.

    Parameters
    ----------
    num_classes : int
        10 or 100.

    Returns
    -------
    Dataset
        Standardized images of shape (3, 32, 32).
    """
    which = _SETS[num_classes]
    folder = _named_folder(which)
    (train_x, train_y), (test_x, test_y) = (
        _downloaded(which, split) if folder is None else _read(folder, split)
        for split in ("train", "test")
    )
    return Dataset(
        _standardized(train_x, which),
        torch.from_numpy(train_y),
        _standardized(test_x, which),
        torch.from_numpy(test_y),
        num_classes=num_classes,
    )


def _named_folder(which: _Set) -> Path | None:
    folder = data_folder()
    if folder is None:
        return None
    folder = folder / which.folder
    if not (folder / "test.webp").is_file():
        raise SimulationError(
            f"{which.torchvision_class} not found in {folder}: put its WebP atlases "
            f"and labels there, let {DATA_VARIABLE} name another folder that has "
            f"{which.folder}/, or unset it to download them."
        )
    return folder


def _downloaded(which: _Set, split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    what = f"the WebP atlases and labels in {which.folder}/"
    found, _ = download(which.torchvision_class, what, train=split == "train")
    return found.data, np.asarray(found.targets, dtype=np.int64)


def _read(folder: Path, split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    images = np.concatenate(
        [_read_atlas(folder / f"{name}.webp") for name in _ATLASES[split]]
    )
    path = folder / f"{split}_labels.npy"
    try:
        labels = np.load(path, allow_pickle=False).astype(np.int64)
    except (OSError, ValueError) as error:
        raise SimulationError(f"{path} cannot be read: {error}.") from error
    if labels.shape != images.shape[:1]:
        raise SimulationError(
            f"{path} has labels of shape {labels.shape} for {len(images)} images."
        )
    return images, labels


def _read_atlas(path: Path) -> NDArray[np.uint8]:
    """Cut a grid of images apart: (n, 32, 32, 3)."""
    # Imported here: a client of another data set does without.
    from PIL import Image

    try:
        with Image.open(path) as image:
            atlas = np.asarray(image.convert("RGB"))
    except OSError as error:
        raise SimulationError(f"{path} cannot be read: {error}.") from error
    height, width, _ = atlas.shape
    if height % _SIDE or width % _SIDE:
        raise SimulationError(
            f"{path} is {height} x {width}, no grid of {_SIDE} x {_SIDE} images."
        )
    grid = atlas.reshape(height // _SIDE, _SIDE, width // _SIDE, _SIDE, 3)
    return grid.transpose(0, 2, 1, 3, 4).reshape(-1, _SIDE, _SIDE, 3)


def _standardized(images: NDArray[np.uint8], which: _Set) -> Tensor:
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).to(torch.float32)
    mean, deviation = (
        torch.tensor(values).reshape(3, 1, 1)
        for values in (which.mean, which.deviation)
    )
    return pixels.div_(255).sub_(mean).div_(deviation).contiguous()
