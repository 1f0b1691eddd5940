"""Sums of sketches: decoded once, and what is said when they cannot be."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from torch import Tensor

from ..addends import Addend, Sparse, Weighted
from ..errors import SketchError
from ..types import Payload
from .peeling import enough_cells
from .sketch_parts import Recovered, Sum, total


def joint(payloads: Sequence[Payload]) -> Payload:
    """Merge the positions and sum the cells on the finest scale."""
    first = payloads[0]
    return total(payloads).payload(first.shape, first.dtype)


def all_of(payload: Payload) -> Recovered:
    """Recover everything, or raise `SketchError`."""
    part = Sum.read(payload)
    found = part.recover()
    unpeeled, union = found.unpeeled.numel(), part.support.numel()
    if unpeeled:
        cells, enough = part.cells.numel(), enough_cells(union)
        share = union / payload.numel
        todo = (
            "choose another seed"
            if cells >= enough
            else f"{enough} suffice, set capacity={min(1.1 * share, 1.0):.3g}"
        )
        msg = (
            f"sketch: {unpeeled} of {union} entries cannot be recovered from {cells} "
            f"cells, {cells / union:.3f} for each; {todo}; peel() gives the others"
        )
        raise SketchError(msg, unpeeled=unpeeled, union=union, cells=cells)
    return found


@dataclass(frozen=True)
class Undecoded(Addend):
    """A sketch, to be summed with others of its settings before it is decoded.

    Not exact: a number of more than 24 bits is rounded in what a float32 message alone
    decodes to, but not in a sum.
    """

    exact: ClassVar[bool] = False
    tells_norm: ClassVar[bool] = False

    payload: Payload
    settings: tuple[int, int]
    factor: float = 1.0

    @property
    def num_bytes(self) -> int:
        """See `Addend`."""
        return sum(
            field.value.nbytes
            for field in self.payload.fields.values()
            if isinstance(field.value, Tensor)
        )

    def squared_norm(self) -> float:
        """Give 0: a sketch tells its norm only when it is decoded."""
        return 0.0

    def scaled(self, factor: float) -> Undecoded:
        """See `Addend`."""
        return replace(self, factor=self.factor * factor)

    @classmethod
    def merged(cls, parts: Sequence[tuple[Self, float]]) -> Sequence[Weighted]:
        """Sum what has equal weights and settings, and decode each sum once."""
        groups: dict[tuple[object, float], list[Payload]] = defaultdict(list)
        for part, weight in parts:
            groups[part.settings, part.factor * weight].append(part.payload)
        found = [(all_of(joint(g)), w) for (_, w), g in groups.items()]
        return [(Sparse(f.positions, f.numbers), weight) for f, weight in found]

    @classmethod
    def add_many(cls, parts: Sequence[tuple[Self, float]], out: Tensor) -> None:
        """See `Addend`."""
        for part, weight in cls.merged(parts):
            part.add_many([(part, weight)], out)
