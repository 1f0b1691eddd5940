"""Reading what clients sent, and writing what inner strategies expect.

Everything here works on one reply, so that a bad one costs its sender and nobody
else.
"""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from logging import WARNING
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.common import log
from flwr.common.constant import SType
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor

from fl_lowrank.envelope import GRADIENTS_KEY, STYPE, Reply
from fl_lowrank.errors import WireError
from fl_lowrank.updates import MAX_NUM_EXAMPLES
from fl_lowrank.wire import TensorLayout

OTHER_FORM = "the keys of its records or metrics differ from those of most replies"


@dataclass(frozen=True)
class Incoming:
    """A reply that has been read but not yet decoded."""

    client: str
    message: Message
    reply: Reply
    num_examples: float


def tensors_of(record: ArrayRecord) -> dict[str, Tensor]:
    """Copy the arrays of a record to tensors."""
    return {k: torch.from_numpy(a.numpy()).contiguous() for k, a in record.items()}


def layout_of(record: ArrayRecord) -> dict[str, TensorLayout]:
    """Names, shapes and dtypes of a record; nothing is copied."""
    return {
        name: TensorLayout(
            tuple(array.shape), torch.from_numpy(np.empty(0, array.dtype)).dtype
        )
        for name, array in record.items()
    }


def entries_of(array: Array) -> NDArray[Any]:
    """Give the entries of an array in place: flat, in row-major order, read-only."""
    file = io.BytesIO(array.data)  # shares the bytes
    if array.stype == SType.NUMPY and npy.read_magic(file) == (1, 0):
        shape, by_columns, dtype = npy.read_array_header_1_0(file)
        size, start = math.prod(shape), file.tell()
        if size and not (by_columns and len(shape) > 1):
            return np.frombuffer(array.data, dtype, size, start)
    return array.numpy().reshape(-1)


def array_of(slices: Iterable[Tensor], like: Array) -> Array:
    """Write slices of a flat tensor as an array with the shape and dtype of ``like``.

    The bytes are those of Flower's own arrays, and the only memory it takes.
    """
    dtype = np.dtype(like.dtype)
    head = io.BytesIO()
    fields = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False}
    npy.write_array_header_1_0(head, fields | {"shape": tuple(like.shape)})
    size = math.prod(like.shape) * dtype.itemsize
    # All at once, since to grow takes several times as much; zeros take none until
    # something is written.
    file = io.BytesIO(bytes(head.tell() + size))
    file.write(head.getvalue())
    with np.errstate(over="ignore"):  # infinite, as in plain strategies
        for part in slices:
            file.write(part.numpy().astype(dtype).data)
    return Array(like.dtype, tuple(like.shape), SType.NUMPY, file.getvalue())


def conformed(record: ArrayRecord, like: ArrayRecord) -> ArrayRecord:
    """Give a record with the order and dtypes of ``like``; what fits is not copied."""
    if all(
        name in record and record[name].dtype == array.dtype
        for name, array in like.items()
    ):
        return ArrayRecord({name: record[name] for name in like})
    return record_of(tensors_of(record), like)


def record_of(tensors: Mapping[str, Tensor], like: ArrayRecord) -> ArrayRecord:
    """Give tensors as arrays, with the order and dtypes of ``like``.

    Integers lose their fraction, as when torch loads the means of plain strategies.
    """
    return ArrayRecord(
        {
            name: Array(tensors[name].numpy().astype(np.dtype(array.dtype)))
            for name, array in like.items()
        }
    )


def read(client: str, message: Message, weight_key: str) -> Incoming:
    """Find the one compressed array and the number of examples.

    Raises
    ------
    WireError
        If the reply is not one of `CompressionMod`.
    """
    records = list(message.content.array_records.values())
    arrays = [array for record in records for array in record.values()]
    if len(records) != 1 or len(arrays) != 1 or arrays[0].stype != STYPE:
        found = f"{len(arrays)} arrays in {len(records)} records"
        found += f" of {arrays[0].stype}" if arrays else ""
        msg = (
            f"expected one array of type {STYPE}, found {found}; put CompressionMod() "
            "first in the ClientApp's mods"
        )
        raise WireError(msg)
    return Incoming(
        client,
        message,
        Reply.unpack(arrays[0].data),
        num_examples(message, weight_key),
    )


def num_examples(message: Message, weight_key: str) -> float:
    """Read the weight of a reply; `WireError` unless it is a usable number."""
    records = list(message.content.metric_records.values())
    value = records[0].get(weight_key) if len(records) == 1 else None
    if isinstance(value, int | float) and 0 < value <= MAX_NUM_EXAMPLES:
        return float(value)
    msg = (
        f"expected one MetricRecord with {weight_key!r} in (0, {MAX_NUM_EXAMPLES:g}], "
        f"found {len(records)} records and {value!r}"
    )
    raise WireError(msg)


def extra_gradients(message: Message) -> int:
    """Read how many gradients importance weights took; 0 unless it is such a number."""
    for record in message.content.metric_records.values():
        value = record.get(GRADIENTS_KEY)
        if isinstance(value, int) and value > 0:
            return value
    return 0


def finite_metrics(message: Message) -> bool:
    """Whether all metrics of a reply are finite numbers."""
    return all(
        math.isfinite(number)
        for record in message.content.metric_records.values()
        for value in record.values()
        for number in (value if isinstance(value, list) else [value])
    )


def same_form(messages: Sequence[Message]) -> list[bool]:
    """Say which replies have the records and metrics that most of them have.

    Flower ends the whole run when replies disagree, so the minority is left out.
    """

    def signature(message: Message) -> tuple[object, ...]:
        metrics = tuple(
            (key, tuple((k, _length(v)) for k, v in sorted(record.items())))
            for key, record in sorted(message.content.metric_records.items())
        )
        return metrics, tuple(sorted(message.content.array_records))

    signatures = [signature(m) for m in messages]
    usual = max(Counter(signatures).items(), key=lambda i: i[1], default=((), 0))[0]
    return [s == usual for s in signatures]


def usable_metrics(
    valid: Sequence[tuple[str, Message]], weight_key: str
) -> list[Message]:
    """Leave out evaluation replies that would end the run."""
    weighted = []
    for client, message in valid:
        try:
            num_examples(message, weight_key)
        except WireError as error:
            log(WARNING, "Compressed: left out the evaluation of %s: %s", client, error)
            continue
        weighted.append((client, message))
    usable = []
    usual = same_form([m for _, m in weighted])
    for (client, message), ok in zip(weighted, usual, strict=True):
        if ok:
            usable.append(message)
        else:
            text = "Compressed: left out the evaluation of %s: %s"
            log(WARNING, text, client, OTHER_FORM)
    return usable


def _length(value: object) -> int:
    return len(value) if isinstance(value, list) else -1


def weighted_mean(
    parts: Iterable[tuple[Mapping[str, Tensor], float]],
) -> dict[str, Tensor]:
    """Average the exact arrays in float64, as Flower does."""
    total: dict[str, Tensor] = {}
    weights = 0.0
    for tensors, weight in parts:
        weights += weight
        for name, value in tensors.items():
            part = value.to(torch.float64) * weight
            total[name] = total[name] + part if name in total else part
    return {name: value / weights for name, value in total.items()}


def with_arrays(
    message: Message, arrays: ArrayRecord, weight: tuple[str, float] | None = None
) -> Message:
    """Give a reply like ``message`` with other arrays, and another weight."""
    content = RecordDict(dict(message.content.items()))
    content[next(iter(message.content.array_records))] = arrays
    if weight is not None:
        key = next(iter(message.content.metric_records))
        metrics = MetricRecord(dict(message.content.metric_records[key].items()))
        old = metrics[weight[0]]
        value = weight[1]
        metrics[weight[0]] = int(value) if isinstance(old, int) else value
        content[key] = metrics
    other = copy(message)
    other.content = content
    return other
