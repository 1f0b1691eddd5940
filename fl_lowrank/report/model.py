"""Bytes per tensor of a whole model's update, before any training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import decoders, wire
from ..model import Layout, ModelCodec, layout_of, read_payloads
from ..rng import Rng, stream
from ..types import Compressor
from ..updates import split_layout
from ..wire import TensorLayout
from .measuring import nmse
from .text import table

#: How the arrays travel that are no parameters; see `fl_lowrank.updates`.
_EXACT = "*: identity()"


@dataclass(frozen=True)
class TensorRow:
    """Tensors that are encoded together, mostly one."""

    names: tuple[str, ...]
    compressor: str
    numel: int
    dense_bytes: int
    size_bytes: int
    nmse: float


@dataclass(frozen=True)
class ModelReport:
    """What one reply of a client costs.

    Attributes
    ----------
    rows : tuple of TensorRow
        Compressed tensors in the order of the model, then the exact ones.
    total_bytes : int
        Of all messages: the rows, and some bytes that frame them. The envelope of a
        reply (about 100 bytes) and what Flower adds are not in it.
    dense_bytes : int
        Of the model as it is.
    """

    rows: tuple[TensorRow, ...]
    total_bytes: int
    dense_bytes: int

    def __str__(self) -> str:
        head = ("tensor", "entries", "compressor", "dense", "bytes", "ratio", "NMSE")
        framing = self.total_bytes - sum(row.size_bytes for row in self.rows)
        numel = sum(row.numel for row in self.rows)
        total = _sizes(self.dense_bytes, self.total_bytes)
        lines = [
            *map(_line, self.rows),
            ("framing", "", "", "", f"{framing:,}", "", ""),
            ("total", f"{numel:,}", "", *total, ""),
        ]
        return table(head, lines, left=(0, 2))


def _line(row: TensorRow) -> tuple[str, ...]:
    more = f" and {len(row.names) - 1} more" if len(row.names) > 1 else ""
    sizes = _sizes(row.dense_bytes, row.size_bytes)
    name, error = row.names[0] + more, f"{row.nmse:.3g}"
    return name, f"{row.numel:,}", row.compressor, *sizes, error


def _sizes(dense: int, size: int) -> tuple[str, str, str]:
    return f"{dense:,}", f"{size:,}", f"{dense / max(size, 1):.1f}"


def model_report(
    model: Mapping[str, Tensor] | Layout,
    spec: str | Compressor,
    exact: tuple[str, ...] = (),
    seed: int = 0,
) -> ModelReport:
    """Encode an update once, by the same rules as a client, and measure it.

    Parameters
    ----------
    model : Mapping[str, Tensor] or Mapping[str, TensorLayout]
        An update; or shapes and dtypes alone, for which Gaussian numbers stand in.
        Real updates are less even, and often smaller.
    spec : str or Compressor
        A compressor or rules, as for `ModelCodec` and the ``uplink`` of a strategy.
    exact : tuple of str
        Patterns of further arrays that travel exactly, besides integers and the
        running statistics of normalisation layers.
    seed : int
        Of the draws.

    Raises
    ------
    SpecError, SettingError
        If the text is not understood, or no rule fits a name.
    InputError
        If a tensor cannot be compressed; the message names it.
    """
    tensors = {name: _tensor(name, value, seed) for name, value in model.items()}
    layout = layout_of(tensors)
    lossy, plain = split_layout(layout, exact)
    update = {name: tensors[name].to(t.dtype) for name, t in lossy.items()}
    rest = {name: tensors[name] for name in plain}
    rng = stream(seed, "report")
    sent, rows = _encoded(update, ModelCodec(spec), rng)
    framed, exact_rows = _encoded(rest, ModelCodec(_EXACT), rng)
    dense = sum(t.numel * t.dtype.itemsize for t in layout.values())
    return ModelReport((*rows, *exact_rows), sent + framed, dense)


def _encoded(
    update: Mapping[str, Tensor], codec: ModelCodec, rng: Rng
) -> tuple[int, list[TensorRow]]:
    """Size of the message, and a row for each of its parts."""
    layout = layout_of(update)
    data, _ = codec.encode(update, {}, rng)
    rows = []
    parts = zip(codec.groups(layout), read_payloads(data, layout), strict=True)
    for group, (names, payload) in parts:
        x = torch.cat([update[name].reshape(-1) for name in names])
        dense = sum(update[name].nbytes for name in names)
        size = len(wire.pack_body(payload))
        off = nmse(x, decoders.decode(payload).reshape(-1))
        rows.append(
            TensorRow(names, str(group.compressor), x.numel(), dense, size, off)
        )
    return len(data), rows


def _tensor(name: str, value: Tensor | TensorLayout, seed: int) -> Tensor:
    """Give the tensor itself, or one that stands in for it."""
    if isinstance(value, Tensor):
        return value
    if not value.dtype.is_floating_point:
        return torch.zeros(value.shape, dtype=value.dtype)
    return stream(seed, "stand-in", name).normal(*value.shape).to(value.dtype)
