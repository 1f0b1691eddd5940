"""A model as one row: what neighbours mix of it.

Parameters come first, then the statistics of normalisation layers (and whatever else
travels exactly); integers are not mixed, each vertex keeps its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ..grouping import Layout
from ..updates import split_layout
from ..wire import TensorLayout
from .choco import rows_as_tensors


class Rows:
    """Models of one layout, to rows and back.

    Parameters
    ----------
    layout : Layout
        All arrays of the model, in order.
    patterns : iterable of str
        Names of further arrays that travel exactly.

    Attributes
    ----------
    parameters, statistics : Layout
        What a row is made of; parameters as they are sent, float16 as float32.
    others : Layout
        What is not mixed.
    dtype : torch.dtype
        Of rows: float64 if some array is, else float32.
    """

    def __init__(self, layout: Layout, patterns: Iterable[str] = ()) -> None:
        self.layout = dict(layout)
        self.parameters, exact = split_layout(layout, patterns)
        self.statistics = {n: t for n, t in exact.items() if t.dtype.is_floating_point}
        self.others = {n: t for n, t in exact.items() if n not in self.statistics}
        mixed = (*self.parameters.values(), *self.statistics.values())
        double = any(t.dtype == torch.float64 for t in mixed)
        self.dtype = torch.float64 if double else torch.float32

    @property
    def mixed(self) -> Layout:
        """What a row is made of, in its order."""
        return {**self.parameters, **self.statistics}

    @property
    def whole(self) -> Layout:
        """All arrays, in the dtypes in which a public copy travels."""
        return {**self.mixed, **self.others}

    @property
    def flows(self) -> Layout:
        """What a flow is made of: a row in float64."""
        return {n: TensorLayout(t.shape, torch.float64) for n, t in self.mixed.items()}

    @property
    def num_parameters(self) -> int:
        """Entries of a row that are parameters."""
        return sum(t.numel for t in self.parameters.values())

    @property
    def size(self) -> int:
        """Entries of a row."""
        return sum(t.numel for t in self.mixed.values())

    def join(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Make a row, shape (size,)."""
        parts = [tensors[name].reshape(-1).to(self.dtype) for name in self.mixed]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=self.dtype)

    def cut(self, row: Tensor) -> dict[str, Tensor]:
        """Give a row's tensors, as views in its dtype."""
        return rows_as_tensors(row, self.mixed)
