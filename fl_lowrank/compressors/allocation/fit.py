"""From predictions to a message that fits: a few real encodings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Generic, TypeVar

from ...errors import InputError
from ...types import Compressor
from .families import Choice
from .plan import Part, plan
from .selection import select

#: Members of a part (positions of tensors), and what compresses them together.
Share = tuple[tuple[int, ...], Compressor]
Message = TypeVar("Message")

_TRIALS = 5
_PLANS = 3
_NEAR = 0.002  # of the budget may stay unspent, or
_FEW_BYTES = 4
_HALVINGS = 14  # of the logarithm of the scale
_LEAST_SCALE, _LARGEST_SCALE = 1.0 / 16.0, 16.0


@dataclass(frozen=True)
class Fitted(Generic[Message]):
    """What was chosen, the message it made, and the size of that."""

    shares: list[Share]
    message: Message
    size: int


def fit(
    parts: Sequence[Part],
    limit: int,
    encode: Callable[[list[Share]], tuple[Message, int]],
) -> Fitted[Message]:
    """Find settings whose message has at most ``limit`` bytes, and hardly fewer.

    Parameters
    ----------
    parts : sequence of Part
        What is known of the tensors.
    limit : int
        Bytes of the whole message.
    encode : function
        Makes the message of some shares, and tells its size.

    Raises
    ------
    InputError
        If not even one entry of all tensors fits.
    """
    best: Fitted[Message] | None = None
    target = 8.0 * limit
    for _ in range(_PLANS if parts else 0):
        best = _scale(plan(parts, target), limit, encode)
        if best is not None:
            return best
        target *= 0.7
    shares = _least(parts)
    message, size = encode(shares)
    if size > limit:
        msg = (
            f"budget: expected bytes of at least {size}, the least that a message of "
            f"these tensors takes, found {limit}; allow more"
        )
        raise InputError(msg)
    return Fitted(shares, message, size)


def _least(parts: Sequence[Part]) -> list[Share]:
    """One entry of all tensors of a dtype."""
    shares = []
    for dtype in dict.fromkeys(part.dtype for part in parts):
        whole = reduce(Part.joined, (part for part in parts if part.dtype == dtype))
        shares.append((whole.members, select(1)))
    return shares


def _scale(
    choices: Sequence[tuple[Part, Choice]],
    limit: int,
    encode: Callable[[list[Share]], tuple[Message, int]],
) -> Fitted[Message] | None:
    """Make all settings coarser or finer together until the message just fits."""
    best: Fitted[Message] | None = None
    low, high, scale = _LEAST_SCALE, _LARGEST_SCALE, 1.0
    for _ in range(_TRIALS):
        shares = [(part.members, c.compressor(scale)) for part, c in choices]
        message, size = encode(shares)
        if size <= limit:
            high = scale
            if best is None or size > best.size:
                best = Fitted(shares, message, size)
            if size >= limit - max(_FEW_BYTES, _NEAR * limit):
                break
        else:
            low = scale
        # What the predictions miss is about the same at a scale nearby.
        missed = 8.0 * size / max(_bits(choices, scale), 1.0)
        aim = 8.0 * (1.0 - _NEAR / 4.0) * limit / missed
        scale = _scale_for(choices, aim, low, high)
        if not low < scale < high:
            break
    return best


def _bits(choices: Sequence[tuple[Part, Choice]], scale: float) -> float:
    return sum(choice.bits_at(scale) for _, choice in choices)


def _scale_for(
    choices: Sequence[tuple[Part, Choice]], bits: float, low: float, high: float
) -> float:
    """Bisect for the scale at which the predictions give so many bits."""
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high)
        if _bits(choices, middle) > bits:
            low = middle
        else:
            high = middle
    return math.sqrt(low * high)
