"""The compressors, one family a file, and the table of their names in texts."""

from __future__ import annotations

from ..types import Compressor
from .dense import F16, Identity
from .dithering import SparseDithering, SparseDitheringUnbiased
from .lowrank import PowerSgd, Rsvd, Svd
from .natural import Natural, NaturalStochastic
from .natural_dithering import NaturalDithering
from .qsgd import Qsgd, TernGrad
from .sign import Sign
from .sparse import RandK, TopK
from .uniform import Uniform, UniformStochastic
from .wrappers import BySize, Shrunk, Then

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
        NaturalDithering,
        Uniform,
        UniformStochastic,
        Qsgd,
        TernGrad,
        Sign,
        Svd,
        Rsvd,
        PowerSgd,
        SparseDithering,
        SparseDitheringUnbiased,
        Shrunk,
        BySize,
    )
}

__all__ = [
    "COMPRESSORS",
    "F16",
    "BySize",
    "Identity",
    "Natural",
    "NaturalDithering",
    "NaturalStochastic",
    "PowerSgd",
    "Qsgd",
    "RandK",
    "Rsvd",
    "Shrunk",
    "Sign",
    "SparseDithering",
    "SparseDitheringUnbiased",
    "Svd",
    "TernGrad",
    "Then",
    "TopK",
    "Uniform",
    "UniformStochastic",
]
