"""The law of size: what a message may cost at most, method by method.

`byte_bound` is what the docstrings promise, written as formulas. Sizes themselves
are always measured: ``len(pack(payload))``.
"""

from __future__ import annotations

import math
from functools import singledispatch

import torch

from .. import bounds, wire
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
    LowRankUnbiased,
    Natural,
    NaturalDithering,
    NaturalStochastic,
    Qsgd,
    RandK,
    Rotated,
    Shrunk,
    Sign,
    Sketch,
    SparseDithering,
    SparseDitheringUnbiased,
    Spherical,
    SphericalUnbiased,
    TensorTrain,
    TernGrad,
    Then,
    TopK,
    Tucker,
    Uniform,
    UniformStochastic,
)
from ..compressors.common import keep_count
from ..compressors.eden import RotatedQuantizer
from ..compressors.eden_payload import split_rate
from ..compressors.importance_operators import ByImportance
from ..compressors.lowrank import LowRank
from ..linalg import working_dtype
from ..types import Compressor, Exact, Shape
from .examples import examples, fresh, require, rng_for

#: Magic, version, checksum, dtype, shape, kind, lengths of fields, coder tables.
FRAME_BYTES = 64.0


def index_set_bytes(k: int, d: int) -> float:
    """``log2 C(d, k)`` in bytes: no code for k of d positions is shorter on average."""
    return bounds.index_set_bits(k, d) / 8.0


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


def _levels_bytes(symbols: float, block: int | None, shape: Shape) -> float:
    """Bytes of so many different symbols and of float32 scales, at most."""
    d = math.prod(shape)
    scales = 1 if block is None else -(-d // block)
    return d * math.log2(symbols) / 8.0 + 4.0 * scales + FRAME_BYTES


@byte_bound.register
def _(compressor: Sign, shape: Shape, dtype: torch.dtype) -> float:
    del dtype
    return _levels_bytes(2, compressor.block, shape)


@byte_bound.register(Uniform)
@byte_bound.register(UniformStochastic)
def _(
    compressor: Uniform | UniformStochastic, shape: Shape, dtype: torch.dtype
) -> float:
    del dtype
    return _levels_bytes(2.0**compressor.bits, compressor.block, shape)


@byte_bound.register
def _(compressor: TernGrad, shape: Shape, dtype: torch.dtype) -> float:
    """Five trits in a byte are 1.6 bits for each; entropy coding is not worse."""
    del dtype
    return _levels_bytes(2.0**1.6, compressor.block, shape)


@byte_bound.register
def _(compressor: Qsgd, shape: Shape, dtype: torch.dtype) -> float:
    """Whole bits for a level of either sign or zero, as if they were packed."""
    del dtype
    bits = (2 * compressor.levels).bit_length()
    return _levels_bytes(2.0**bits, compressor.block, shape)


@byte_bound.register
def _(compressor: NaturalDithering, shape: Shape, dtype: torch.dtype) -> float:
    """Whole bits for a level of either sign or zero, as if they were packed."""
    del dtype
    bits = (2 * compressor.levels).bit_length()
    return _levels_bytes(2.0**bits, None, shape)


@byte_bound.register
def _(compressor: SparseDithering, shape: Shape, dtype: torch.dtype) -> float:
    del dtype
    bits = bounds.sparse_dithering_bits(math.prod(shape), compressor.nu)
    return bits / 8.0 + FRAME_BYTES


@byte_bound.register
def _(compressor: SparseDitheringUnbiased, shape: Shape, dtype: torch.dtype) -> float:
    del dtype
    d = math.prod(shape)
    bits = bounds.sparse_dithering_unbiased_bits(d, compressor.omega)
    return bits / 8.0 + FRAME_BYTES


@byte_bound.register(Spherical)
@byte_bound.register(SphericalUnbiased)
def _(
    compressor: Spherical | SphericalUnbiased, shape: Shape, dtype: torch.dtype
) -> float:
    """Each block as the paper counts it, with 8 bits for its scale.

    A mean, and few blocks may wait longer: hence the wider frame.
    """
    del dtype
    blocks = math.ceil(math.prod(shape) / compressor.block)
    bits = bounds.spherical_bits(compressor.block, compressor.alpha, norm_bits=8.0)
    return blocks * bits / 8.0 + 2.0 * FRAME_BYTES


@byte_bound.register
def _(compressor: Ecsq, shape: Shape, dtype: torch.dtype) -> float:
    """Sparse dithering has levels of the step ``2 sqrt nu``, and so has this."""
    del dtype
    nu = compressor.nmse
    if compressor.step is not None:
        nu = compressor.step**2 / 4.0
    assert nu is not None
    bits = bounds.sparse_dithering_bits(math.prod(shape), nu)
    return bits / 8.0 + FRAME_BYTES


@byte_bound.register(Dither)
@byte_bound.register(DitherUnbiased)
def _(compressor: Dither | DitherUnbiased, shape: Shape, dtype: torch.dtype) -> float:
    """Levels are neighbours of x in steps, with the odds of unbiased rounding."""
    del dtype
    omega = 3.0 * compressor.variance
    bits = bounds.sparse_dithering_unbiased_bits(math.prod(shape), omega)
    return bits / 8.0 + 3.0 * FRAME_BYTES


@byte_bound.register(Identity)
@byte_bound.register(TopK)
@byte_bound.register(ByImportance)
@byte_bound.register(RandK)
@byte_bound.register(LowRank)
@byte_bound.register(LowRankUnbiased)
@byte_bound.register(Tucker)
@byte_bound.register(TensorTrain)
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
def _(compressor: Sketch, shape: Shape, dtype: torch.dtype) -> float:
    """Cells of entries that meet up to sixteen others have five bits more."""
    del dtype
    d = math.prod(shape)
    cells = compressor.num_cells(d) * (compressor.bits + 5.0) / 8.0
    k = keep_count(compressor.fraction, compressor.k, d)
    positions = 1.01 * index_set_bytes(min(k, d // 2), d) + 16.0
    return positions + cells + FRAME_BYTES


def _(compressor: RotatedQuantizer, shape: Shape, dtype: torch.dtype) -> float:
    """``bits`` for an entry; a table where a fixed length would be no whole number."""
    del dtype
    d = math.prod(shape)
    levels, fine = split_rate(compressor.bits, d)
    table = levels + 1.0 if fine and levels > 1 else 0.0
    return 1.01 * compressor.bits / 8.0 * d + FRAME_BYTES + table


@byte_bound.register
def _(compressor: Rotated, shape: Shape, dtype: torch.dtype) -> float:
    """Count what the inner one sees: a vector in the working precision."""
    inner = byte_bound(compressor.inner, (math.prod(shape),), working_dtype(dtype))
    return inner + FRAME_BYTES


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
    if not isinstance(compressor, TopK | ByImportance):
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
