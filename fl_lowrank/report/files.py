"""Tensors from files of strangers: nothing in a file is ever executed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError

_TORCH = (".pt", ".pth")
_MAX_DEPTH = 8


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read all tensors of a ``.npy``, ``.pt`` or ``.pth`` file.

    Pickled objects are refused (``allow_pickle=False``, ``weights_only=True``).
    Dictionaries inside dictionaries give names with dots; what is no tensor is left
    out. A single tensor has the name of its file.

    Raises
    ------
    InputError
        If there is no such file, or no tensor in it, or it cannot be read safely.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix != ".npy" and suffix not in _TORCH:
        msg = f"report: expected a .npy, .pt or .pth file, found {path.name!r}"
        raise InputError(msg)
    try:
        found = _read_npy(path) if suffix == ".npy" else _read_torch(path)
    except OSError as error:
        msg = f"report: cannot open {str(path)!r}: {error.strerror or error}"
        raise InputError(msg) from error
    except Exception as error:  # a damaged file may fail anywhere in its reader
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        msg = (
            f"report: cannot read {str(path)!r} safely: {reason}; save plain arrays "
            "by numpy.save, or tensors and dictionaries of them by torch.save"
        )
        raise InputError(msg) from error
    tensors = dict(_tensors(found, path.stem, 0))
    if not tensors:
        msg = f"report: expected tensors in {str(path)!r}, found {type(found).__name__}"
        raise InputError(msg)
    return tensors


def largest(
    tensors: Mapping[str, Tensor], key: str | None = None
) -> tuple[str, Tensor]:
    """Give the tensor ``key``, or the largest of real numbers, with its name.

    Raises
    ------
    InputError
        If there is no such tensor.
    """
    real = {name: t for name, t in tensors.items() if t.is_floating_point()}
    if key is None and real:
        key = max(real, key=lambda name: real[name].numel())
    if key not in real:
        names = ", ".join(list(real)[:20]) or "none"
        what = "a tensor of real numbers" if key is None else f"the tensor {key!r}"
        msg = f"report: expected {what}, found of real numbers: {names}"
        raise InputError(msg)
    return key, real[key]


def _read_npy(path: Path) -> object:
    array = np.load(path, allow_pickle=False)
    if not isinstance(array, np.ndarray):
        msg = "it is an archive of arrays"
        raise TypeError(msg)
    native = array.astype(array.dtype.newbyteorder("="), order="C")
    return torch.from_numpy(native)


def _read_torch(path: Path) -> object:
    found: object = torch.load(path, map_location="cpu", weights_only=True)
    return found


def _tensors(value: object, name: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    """Strided tensors in nested dictionaries, by dotted name."""
    if isinstance(value, Tensor) and value.layout == torch.strided:
        if not (value.is_complex() or value.is_quantized):
            yield name, value.detach()
    elif isinstance(value, Mapping) and depth < _MAX_DEPTH:
        for key, part in value.items():
            yield from _tensors(part, f"{name}.{key}" if depth else str(key), depth + 1)
