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

from . import allocate, envelope, errors, feedback, rng
from .compressors import (
    F16,
    Budget,
    BySize,
    Dither,
    DitherUnbiased,
    Ecsq,
    Flat,
    Identity,
    Induced,
    Natural,
    NaturalStochastic,
    PowerSgd,
    RandK,
    Rsvd,
    Shrunk,
    SparseDithering,
    SparseDitheringUnbiased,
    Svd,
    Then,
    Threshold,
    TopK,
)
from .decoders import accumulate, decode, unpack
from .model import ModelCodec
from .spec import parse, parse_rules
from .types import (
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
    "Budget",
    "BySize",
    "Compressor",
    "Contractive",
    "Dither",
    "DitherUnbiased",
    "Ecsq",
    "Exact",
    "Flat",
    "Guarantee",
    "Identity",
    "Induced",
    "ModelCodec",
    "Natural",
    "NaturalStochastic",
    "NoGuarantee",
    "Payload",
    "PowerSgd",
    "RandK",
    "Rsvd",
    "Shrunk",
    "SparseDithering",
    "SparseDitheringUnbiased",
    "Svd",
    "TensorLayout",
    "Then",
    "Threshold",
    "TopK",
    "Unbiased",
    "accumulate",
    "allocate",
    "decode",
    "envelope",
    "errors",
    "feedback",
    "pack",
    "parse",
    "parse_rules",
    "rng",
    "unpack",
]
