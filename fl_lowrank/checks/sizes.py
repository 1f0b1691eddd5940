"""The law of size: what a message may cost at most, method by method.

`byte_bound` is what the docstrings promise, written as formulas. Sizes themselves
are always measured: ``len(pack(payload))``.
"""

from __future__ import annotations

import math
from functools import singledispatch

import torch

from .. import wire
from ..compressors import (
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
    RandK,
    Shrunk,
    SparseDithering,
    SparseDitheringUnbiased,
    Then,
    TopK,
)
from ..compressors.common import keep_count
from ..compressors.lowrank import LowRank
from ..types import Compressor, Exact, Shape
from .examples import examples, fresh, require, rng_for

#: Magic, version, checksum, dtype, shape, kind, lengths of fields, coder tables.
FRAME_BYTES = 64.0


def index_set_bytes(k: int, d: int) -> float:
    """``log2 C(d, k)`` in bytes: no code for k of d positions is shorter on average."""
    nats = math.lgamma(d + 1) - math.lgamma(k + 1) - math.lgamma(d - k + 1)
    return nats / math.log(2.0) / 8.0


def sparse_dithering_bytes(d: int, nu: float) -> float:
    """Worst case of Albasyoni et al. (2020): ``30 + log2 d + c(nu) d`` bits.

    ``c = 3/2 + b + log2(1 + 2^-(3/2 + b/2))`` with ``b = 1 / (2 sqrt nu)``; 3.35 at
    nu = 0.1.
    """
    b = 0.5 / math.sqrt(nu)
    per_entry = 1.5 + b + math.log2(1.0 + 2.0 ** -(1.5 + b / 2.0))
    return (30.0 + math.log2(max(d, 1)) + per_entry * d) / 8.0


def sparse_dithering_unbiased_bytes(d: int, omega: float) -> float:
    """Mean of Albasyoni et al.: ``30 + log2 d + (log2 3 + 1 / (2 sqrt omega)) d``."""
    per_entry = math.log2(3.0) + 0.5 / math.sqrt(omega)
    return (30.0 + math.log2(max(d, 1)) + per_entry * d) / 8.0


@singledispatch
def byte_bound(compressor: Compressor, shape: Shape, dtype: torch.dtype) -> float:
    """Largest size of a message, for tensors that need not be typical.

    Without a formula of its own, a compressor must not be larger than the tensor.
    Add one by ``@byte_bound.register``.
    """
    del compressor
    return math.prod(shape) * dtype.itemsize + FRAME_BYTES


@byte_bound.register
def _(compressor: F16, shape: Shape, dtype: torch.dtype) -> float:
    del compressor, dtype
    return 2.0 * math.prod(shape) + FRAME_BYTES


@byte_bound.register(Natural)
@byte_bound.register(NaturalStochastic)
def _(compressor: Compressor, shape: Shape, dtype: torch.dtype) -> float:
    """One sign and one of all exponents of the dtype, subnormal ones and zero too."""
    del compressor
    info = torch.finfo(dtype)
    exponents = math.log2(info.max) - math.log2(info.tiny) - math.log2(info.eps) + 2
    return math.prod(shape) * (1.0 + math.log2(exponents)) / 8.0 + 4.0 * FRAME_BYTES


@byte_bound.register
def _(compressor: SparseDithering, shape: Shape, dtype: torch.dtype) -> float:
    del dtype
    return sparse_dithering_bytes(math.prod(shape), compressor.nu) + FRAME_BYTES


@byte_bound.register
def _(compressor: SparseDitheringUnbiased, shape: Shape, dtype: torch.dtype) -> float:
    del dtype
    d = math.prod(shape)
    return sparse_dithering_unbiased_bytes(d, compressor.omega) + FRAME_BYTES


@byte_bound.register
def _(compressor: Ecsq, shape: Shape, dtype: torch.dtype) -> float:
    """Sparse dithering has levels of the step ``2 sqrt nu``, and so has this."""
    del dtype
    nu = compressor.nmse
    if compressor.step is not None:
        nu = compressor.step**2 / 4.0
    assert nu is not None
    return sparse_dithering_bytes(math.prod(shape), nu) + FRAME_BYTES


@byte_bound.register(Dither)
@byte_bound.register(DitherUnbiased)
def _(compressor: Dither | DitherUnbiased, shape: Shape, dtype: torch.dtype) -> float:
    """Levels are neighbours of x in steps, with the odds of unbiased rounding."""
    del dtype
    omega = 3.0 * compressor.variance
    return sparse_dithering_unbiased_bytes(math.prod(shape), omega) + 3 * FRAME_BYTES


@byte_bound.register(Identity)
@byte_bound.register(TopK)
@byte_bound.register(RandK)
@byte_bound.register(LowRank)
def _(compressor: Compressor, shape: Shape, dtype: torch.dtype) -> float:
    """Positions, and every number handed on in the tensor's own dtype."""
    count = sum(math.prod(part) for part in compressor.inner_shapes(shape))
    return _positions(compressor, shape) + count * dtype.itemsize + FRAME_BYTES


@byte_bound.register
def _(compressor: Then, shape: Shape, dtype: torch.dtype) -> float:
    parts = compressor.outer.inner_shapes(shape)
    inner = sum(byte_bound(compressor.inner, part, dtype) for part in parts)
    return _positions(compressor.outer, shape) + inner + FRAME_BYTES


@byte_bound.register
def _(compressor: Shrunk, shape: Shape, dtype: torch.dtype) -> float:
    return byte_bound(compressor.inner, shape, dtype) + FRAME_BYTES


@byte_bound.register
def _(compressor: BySize, shape: Shape, dtype: torch.dtype) -> float:
    return byte_bound(compressor.choose(shape), shape, dtype)


@byte_bound.register
def _(compressor: Induced, shape: Shape, dtype: torch.dtype) -> float:
    parts = (compressor.biased, compressor.unbiased)
    return sum(byte_bound(part, shape, dtype) for part in parts) + FRAME_BYTES


@byte_bound.register
def _(compressor: Budget, shape: Shape, dtype: torch.dtype) -> float:
    del shape, dtype
    return compressor.bytes


@byte_bound.register
def _(compressor: Flat, shape: Shape, dtype: torch.dtype) -> float:
    return byte_bound(compressor.inner, (math.prod(shape),), dtype) + FRAME_BYTES


def _positions(compressor: Compressor, shape: Shape) -> float:
    """Bytes that say which entries are sent: within 1% and 16 of an ideal code."""
    if not isinstance(compressor, TopK):
        return 16.0
    d = math.prod(shape)
    k = keep_count(compressor.fraction, compressor.k, d)
    return 1.01 * index_set_bytes(min(k, d // 2), d) + 16.0


def check_bytes_below_stated_bound(
    compressor: Compressor,
    shape: Shape,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> None:
    """Messages are not larger than `byte_bound`, and most not larger than the tensor.

    On all example tensors. The bound of `SparseDitheringUnbiased` is one for the
    mean; its messages differ by far less than the frame that is allowed.
    """
    bound = byte_bound(compressor, shape, dtype)
    for name, x in examples(shape, dtype, device).items():
        payload, _ = compressor.encode(x, fresh(compressor, x), rng_for(name))
        size = len(wire.pack(payload))
        require(size <= bound, compressor, x, f"{name}: {size} bytes, {bound:.0f} said")
        lossless = isinstance(compressor.guarantee(shape), Exact)
        dense = x.numel() * dtype.itemsize + 3.0 * FRAME_BYTES
        ok = lossless or size <= dense or bound > dense
        require(ok, compressor, x, f"{name}: {size} bytes, the tensor has {dense:.0f}")
