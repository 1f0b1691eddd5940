"""Which tensors of a model travel as one vector, and the table that says so.

The table is, for T tensors and G vectors of several::

    varint     T
    varint     G
    bits       for each tensor ceil(log2(G + 1)) bits: 0 alone, g in vector g
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import torch
from torch import Tensor

from .codecs import bits
from .codecs.varint import write_varint
from .errors import WireError
from .framing import Reader
from .types import Compressor
from .wire import TensorLayout

Layout: TypeAlias = Mapping[str, TensorLayout]
MAX_TENSORS = 1 << 16


@dataclass(frozen=True)
class Group:
    """Tensors that are encoded together, and by what."""

    names: tuple[str, ...]
    compressor: Compressor
    layout: TensorLayout


def layout_of(tensors: Mapping[str, Tensor]) -> dict[str, TensorLayout]:
    """Names, shapes and dtypes of a model, in order."""
    return {k: TensorLayout(tuple(v.shape), v.dtype) for k, v in tensors.items()}


def joint_layout(names: Sequence[str], layout: Layout) -> TensorLayout:
    """Layout of one tensor, or of the vector of several."""
    first = layout[names[0]]
    if len(names) == 1:
        return first
    if any(layout[name].dtype != first.dtype for name in names):
        msg = f"model: {names[0]!r} is merged with tensors of another dtype"
        raise WireError(msg)
    return TensorLayout((sum(layout[name].numel for name in names),), first.dtype)


def join(tensors: Sequence[Tensor]) -> Tensor:
    """One tensor as it is, several as a vector."""
    if len(tensors) == 1:
        return tensors[0]
    return torch.cat([t.reshape(-1) for t in tensors])


def write_table(groups: Sequence[Group], names: Sequence[str]) -> bytes:
    """Write which of ``names`` are in which group."""
    merged = [g.names for g in groups if len(g.names) > 1]
    number = {name: i for i, group in enumerate(merged, 1) for name in group}
    width = len(merged).bit_length()
    flags = torch.tensor(
        [number.get(name, 0) >> bit & 1 for name in names for bit in range(width)],
        dtype=torch.bool,
    )
    head = write_varint(len(names)) + write_varint(len(merged))
    return head + bits.encode_bits(flags)


def read_table(reader: Reader, names: tuple[str, ...]) -> Sequence[tuple[str, ...]]:
    """Read the names in each group, in the order of their first ones.

    Raises
    ------
    WireError
        If there is no such table for so many names.
    """
    count = reader.varint(MAX_TENSORS, "the number of tensors")
    if count != len(names):
        msg = (
            f"model: expected {len(names)} tensors, found {count}; both ends must "
            "train the same model"
        )
        raise WireError(msg)
    total = reader.varint(len(names), "the number of merged vectors")
    width = total.bit_length()
    return _groups(reader.take((len(names) * width + 7) // 8), total, names)


# Remembered, since the replies of a round have the same table.
@lru_cache(maxsize=16)
def _groups(
    packed: bytes, total: int, names: tuple[str, ...]
) -> Sequence[tuple[str, ...]]:
    width = total.bit_length()
    flags = bits.decode_bits(packed, len(names) * width).tolist()
    merged: dict[int, list[str]] = {}
    order: list[list[str]] = []
    for i, name in enumerate(names):
        own = flags[i * width : (i + 1) * width]
        number = sum(flag << bit for bit, flag in enumerate(own))
        if number in merged:
            merged[number].append(name)
            continue
        order.append([name])
        if number:
            merged[number] = order[-1]
    if max(merged, default=0) > total:
        msg = f"model: vector {max(merged)} of {total}; the message is damaged"
        raise WireError(msg)
    return tuple(map(tuple, order))
