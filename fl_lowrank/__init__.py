"""Compressed model updates as real bytes, with error feedback.

>>> import torch
>>> import fl_lowrank as fll
>>> c = fll.parse("topk(fraction=0.1) >> natural()")
>>> x = torch.arange(-50.0, 50.0)
>>> payload, state = c.encode(x, c.init(x.shape), fll.rng.stream(0, "example"))
>>> data = fll.pack(payload)
>>> y = fll.decode(fll.unpack(data))
>>> len(data) < 400, y.shape == x.shape
(True, True)
"""

from __future__ import annotations

from . import allocate, bounds, envelope, errors, feedback, importance, rng, schedules
from .compressors import (
    F16,
    Atomo,
    Budget,
    BySize,
    Dither,
    DitherUnbiased,
    Ecsq,
    Eden,
    EdenContractive,
    Flat,
    Identity,
    Induced,
    LowRankUnbiased,
    MdGreedy,
    MdGreedyWeighted,
    MdStochastic,
    MdWeightedGreedy,
    Natural,
    NaturalDithering,
    NaturalStochastic,
    Peeled,
    PowerSgd,
    Qsgd,
    RandK,
    Rotated,
    Rsvd,
    Shrunk,
    Sign,
    Sketch,
    SparseDithering,
    SparseDitheringUnbiased,
    Spherical,
    SphericalUnbiased,
    Svd,
    TensorTrain,
    TernGrad,
    Then,
    Threshold,
    TopK,
    Tucker,
    Uniform,
    UniformStochastic,
    peel,
)
from .decoders import accumulate, add, decode, unpack
from .model import ModelCodec
from .scheduled import Scheduled, parse_scheduled
from .spec import parse, parse_rules
from .types import (
    Additive,
    Compressor,
    Contractive,
    Exact,
    Guarantee,
    NoGuarantee,
    Payload,
    Unbiased,
)
from .wire import TensorLayout, pack

__version__ = "0.1.0"

__all__ = [
    "F16",
    "Additive",
    "Atomo",
    "Budget",
    "BySize",
    "Compressor",
    "Contractive",
    "Dither",
    "DitherUnbiased",
    "Ecsq",
    "Eden",
    "EdenContractive",
    "Exact",
    "Flat",
    "Guarantee",
    "Identity",
    "Induced",
    "LowRankUnbiased",
    "MdGreedy",
    "MdGreedyWeighted",
    "MdStochastic",
    "MdWeightedGreedy",
    "ModelCodec",
    "Natural",
    "NaturalDithering",
    "NaturalStochastic",
    "NoGuarantee",
    "Payload",
    "Peeled",
    "PowerSgd",
    "Qsgd",
    "RandK",
    "Rotated",
    "Rsvd",
    "Scheduled",
    "Shrunk",
    "Sign",
    "Sketch",
    "SparseDithering",
    "SparseDitheringUnbiased",
    "Spherical",
    "SphericalUnbiased",
    "Svd",
    "TensorLayout",
    "TensorTrain",
    "TernGrad",
    "Then",
    "Threshold",
    "TopK",
    "Tucker",
    "Unbiased",
    "Uniform",
    "UniformStochastic",
    "accumulate",
    "add",
    "allocate",
    "bounds",
    "decode",
    "envelope",
    "errors",
    "feedback",
    "importance",
    "pack",
    "parse",
    "parse_rules",
    "parse_scheduled",
    "peel",
    "rng",
    "schedules",
    "unpack",
]
