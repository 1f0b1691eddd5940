"""Checks that the decoders share."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import InputError, SettingError, WireError
from ..linalg import largest_magnitude
from ..rng import Rng
from ..types import Payload, all_finite


def keep_count(fraction: float | None, k: int | None, numel: int) -> int:
    """Entries kept of ``numel``: ``k``, or the fraction rounded up; at least one."""
    if k is None:
        assert fraction is not None
        k = math.ceil(fraction * numel)
    return min(max(k, 1), numel)


def check_keep(who: str, fraction: float | None, k: int | None) -> None:
    """Refuse anything but one of ``fraction`` in (0, 1] and ``k >= 1``."""
    if (fraction is None) == (k is None):
        msg = (
            f"{who}: expected either fraction or k, found fraction={fraction} and "
            f"k={k}; write {who}(fraction=0.01) or {who}(k=100)"
        )
        raise SettingError(msg)
    if fraction is not None and not 0.0 < fraction <= 1.0:
        msg = f"{who}: expected fraction in (0, 1], found {fraction}"
        raise SettingError(msg)
    if k is not None and k < 1:
        msg = f"{who}: expected k of at least 1, found {k}"
        raise SettingError(msg)


def need(condition: bool, payload: Payload, what: str) -> None:
    """Raise `WireError` unless the payload is consistent."""
    if not condition:
        raise fault(payload, what)


def fault(payload: Payload, what: str) -> WireError:
    """Give the error; for where even to write ``what`` takes time that counts."""
    msg = (
        f"{payload.kind.name}: {what}, for a tensor of shape {payload.shape}; the "
        "message is damaged or its sender is at fault"
    )
    return WireError(msg)


def finish(payload: Payload, flat: Tensor) -> Tensor:
    """Give decoded values the payload's dtype and shape; too large ones saturate.

    The input was finite, so the nearest finite number is never farther from it.
    """
    return settled(payload, flat).reshape(payload.shape)


def settled(payload: Payload, values: Tensor) -> Tensor:
    """Do the same with any part of the values, in their own shape."""
    out = values.to(payload.dtype)
    if payload.dtype.is_floating_point and not all_finite(out):
        need(not bool(out.isnan().any()), payload, "decodes to NaN")
        largest = torch.finfo(payload.dtype).max
        out = out.clamp(-largest, largest)
    return out


def check_range(who: str, x: Tensor, factor: float) -> None:
    """Refuse entries that would overflow their dtype when multiplied."""
    peak = float(largest_magnitude(x.detach())) if x.numel() else 0.0
    check_peak(who, peak, x.dtype, factor)


def check_peak(who: str, peak: float, dtype: torch.dtype, factor: float) -> None:
    """Refuse a largest magnitude that would overflow the dtype when multiplied."""
    if peak * factor > torch.finfo(dtype).max:
        msg = (
            f"{who}: entries up to {peak:.3g} times {factor:.3g} do not fit "
            f"{dtype}; scale the tensor down or use a wider dtype"
        )
        raise InputError(msg)


def narrowed(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Give the values in ``dtype``, or as they are where one would become infinite."""
    narrow = values.to(dtype)
    return narrow if all_finite(narrow) else values


def draw_seed(rng: Rng, purpose: str) -> int:
    """Draw a seed to send: of 63 bits, so that int64 holds it."""
    return rng.child(purpose).key >> 1


def read_seed(payload: Payload) -> int:
    """Give the number in the field ``seed``."""
    seed = payload.tensor("seed")
    need(seed.numel() == 1 and int(seed) >= 0, payload, "no seed")
    return int(seed)


def shift(x: Tensor, exponent: int) -> Tensor:
    """Multiply by ``2^exponent``; in two steps, since the factor may be too large."""
    if abs(exponent) < 100:
        return x * 2.0**exponent
    half = exponent // 2
    return x * 2.0**half * 2.0 ** (exponent - half)
