"""The arrays of a message as tensors, and what is asked of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from flwr.app import ArrayRecord, Message
from torch import Tensor

from fl_lowrank.errors import InputError, ProtocolError
from fl_lowrank.model import layout_of
from fl_lowrank.types import all_finite


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


def tensors_of(record: ArrayRecord) -> dict[str, Tensor]:
    """Read the arrays; each read makes new ones, so these are nobody else's.

    Raises
    ------
    InputError
        If torch has no such numbers.
    """
    out = {}
    for name, array in record.items():
        try:
            out[name] = torch.from_numpy(array.numpy()).contiguous()
        except TypeError as error:
            msg = f"array {name!r} is not one that torch can hold: {error}"
            raise InputError(msg) from error
    return out


def check_same_model(
    received: Mapping[str, Tensor], trained: Mapping[str, Tensor]
) -> None:
    """Refuse a reply whose arrays are not those that were received.

    Raises
    ------
    ProtocolError
        With the first that differs.
    """
    before, after = layout_of(received), layout_of(trained)
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
