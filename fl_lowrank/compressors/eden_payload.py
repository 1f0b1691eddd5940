"""How rotated entries become symbols and bytes: what the EDEN compressors share.

Most of d entries have M levels, and some that a seed draws M + 1. Entries with two
levels travel as signs, one bit each; those with one level, which is 0, not at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..linalg import working_dtype
from ..lloyd_max import normal_levels
from ..rng import Rng
from ..types import Coding, Field, Kind, Payload
from .common import need

EDEN = Kind(
    12,
    "eden",
    ("setup", "scales", "signs", "coarse", "fine"),
    (Coding.VARINTS, Coding.RAW, Coding.BITS, Coding.SYMBOLS, Coding.SYMBOLS),
)

#: Both ends compute the levels, in a time that grows with the cube of their number, and
#: the sender says the number.
MAX_BITS = 8


def split_rate(bits: float, d: int) -> tuple[int, int]:
    """Give M and the number of the d entries that have M + 1 levels."""
    levels = math.floor(2.0**bits)
    low, high = math.log2(levels), math.log2(levels + 1)
    fine = math.floor((bits - low) / (high - low) * d)
    return levels, max(fine, 1) if levels == 1 and d > 0 else fine


def places_of(
    shared: Rng, levels: int, fine: int, d: int, device: torch.device
) -> dict[int, Tensor | slice]:
    """Say for each number of levels above one which of the d entries have so many."""
    if fine in (0, d):
        return {levels + (fine > 0): slice(None)} if d else {}
    mask = torch.zeros(d, dtype=torch.bool, device=device)
    mask[shared.child("fine").subset(fine, d, device)] = True
    return {levels: ~mask, levels + 1: mask} if levels > 1 else {levels + 1: mask}


def nearest_levels(u: Tensor, levels: int) -> Tensor:
    """Give the numbers of the nearest levels; booleans for two levels."""
    if levels == 2:
        return u >= 0.0
    table = normal_levels(levels).to(u.device, u.dtype)
    return torch.bucketize(u, (table[1:] + table[:-1]) / 2.0)


def level_values(symbols: Tensor, levels: int, dtype: torch.dtype) -> Tensor:
    """Look the levels up."""
    table = normal_levels(levels)
    if levels == 2:
        level = float(table[1])
        return symbols.to(dtype).mul_(2.0 * level).sub_(level)
    return table.to(symbols.device, dtype)[symbols]


def field_of(count: int, levels: int) -> str:
    """Give the field that holds the symbols of entries with ``count`` levels."""
    if count == 2:
        return "signs"
    return "coarse" if count == levels else "fine"


def make_payload(
    x: Tensor,
    seed: int,
    levels: int,
    symbols: Mapping[int, Tensor],
    scales: Sequence[float],
) -> Payload:
    """Put symbols and scales, by their number of levels, into the fields."""
    dtype = working_dtype(x.dtype)
    info = torch.finfo(dtype)
    if any(0.0 < s < info.tiny or s > info.max for s in scales):
        dtype = torch.float64  # float32 has too few digits there, or no number
    empty = torch.zeros(0, dtype=torch.int64, device=x.device)
    sent = {"signs": empty.to(torch.bool), "coarse": empty, "fine": empty}
    sent |= {field_of(count, levels): found for count, found in symbols.items()}
    fields = {
        "setup": Field(Coding.VARINTS, torch.tensor([seed, levels])),
        "scales": Field(Coding.RAW, torch.tensor(scales, dtype=dtype)),
        "signs": Field(Coding.BITS, sent["signs"]),
        "coarse": Field(Coding.SYMBOLS, sent["coarse"]),
        "fine": Field(Coding.SYMBOLS, sent["fine"]),
    }
    return Payload(EDEN, tuple(x.shape), x.dtype, fields)


class Setup(NamedTuple):
    """What a payload says besides its symbols: ``fine`` entries have a level more."""

    seed: int
    levels: int
    fine: int
    scales: list[float]


def read_setup(payload: Payload) -> Setup:
    """Check that the fields fit each other.

    Raises
    ------
    WireError
        If they do not.
    """
    setup, scales = payload.tensor("setup"), payload.tensor("scales")
    need(setup.numel() == 2 and bool((setup >= 0).all()), payload, "no seed and levels")
    seed, levels = setup.tolist()
    need(1 <= levels <= 1 << MAX_BITS, payload, f"{levels} levels")
    counts = {name: payload.tensor(name).numel() for name in EDEN.fields[2:]}
    fine = counts.pop(field_of(levels + 1, levels))
    coarse = counts.pop(field_of(levels, levels)) if levels > 1 else 0
    whole = coarse + fine == payload.numel or (levels == 1 and fine > 0)
    fits = whole and fine <= payload.numel and not any(counts.values())
    need(fits, payload, f"{coarse} and {fine} symbols of {levels} levels")
    for count, name in ((levels, "coarse"), (levels + 1, "fine")):
        symbols = payload.tensor(name)
        outside = bool(((symbols < 0) | (symbols >= count)).any())
        need(not outside, payload, f"symbols beyond {count} levels")
    parts = (coarse > 0) + (fine > 0)
    fits = scales.numel() == parts and scales.is_floating_point()
    need(fits and bool((scales >= 0.0).all()), payload, f"not {parts} scales >= 0")
    return Setup(seed, levels, fine, scales.tolist())
