"""The arrays of a message as tensors."""

from __future__ import annotations

import torch
from flwr.app import ArrayRecord, Message
from torch import Tensor

from fl_lowrank.errors import InputError, ProtocolError


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
