from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from simulations.data import DATASETS, load_dataset
from simulations.data.dataset import DATA_VARIABLE
from simulations.errors import SimulationError

LIBSVM_SHAPES = {
    "mushrooms": (8124, 112),
    "a9a": (32561, 123),
    "w8a": (49749, 300),
    "phishing": (11055, 68),
}
needs_data = pytest.mark.skipif(
    not os.environ.get(DATA_VARIABLE), reason=f"{DATA_VARIABLE} names no data folder"
)


@pytest.fixture(autouse=True)
def _fresh_cache() -> Iterator[None]:
    load_dataset.cache_clear()
    yield
    load_dataset.cache_clear()


def test_digits() -> None:
    data = load_dataset("digits")
    assert data.train_x.shape == (1437, 1, 8, 8)
    assert data.test_x.shape == (360, 1, 8, 8)
    assert (data.train_x.dtype, data.train_y.dtype) == (torch.float32, torch.int64)
    assert data.train_x.max() == 1.0
    # Classes in proportion: 174 to 183 of each in the whole set.
    assert data.test_y.bincount().tolist() == pytest.approx([36] * 10, abs=2)


def test_a_data_set_is_loaded_once() -> None:
    assert load_dataset("digits") is load_dataset("digits")


def test_a_limit_keeps_the_same_samples_and_the_test_set() -> None:
    whole, limited = load_dataset("digits"), load_dataset("digits", 100)
    assert len(limited.train_y) == 100
    assert torch.equal(limited.test_x, whole.test_x)
    flat = {row.numpy().tobytes() for row in whole.train_x}
    assert all(row.numpy().tobytes() in flat for row in limited.train_x)
    first = limited.train_x.clone()
    load_dataset.cache_clear()
    assert torch.equal(load_dataset("digits", 100).train_x, first)


def test_unknown_data_set_names_the_choices() -> None:
    with pytest.raises(SimulationError, match=r"unknown dataset 'mnist'.*digits"):
        load_dataset("mnist")


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "digits"])
def test_missing_files_say_where_to_put_them(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    with pytest.raises(SimulationError) as caught:
        load_dataset(name)
    assert DATA_VARIABLE in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_libsvm_without_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    with pytest.raises(SimulationError, match=f"{DATA_VARIABLE} is not set"):
        load_dataset("a9a")


def test_libsvm_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "libsvm").mkdir()
    rows = "".join(f"{2 - i % 2} 1:{i} 5:0.5\n" for i in range(20))
    (tmp_path / "libsvm" / "phishing.txt").write_text(rows)
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    data = load_dataset("phishing")
    assert data.train_x.shape == (16, 68)
    assert data.test_x.shape == (4, 68)
    x = torch.cat([data.train_x, data.test_x])
    y = torch.cat([data.train_y, data.test_y])
    # Row i has label 2 - i % 2 and first feature i.
    assert torch.equal(y, 1 - x[:, 0].long() % 2)
    assert x[:, 0].sort().values.tolist() == list(range(20))


def _write_fashion(folder: Path) -> np.ndarray:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(12, 28, 28), dtype=np.uint8)
    labels = rng.integers(10, size=12, dtype=np.uint8)
    for part in ("train", "t10k"):
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = bytes([0, 0, 8, array.ndim])
            head += b"".join(n.to_bytes(4, "big") for n in array.shape)
            path = folder / f"{part}-{kind}-ubyte.gz"
            path.write_bytes(gzip.compress(head + array.tobytes()))
    return images


def test_fashion_mnist_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = _write_fashion(tmp_path / "fashion-mnist")
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    data = load_dataset("fashion-mnist")
    assert data.train_x.shape == data.test_x.shape == (12, 1, 28, 28)
    pixels = (data.train_x * 0.3530 + 0.2860) * 255
    assert np.array_equal(pixels.round().numpy()[:, 0].astype(np.uint8), images)


def test_damaged_idx_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write_fashion(tmp_path / "fashion-mnist")
    path = tmp_path / "fashion-mnist" / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1]))
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    with pytest.raises(SimulationError, match="announces 9408 bytes and has 9407"):
        load_dataset("fashion-mnist")


def test_failed_download_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def refuse(*args: object, **options: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr("torchvision.datasets.FashionMNIST", refuse)
    with pytest.raises(SimulationError, match=f"ConnectionError.*{DATA_VARIABLE}"):
        load_dataset("fashion-mnist")


def _write_cifar(folder: Path, rows: int = 2, columns: int = 3) -> np.ndarray:
    """One colour an image, all different; gives the colours, train before test."""
    folder.mkdir(parents=True)
    count = rows * columns
    colours = np.random.default_rng(0).integers(
        256, size=(6 * count, 3), dtype=np.uint8
    )
    for i, name in enumerate([*(f"train_{i}" for i in range(1, 6)), "test"]):
        own = colours[i * count : (i + 1) * count].reshape(rows, columns, 3)
        pixels = own.repeat(32, axis=0).repeat(32, axis=1)
        Image.fromarray(pixels).save(folder / f"{name}.webp", lossless=True)
    labels = np.arange(6 * count, dtype=np.uint8) % 10
    np.save(folder / "train_labels.npy", labels[: 5 * count])
    np.save(folder / "test_labels.npy", labels[5 * count :])
    return colours


def test_cifar_atlases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    colours = _write_cifar(tmp_path / "cifar10")
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    data = load_dataset("cifar10")
    assert data.train_x.shape == (30, 3, 32, 32)
    assert data.test_x.shape == (6, 3, 32, 32)
    assert torch.cat([data.train_y, data.test_y]).tolist() == [
        i % 10 for i in range(36)
    ]
    deviation = torch.tensor([0.2470, 0.2435, 0.2616]).reshape(3, 1, 1)
    mean = torch.tensor([0.4914, 0.4822, 0.4465]).reshape(3, 1, 1)
    pixels = (torch.cat([data.train_x, data.test_x]) * deviation + mean) * 255
    expected = torch.from_numpy(colours).float()[:, :, None, None]
    torch.testing.assert_close(pixels, expected.expand_as(pixels), rtol=0, atol=1e-3)


def test_damaged_cifar_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cifar100"
    _write_cifar(folder)
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    np.save(folder / "test_labels.npy", np.zeros(5, dtype=np.uint8))
    with pytest.raises(SimulationError, match=r"labels of shape \(5,\) for 6 images"):
        load_dataset("cifar100")
    (folder / "test_labels.npy").write_bytes(b"no array")
    with pytest.raises(SimulationError, match=r"test_labels.npy cannot be read"):
        load_dataset("cifar100")
    Image.new("RGB", (64, 40)).save(folder / "train_2.webp", lossless=True)
    with pytest.raises(SimulationError, match=r"train_2.webp is 40 x 64, no grid"):
        load_dataset("cifar100")
    (folder / "train_2.webp").write_bytes(b"RIFF")
    with pytest.raises(SimulationError, match=r"train_2.webp cannot be read"):
        load_dataset("cifar100")


def test_cifar_is_downloaded_without_the_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    class Downloaded:
        def __init__(self, root: str, *, train: bool, download: bool) -> None:
            assert root == str(tmp_path / "fl-lowrank")
            assert download
            self.data = np.full((4 if train else 2, 32, 32, 3), 255, dtype=np.uint8)
            self.targets = [7] * len(self.data)

    monkeypatch.setattr("torchvision.datasets.CIFAR100", Downloaded)
    data = load_dataset("cifar100")
    assert data.train_x.shape == (4, 3, 32, 32)
    assert data.test_y.tolist() == [7, 7]
    assert data.num_classes == 100


@needs_data
@pytest.mark.parametrize("num_classes", [10, 100])
def test_cifar(num_classes: int) -> None:
    data = load_dataset(f"cifar{num_classes}")
    assert data.train_x.shape == (50_000, 3, 32, 32)
    assert data.test_y.bincount().tolist() == [10_000 // num_classes] * num_classes
    assert data.train_x.mean(dim=(0, 2, 3)).abs().max() < 1e-3
    assert data.train_x.std(dim=(0, 2, 3)).tolist() == pytest.approx([1] * 3, abs=1e-3)


@needs_data
@pytest.mark.parametrize("name", LIBSVM_SHAPES)
def test_libsvm_sets(name: str) -> None:
    num_rows, num_features = LIBSVM_SHAPES[name]
    data = load_dataset(name)
    assert len(data.train_y) + len(data.test_y) == num_rows
    assert data.sample_shape == (num_features,)
    assert data.train_y.unique().tolist() == data.test_y.unique().tolist() == [0, 1]


@needs_data
def test_fashion_mnist() -> None:
    data = load_dataset("fashion-mnist")
    assert data.train_x.shape == (60_000, 1, 28, 28)
    assert data.test_y.bincount().tolist() == [1000] * 10
    assert abs(float(data.train_x.mean())) < 1e-3
    assert float(data.train_x.std()) == pytest.approx(1, abs=1e-3)
