"""The compressors, one family a file, and the table of their names in texts."""

from __future__ import annotations

from ..types import Compressor
from .budget import Budget
from .dense import F16, Identity
from .dithering import SparseDithering, SparseDitheringUnbiased
from .lowrank import PowerSgd, Rsvd, Svd
from .natural import Natural, NaturalStochastic
from .scalar import Ecsq
from .sparse import RandK, Threshold, TopK
from .subtractive import Dither, DitherUnbiased
from .wrappers import BySize, Flat, Induced, Shrunk, Then

#: Every compressor that a text may name; ``>>`` is written between two of them.
COMPRESSORS: dict[str, type[Compressor]] = {
    cls.name: cls
    for cls in (
        Identity,
        F16,
        TopK,
        RandK,
        Natural,
        NaturalStochastic,
        Svd,
        Rsvd,
        PowerSgd,
        SparseDithering,
        SparseDitheringUnbiased,
        Ecsq,
        Dither,
        DitherUnbiased,
        Shrunk,
        BySize,
        Threshold,
        Induced,
        Flat,
        Budget,
    )
}

__all__ = [
    "COMPRESSORS",
    "F16",
    "Budget",
    "BySize",
    "Dither",
    "DitherUnbiased",
    "Ecsq",
    "Flat",
    "Identity",
    "Induced",
    "Natural",
    "NaturalStochastic",
    "PowerSgd",
    "RandK",
    "Rsvd",
    "Shrunk",
    "SparseDithering",
    "SparseDitheringUnbiased",
    "Svd",
    "Then",
    "Threshold",
    "TopK",
]
