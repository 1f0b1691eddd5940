"""One bit an entry: its sign, times the mean magnitude of its block.

References
----------
S. P. Karimireddy, Q. Rebjock, S. U. Stich, M. Jaggi, "Error Feedback Fixes SignSGD and
other Gradient Compression Schemes", ICML 2019, arXiv 1901.09847 (the scaled sign).
A. T. Suresh, F. X. Yu, S. Kumar, H. B. McMahan, "Distributed Mean Estimation with
Limited Communication", ICML 2017, arXiv 1611.00429 (one random bit an entry).

Differences: the sign of an entry is its sign bit, also for zero, so that one bit is
enough; the bound allows for that. Blocks may have scales of their own. Scales are
rounded down, so that no message is longer than its input.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..linalg import working_dtype
from ..rng import Rng
from ..types import (
    Coding,
    Compressor,
    Contractive,
    Guarantee,
    Kind,
    PackedBits,
    Payload,
    Shape,
    State,
    all_finite,
    check_dtype,
    check_input,
)
from .blocks import (
    Scales,
    binary_unit,
    block_length,
    check_block,
    check_reach,
    choose_scales,
    in_steps,
    largest_sizes,
    layout_fields,
    per_block,
    read_scales,
    scale_slack,
    split,
    with_scales,
)
from .common import finish, need, shift

SIGNS = Kind(
    9,
    "signs",
    ("layout", "scales", "negative"),
    (Coding.VARINTS, Coding.RAW, Coding.BITS),
)

_BYTES = np.arange(256, dtype=np.uint8)[:, None]
#: For each byte the factors of its bits, lowest first: -1 where the bit is set.
_TABLE = 1.0 - 2.0 * torch.from_numpy(
    np.unpackbits(_BYTES, axis=1, bitorder="little")
).to(torch.float32)

_CHUNK = 1 << 18  # entries handled at a time: scratch memory stays in the cache


def _payload(
    x: Tensor, block: int, scales: Scales, exponent: int, negative: Tensor
) -> Payload:
    fields = layout_fields(block, scales, exponent)
    packed = torch.from_numpy(np.packbits(negative.cpu().numpy(), bitorder="little"))
    fields["negative"] = PackedBits(Coding.BITS, packed, negative.numel())
    return Payload(SIGNS, tuple(x.shape), x.dtype, fields)


def mean_signs(who: str, x: Tensor, block: int | None) -> Payload:
    """Signs, with the mean magnitude of each block."""
    flat = check_dtype(who, x).reshape(-1)
    work, exponent = flat.to(working_dtype(x.dtype)), 0
    length = block_length(block, flat.numel())
    negative = torch.empty(flat.shape, dtype=torch.bool, device=flat.device)
    means = _mean_magnitudes(work, negative, length)
    if not all_finite(means):  # a sum of huge numbers, if not worse
        check_input(who, x)
        exponent = 64
        means = _mean_magnitudes(shift(work, -exponent), negative, length)
    return _payload(x, length, choose_scales(means, up=False), exponent, negative)


def _mean_magnitudes(work: Tensor, negative: Tensor, length: int) -> Tensor:
    """Find the mean magnitude of each block, and write where the sign bit is set."""
    if work.device.type != "cpu":
        torch.signbit(work, out=negative)
        return per_block(work, length, lambda part: part.abs().mean(1))
    parts = zip(split(work, length), split(negative, length), strict=True)
    means = [_row_means(w.numpy(), n.numpy()) for w, n in parts]
    return torch.from_numpy(np.concatenate([np.zeros(0), *means]))


def _row_means(work: NDArray[Any], negative: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Do so for rows, piece by piece: both from one reading of the memory.

    NumPy takes a third of torch's time for signs and magnitudes, and torch a third of
    NumPy's for the sums. The magnitudes of all pieces share memory, which stays in the
    cache.
    """
    count, width = work.shape
    height = max(1, _CHUNK // width)
    scratch = np.empty(min(_CHUNK, work.size), work.dtype)
    sums = np.zeros(count)
    for top in range(0, count, height):
        for left in range(0, width, _CHUNK):
            piece = slice(top, top + height), slice(left, left + _CHUNK)
            entries = work[piece]
            np.signbit(entries, out=negative[piece])
            sizes = scratch[: entries.size].reshape(entries.shape)
            np.abs(entries, out=sizes)
            sums[piece[0]] += torch.from_numpy(sizes).sum(1).numpy()
    means: NDArray[np.float64] = sums / width
    return means


def mean_signs_delta(block: int | None, shape: Shape) -> float:
    """``1/m`` for blocks of m, less the rounding of their scales.

    ``|c sign(x) - x|^2 = |x|^2 - 2 c |x|_1 + c^2 m`` also where entries are zero.
    With ``c = (1 - e) |x|_1 / m`` that is ``|x|^2 - (1 - e^2) |x|_1^2 / m``, and
    ``|x|_1 >= |x|``.
    """
    d = math.prod(shape)
    return (1.0 - scale_slack(block, d) ** 2) / block_length(block, d)


def random_signs(who: str, x: Tensor, block: int | None, rng: Rng) -> Payload:
    """Give plus or minus the largest magnitude of the block, with the mean kept."""
    unit, exponent = binary_unit(check_input(who, x))
    length = block_length(block, unit.numel())
    tops = largest_sizes(unit, length)
    scales = choose_scales(tops, up=True)
    check_reach(who, x, tops, scales)
    draws = rng.uniform(unit.numel(), unit.device)
    # Below -1 + 2 draws with the probability (1 - t) / 2, t the entry in [-1, 1].
    negative = in_steps(unit, length, scales) < draws.mul_(2.0).sub_(1.0)
    return _payload(x, length, scales, exponent, negative)


def random_signs_zeta(block: int | None, shape: Shape) -> float:
    """``m`` for blocks of m, attained by a single entry; and rounding of scales."""
    d = math.prod(shape)
    return block_length(block, d) * (1.0 + scale_slack(block, d)) ** 2


@dataclass(frozen=True)
class Sign(Compressor):
    """Send the signs, and the mean magnitude ``|x|_1 / d``.

    Guarantee: ``Contractive(1 / d)``, attained by a single entry; on an input x the
    error is ``1 - |x|_1^2 / (d |x|^2)``, for Gaussian data ``1 - 2 / pi = 0.36``. With
    blocks of m the same with m for d, less 2^-20 of it for scales in float16. Zeros
    become plus the mean magnitude (negative ones minus), except in blocks of zeros.
    Wire cost: one bit an entry, and 32 for the scale (16 for each block).

    Parameters
    ----------
    block : int, optional
        Entries that share a scale; all of them by default.
    """

    name: ClassVar[str] = "sign"
    norm_nonincreasing: ClassVar[bool] = True

    block: int | None = None

    def __post_init__(self) -> None:
        check_block(self.name, self.block)

    def guarantee(self, shape: Shape) -> Guarantee:
        """Karimireddy et al. (2019), lemma 8 with the density at its least."""
        return Contractive(mean_signs_delta(self.block, shape))

    def encode(self, x: Tensor, state: State, rng: Rng) -> tuple[Payload, State]:
        """Pack the signs."""
        del rng
        return mean_signs(self.name, x, self.block), state

    @staticmethod
    def decode(payload: Payload) -> Tensor:
        """Give every scale its sign."""
        packed, count = payload.packed("negative")
        need(count == payload.numel, payload, f"{count} signs")
        device = payload.tensor("scales").device
        table = _TABLE.to(device, working_dtype(payload.dtype))
        block, factors, far = read_scales(payload, table)
        if len(factors) == 1:
            signs = _look_up(packed, table * factors)[:count]
        else:
            signs = _look_up(packed, table)[:count]
            for part, factor in with_scales(signs, block, factors):
                part.mul_(factor)
        reach = float(factors.max()) if len(factors) else 0.0
        if far == 0 and reach <= torch.finfo(payload.dtype).max:
            # Nothing to saturate: one pass less over the entries.
            return signs.to(payload.dtype).reshape(payload.shape)
        return finish(payload, shift(signs, far))


def _look_up(packed: Tensor, table: Tensor) -> Tensor:
    """Give each bit its value, in new memory: a row of the table for each byte."""
    if table.device.type != "cpu":
        return table[packed.to(table.device).long()].view(-1)
    out = torch.empty((packed.numel(), 8), dtype=table.dtype)
    # Bytes are never out of range; without "clip" NumPy writes to memory of its own.
    np.take(table.numpy(), packed.numpy(), axis=0, out=out.numpy(), mode="clip")
    return out.view(-1)
