"""The arrays of a message as tensors, and what is asked of them."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor

from fl_lowrank.errors import InputError, ProtocolError
from fl_lowrank.model import Layout
from fl_lowrank.types import all_finite
from fl_lowrank.wire import TensorLayout

_HEADS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def only_arrays(message: Message, what: str) -> ArrayRecord:
    """Give the one record of arrays; `ProtocolError` unless it is the only one."""
    records = list(message.content.array_records.values())
    if len(records) != 1:
        msg = (
            f"expected exactly one ArrayRecord in {what}, found {len(records)}; "
            "send the whole model in one"
        )
        raise ProtocolError(msg)
    return records[0]


def views_of(record: ArrayRecord) -> dict[str, NDArray[Any]]:
    """Read the arrays where their bytes lie: nothing is copied or can be changed.

    Raises
    ------
    InputError
        If torch has no such numbers.
    """
    out = {}
    for name, array in record.items():
        try:
            out[name] = _view(array)
            _dtype_of(out[name])
        except (TypeError, ValueError) as error:
            msg = f"array {name!r} cannot be read as numbers that torch has: {error}"
            raise InputError(msg) from error
    return out


def tensors_of(record: ArrayRecord) -> dict[str, Tensor]:
    """Read the arrays; each read makes new ones, so these are nobody else's.

    Raises
    ------
    InputError
        If torch has no such numbers.
    """
    return copies_of(views_of(record))


def copies_of(views: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    """Copy arrays into tensors."""
    return {name: torch.from_numpy(view.copy("C")) for name, view in views.items()}


def layout_of_views(views: Mapping[str, NDArray[Any]]) -> dict[str, TensorLayout]:
    """Names, shapes and dtypes of a model, in order."""
    return {name: TensorLayout(v.shape, _dtype_of(v)) for name, v in views.items()}


def _view(array: Array) -> NDArray[Any]:
    """Do what ``array.numpy()`` does, which makes copies, without one."""
    file = BytesIO(array.data)  # shares the bytes
    is_numpy = array.stype == "numpy.ndarray"
    if not is_numpy or (version := npy.read_magic(file)) not in _HEADS:
        return array.numpy()
    shape, is_fortran, dtype = _HEADS[version](file)
    if dtype.hasobject:
        msg = f"objects of dtype {dtype}"
        raise TypeError(msg)
    flat = np.frombuffer(array.data, dtype, offset=file.tell())
    return flat.reshape(shape, order="F" if is_fortran else "C")


def _dtype_of(array: NDArray[Any]) -> torch.dtype:
    return torch.from_numpy(np.empty(0, array.dtype)).dtype


def check_same_model(before: Layout, after: Layout) -> None:
    """Refuse a reply whose arrays are not those that were received.

    Raises
    ------
    ProtocolError
        With the first that differs.
    """
    wrong = sorted(
        name
        for name in before.keys() | after.keys()
        if before.get(name) != after.get(name)
    )
    if wrong:
        name = wrong[0]
        msg = (
            f"the reply's arrays differ from the received ones in {len(wrong)} places, "
            f"first {name!r}: received {before.get(name)}, found {after.get(name)}; "
            "return the same names, shapes and dtypes"
        )
        raise ProtocolError(msg)


def check_finite(update: Mapping[str, Tensor]) -> None:
    """Refuse an update that is not finite.

    Raises
    ------
    InputError
        With the first tensor that is not.
    """
    for name, value in update.items():
        if not all_finite(value):
            msg = (
                f"the update of {name!r} holds NaN or infinite numbers; training has "
                "probably diverged, lower the learning rate"
            )
            raise InputError(msg)
