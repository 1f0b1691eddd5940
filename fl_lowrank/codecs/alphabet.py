"""Which integers share a symbol: a core of single values, buckets for the tails.

A value at distance ``t >= 1`` from the core falls into bucket
``floor(log2(t))`` of its side, as in Elias' gamma code; the lower bits of ``t``
travel as they are. So an alphabet of at most 128 buckets and a core covers every
64-bit integer, and heavy tails need no table of their own.

References
----------
P. Elias, "Universal codeword sets and representations of the integers",
IEEE Transactions on Information Theory, 1975.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import WireError
from .bits import bit_length

INT64_MIN, INT64_MAX = -(1 << 63), (1 << 63) - 1


class Located(NamedTuple):
    """Where values lie: their slot, and the bits the slot leaves open."""

    slots: NDArray[np.int64]
    widths: NDArray[np.int64]
    offsets: NDArray[np.uint64]


class Entries(NamedTuple):
    """What slots mean: ``value = base + sign * offset``, ``offset <= room``."""

    bases: NDArray[np.int64]
    signs: NDArray[np.int64]
    widths: NDArray[np.int64]
    rooms: NDArray[np.uint64]


@dataclass(frozen=True)
class Alphabet:
    """Slots from left to right: far to near buckets, the core, near to far buckets.

    Attributes
    ----------
    low : int
        Smallest value of the core.
    core_size : int
        How many values the core spans.
    buckets_below, buckets_above : int
        Buckets on each side.
    """

    low: int
    core_size: int
    buckets_below: int = 64
    buckets_above: int = 64

    @property
    def high(self) -> int:
        """Largest value of the core."""
        return self.low + self.core_size - 1

    @property
    def size(self) -> int:
        """Number of slots."""
        return self.buckets_below + self.core_size + self.buckets_above

    def locate(self, values: NDArray[np.int64]) -> Located:
        """Find the slot of each value.

        Parameters
        ----------
        values : ndarray of int64
            Values that the alphabet covers.

        Returns
        -------
        Located
            Arrays of the same length.
        """
        # Differences of 64-bit integers need 64 bits and no sign.
        unsigned = values.view(np.uint64)
        is_below, is_above = values < self.low, values > self.high
        distances = np.where(
            is_below,
            np.uint64(self.low % (1 << 64)) - unsigned,
            unsigned - np.uint64(self.high % (1 << 64)),
        )
        is_core = ~(is_below | is_above)
        distances[is_core] = 1
        buckets = bit_length(distances) - 1
        slots = np.where(
            is_below,
            self.buckets_below - 1 - buckets,
            self.buckets_below + self.core_size + buckets,
        )
        slots[is_core] = values[is_core] - self.low + self.buckets_below
        starts = np.uint64(1) << buckets.astype(np.uint64)
        return Located(slots, buckets, distances - starts)

    def entries(self, slots: NDArray[np.int64]) -> Entries:
        """Describe slots for the decoder.

        Parameters
        ----------
        slots : ndarray of int64
            In ``[0, size)``.

        Returns
        -------
        Entries
            One entry a slot.

        Raises
        ------
        WireError
            If a slot holds no 64-bit integer.
        """
        if self.low < INT64_MIN or self.high > INT64_MAX:
            raise WireError(
                f"Alphabet: expected 64-bit integers, found a core from {self.low} to "
                f"{self.high}; the data are damaged"
            )
        positions = slots - self.buckets_below
        core_end = self.core_size
        bases = self.low + np.clip(positions, 0, core_end - 1)
        signs = np.sign(positions // core_end)
        widths = np.zeros_like(slots)
        rooms = np.zeros(len(slots), dtype=np.uint64)
        for index in np.flatnonzero(signs):
            position, sign = int(positions[index]), int(signs[index])
            width = position - core_end if sign > 0 else -1 - position
            base = (self.high if sign > 0 else self.low) + sign * (1 << width)
            if not INT64_MIN <= base <= INT64_MAX:
                raise WireError(
                    f"Alphabet: expected 64-bit integers, found a bucket from {base} "
                    "on; the data are damaged"
                )
            bases[index], widths[index] = base, width
            rooms[index] = INT64_MAX - base if sign > 0 else base - INT64_MIN
        return Entries(bases, signs, widths, rooms)
