"""From predictions to a message that fits: a few real encodings."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Generic, TypeVar

from ...errors import InputError
from ...types import Compressor
from .families import Choice
from .plan import Part, plan
from .selection import select, selected

#: Members of a part (positions of tensors), and what compresses them together.
Share = tuple[tuple[int, ...], Compressor]
Message = TypeVar("Message")

_TRIALS = 6
_PLANS = 3
_NEAR = 5e-4  # of the budget may stay unspent
_HALVINGS = 14  # of the logarithm of the scale
_LEAST_SCALE, _LARGEST_SCALE = 1.0 / 16.0, 16.0
#: Real errors are compared where the predicted ones are not in this ratio.
_CLOSE = 0.9
_ENTRIES = 5000  # of so many sent, one more is of no account


@dataclass(frozen=True)
class Fitted(Generic[Message]):
    """What was chosen, the message it made, and the size of that."""

    shares: list[Share]
    message: Message
    size: int


class Sender(ABC, Generic[Message]):
    """Makes real messages of shares, and looks at them."""

    @abstractmethod
    def encode(self, shares: list[Share]) -> tuple[Message, int]:
        """Give the message and its size."""

    @abstractmethod
    def error(self, message: Message, exponent: int) -> float:
        """Give the squared error, in units of ``2^exponent``."""

    def fitted(self, shares: list[Share]) -> Fitted[Message]:
        """Encode."""
        return Fitted(shares, *self.encode(shares))


def fit(parts: Sequence[Part], limit: int, sender: Sender[Message]) -> Fitted[Message]:
    """Find settings whose message has at most ``limit`` bytes, and hardly fewer.

    Parameters
    ----------
    parts : sequence of Part
        What is known of the tensors.
    limit : int
        Bytes of the whole message.
    sender : Sender
        Makes the messages.

    Raises
    ------
    InputError
        If not even one entry of all tensors fits.
    """
    best, choices = _planned(parts, limit, sender)
    if best is None:
        best = sender.fitted(_least(parts))
        if best.size > limit:
            msg = (
                f"budget: {limit} bytes are too few for a message of these tensors; "
                f"allow {best.size}, which is enough for one entry"
            )
            raise InputError(msg)
        return best
    flat = _flat(parts, choices, best, limit, sender)
    if flat is None or flat is best:
        return best
    unit = parts[0].exponent
    errors = [sender.error(found.message, unit) for found in (flat, best)]
    return flat if errors[0] < errors[1] else best


def _least(parts: Sequence[Part]) -> list[Share]:
    """One entry of all tensors of a dtype."""
    shares = []
    for dtype in dict.fromkeys(part.dtype for part in parts):
        whole = reduce(Part.joined, (part for part in parts if part.dtype == dtype))
        shares.append((whole.members, select(1)))
    return shares


Choices = Sequence[tuple[Part, Choice]]


def _planned(
    parts: Sequence[Part], limit: int, sender: Sender[Message]
) -> tuple[Fitted[Message] | None, Choices]:
    """Fit a plan; if even its coarsest form is too large, one for fewer bytes."""
    target = 8.0 * limit
    for _ in range(_PLANS if parts else 0):
        choices = plan(parts, target)
        best = _scaled(choices, limit, sender)
        if best is not None:
            return best, choices
        target *= 0.7
    return None, []


def _flat(
    parts: Sequence[Part],
    choices: Choices,
    planned: Fitted[Message],
    limit: int,
    sender: Sender[Message],
) -> Fitted[Message] | None:
    """Send the largest entries of all tensors as one vector, where that may be better.

    Fitted to the last entry: with few bytes there is little else to gain.
    """
    if len({part.dtype for part in parts}) > 1:
        return None
    whole = replace(reduce(Part.joined, parts), method="topk", factors=None)
    flat = plan([whole], _bits(choices, 1.0))
    if sum(c.error for _, c in choices) < _CLOSE * sum(c.error for _, c in flat):
        return None
    best: Fitted[Message] | None = planned
    if len(planned.shares) > 1 or selected(planned.shares[0][1]) is None:
        best = _scaled(flat, limit, sender)
    if best is None:
        return None
    low = selected(best.shares[0][1])
    assert low is not None
    high = min(low + 4 * (limit - best.size) + 2, whole.magnitudes.numel + 1)
    while high - low > 1 + low // _ENTRIES:
        middle = (low + high) // 2
        tried = sender.fitted([(whole.members, select(middle))])
        if tried.size <= limit:
            low, best = middle, tried
        else:
            high = middle
    return best


def _scaled(
    choices: Choices, limit: int, sender: Sender[Message]
) -> Fitted[Message] | None:
    """Make all settings coarser or finer together until the message just fits."""
    best: Fitted[Message] | None = None
    low, high, scale = _LEAST_SCALE, _LARGEST_SCALE, 1.0
    for _ in range(_TRIALS):
        tried = sender.fitted(
            [(part.members, c.compressor(scale)) for part, c in choices]
        )
        if tried.size <= limit:
            high = scale
            if best is None or tried.size > best.size:
                best = tried
            if tried.size >= limit - max(1.0, _NEAR * limit):
                break
        else:
            low = scale
        # What the predictions miss is about the same at a scale nearby.
        missed = 8.0 * tried.size / max(_bits(choices, scale), 1.0)
        aim = 8.0 * (1.0 - _NEAR / 2.0) * limit / missed
        scale = _scale_for(choices, aim, low, high)
        if not low < scale < high:
            break
    return best


def _bits(choices: Choices, scale: float) -> float:
    return sum(choice.bits_at(scale) for _, choice in choices)


def _scale_for(choices: Choices, bits: float, low: float, high: float) -> float:
    """Bisect for the scale at which the predictions give so many bits."""
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high)
        if _bits(choices, middle) > bits:
            low = middle
        else:
            high = middle
    return math.sqrt(low * high)
