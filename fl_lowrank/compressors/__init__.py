"""The compressors, one family a file, and the table of their names in texts."""

from __future__ import annotations

from ..types import Compressor
from .atomo import Atomo
from .budget import Budget
from .by_shape import BySize, Flat
from .dense import F16, Identity
from .dithering import SparseDithering, SparseDitheringUnbiased
from .eden import Eden, EdenContractive
from .importance_operators import MdGreedy, MdGreedyWeighted, MdWeightedGreedy
from .importance_sampling import MdStochastic
from .induced import Induced
from .lowrank import Svd
from .natural import Natural, NaturalStochastic
from .natural_dithering import NaturalDithering
from .powersgd import PowerSgd
from .projected import LowRankUnbiased
from .qsgd import Qsgd, TernGrad
from .rotated import Rotated
from .rsvd import Rsvd
from .scalar import Ecsq
from .sign import Sign
from .sketch import Peeled, Sketch, peel
from .sparse import RandK, Threshold, TopK
from .spherical import Spherical, SphericalUnbiased
from .subtractive import Dither, DitherUnbiased
from .tensor_train import TensorTrain
from .tucker import Tucker
from .uniform import Uniform, UniformStochastic
from .wrappers import Shrunk, Then

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
        LowRankUnbiased,
        Atomo,
        Tucker,
        TensorTrain,
        SparseDithering,
        SparseDitheringUnbiased,
        Sketch,
        MdStochastic,
        MdGreedy,
        MdGreedyWeighted,
        MdWeightedGreedy,
        Spherical,
        SphericalUnbiased,
        Eden,
        EdenContractive,
        Rotated,
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
    "Atomo",
    "Budget",
    "BySize",
    "Dither",
    "DitherUnbiased",
    "Ecsq",
    "Eden",
    "EdenContractive",
    "Flat",
    "Identity",
    "Induced",
    "LowRankUnbiased",
    "MdGreedy",
    "MdGreedyWeighted",
    "MdStochastic",
    "MdWeightedGreedy",
    "Natural",
    "NaturalDithering",
    "NaturalStochastic",
    "Peeled",
    "PowerSgd",
    "Qsgd",
    "RandK",
    "Rotated",
    "Rsvd",
    "Shrunk",
    "Sign",
    "Sketch",
    "SparseDithering",
    "SparseDitheringUnbiased",
    "Spherical",
    "SphericalUnbiased",
    "Svd",
    "TensorTrain",
    "TernGrad",
    "Then",
    "Threshold",
    "TopK",
    "Tucker",
    "Uniform",
    "UniformStochastic",
    "peel",
]
