"""Blocks of entries with a common scale, and the payload of levels in blocks.

A flattened tensor is cut into blocks of equal length, the last one shorter. Each
sends its scale; an entry sends an integer level, and decodes to level times scale.

Scales travel relative to one power of two, so that tensors of any magnitude work: as
float16, or as float32 where there is a single block or where the blocks differ by
more than 2^27. Blocks more than 2^95 times smaller than the largest are sent as zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import SettingError
from ..linalg import working_dtype
from ..types import Coding, Field, Kind, Payload
from .common import check_range, finish, need, shift

BLOCKS = Kind(
    8,
    "blocks",
    ("layout", "scales", "levels"),
    (Coding.VARINTS, Coding.RAW, Coding.SYMBOLS),
)

_TOP = 15  # scales lie below 2^15, so that one and a half times as much fits float16
_LEAST_HALF = 2.0**-13  # half of that still has all digits of float16
_LEAST = 2.0**-80


class Scales(NamedTuple):
    """One scale a block: ``values * 2^exponent``."""

    values: Tensor
    exponent: int

    def expanded(self, dtype: torch.dtype) -> Tensor:
        """Give the scales themselves."""
        return shift(self.values.to(torch.float64), self.exponent).to(dtype)


def check_block(who: str, block: int | None) -> None:
    """Refuse blocks of no entries."""
    if block is not None and block < 1:
        msg = f"{who}: expected a block of at least 1 entry, found {block}; try 256"
        raise SettingError(msg)


def block_length(block: int | None, numel: int) -> int:
    """Length of the longest block; None asks for a single one."""
    return max(1, numel if block is None else min(block, numel))


def scale_slack(block: int | None, numel: int) -> float:
    """Bound of the relative rounding of a scale, up or down: one unit in 11 or 24."""
    return 2.0**-23 if block_length(block, numel) >= numel else 2.0**-10


def split(flat: Tensor, block: int) -> list[Tensor]:
    """Give views of shape (blocks, length): all whole blocks, the shorter last one."""
    whole = flat.numel() // block * block
    parts = [flat[:whole].view(-1, block), flat[whole:].view(1, -1)]
    return [part for part in parts if part.numel()]


def per_block(flat: Tensor, block: int, reduce: Callable[[Tensor], Tensor]) -> Tensor:
    """Reduce each block, (blocks, length) to (blocks,); gives float64."""
    sizes = [reduce(part).to(torch.float64) for part in split(flat, block)]
    return torch.cat(sizes) if sizes else flat.new_zeros(0, dtype=torch.float64)


def largest_sizes(flat: Tensor, block: int) -> Tensor:
    """Find the largest magnitude of each block."""
    return per_block(flat, block, lambda part: part.abs().amax(1))


def with_scales(
    flat: Tensor, block: int, scales: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Give the views of `split`, each with its scales as a column."""
    begin = 0
    for part in split(flat, block):
        yield part, scales[begin : begin + len(part), None]
        begin += len(part)


def binary_unit(x: Tensor) -> tuple[Tensor, int]:
    """Give ``x 2^-e`` flat, in working precision and new memory, and the exponent e.

    The largest magnitude then lies in [1/2, 1), so that squares neither overflow nor
    vanish, and subnormal numbers have all their digits.
    """
    work = x.reshape(-1).to(working_dtype(x.dtype))
    low, high = (float(v) for v in work.aminmax()) if work.numel() else (0.0, 0.0)
    exponent = math.frexp(max(-low, high))[1]
    return shift(work, -exponent), exponent


def choose_scales(sizes: Tensor, *, up: bool) -> Scales:
    """Round scales, float64 and not negative, up or down to what travels."""
    exact = sizes.cpu().numpy()
    exponent = math.frexp(float(exact.max(initial=0.0)))[1] - _TOP
    exact = np.ldexp(exact, -exponent)
    exact = np.where(exact < _LEAST, 0.0, exact)
    wide = len(exact) == 1 or bool(((exact > 0.0) & (exact < _LEAST_HALF)).any())
    values = exact.astype(np.float32 if wide else np.float16)
    wrong = values < exact if up else values > exact
    values[wrong] = np.nextafter(values, np.inf if up else -np.inf)[wrong]
    return Scales(torch.from_numpy(values).to(sizes.device), exponent)


def in_steps(unit: Tensor, block: int, steps: Scales) -> Tensor:
    """Divide each block by its step, in place; blocks without a scale become zero."""
    divisors = steps.expanded(unit.dtype)
    for part, step in with_scales(unit, block, divisors):
        part.div_(torch.where(step > 0.0, step, math.inf))
    return unit


def check_reach(who: str, x: Tensor, tops: Tensor, steps: Scales) -> None:
    """Refuse ``x`` if an entry, rounded up to whole steps, overflows its dtype.

    ``tops`` are the largest magnitudes of the blocks, in the unit of the steps.
    """
    peak = float(tops.max()) if tops.numel() else 0.0
    if peak > 0.0:
        wide = steps.expanded(torch.float64)
        reach = wide * torch.ceil(tops / torch.where(wide > 0.0, wide, math.inf))
        check_range(who, x, float(reach.max()) / peak)


def layout_fields(block: int, scales: Scales, exponent: int) -> dict[str, Field]:
    """Fields of the scales; they count in units of ``2^exponent``."""
    layout = torch.tensor([block, scales.exponent + exponent])
    return {
        "layout": Field(Coding.VARINTS, layout),
        "scales": Field(Coding.RAW, scales.values),
    }


def level_payload(
    x: Tensor, block: int, scales: Scales, exponent: int, levels: Tensor
) -> Payload:
    """Payload of whole numbers ``levels``, flat, of any dtype."""
    fields = layout_fields(block, scales, exponent)
    fields["levels"] = Field(Coding.SYMBOLS, levels.to(torch.int64))
    return Payload(BLOCKS, tuple(x.shape), x.dtype, fields)


def read_scales(payload: Payload, like: Tensor) -> tuple[int, Tensor, int]:
    """Check the scales of a payload.

    Returns
    -------
    tuple[int, Tensor, int]
        Length of the blocks; their factors, of the dtype and on the device of
        ``like``; and the exponent of a power of two that is missing in the factors.
    """
    layout, scales = payload.tensor("layout"), payload.tensor("scales")
    need(layout.numel() == 2, payload, f"{layout.numel()} numbers in the layout")
    block, exponent = (int(v) for v in layout)
    need(1 <= block <= max(payload.numel, 1), payload, f"blocks of {block}")
    need(-1200 < exponent < 1100, payload, f"exponent {exponent}")
    need(scales.is_floating_point(), payload, f"scales of {scales.dtype}")
    count = -(-payload.numel // block)
    need(scales.numel() == count, payload, f"{scales.numel()} scales")
    need(not bool((scales < 0).any()), payload, "a negative scale")
    far = 0 if abs(exponent) < 100 else exponent  # one pass less over the entries
    factors = Scales(scales.to(like.device), exponent - far).expanded(like.dtype)
    return block, factors, far


def rescale(payload: Payload, flat: Tensor) -> Tensor:
    """Multiply each block of ``flat`` by its scale times a power of two, in place."""
    block, factors, far = read_scales(payload, flat)
    for part, factor in with_scales(flat, block, factors):
        part.mul_(factor)
    return finish(payload, shift(flat, far) if far else flat)


def decode_levels(payload: Payload) -> Tensor:
    """Multiply levels by scales."""
    levels = payload.tensor("levels")
    need(levels.numel() == payload.numel, payload, f"{levels.numel()} levels")
    return rescale(payload, levels.to(working_dtype(payload.dtype), copy=True))
