"""The table of a symbol stream: an alphabet and rounded counts, in few bytes.

Counts are rounded to a short mantissa; 4 bits cost a stream less than 0.01 % of its
size, small streams take fewer. Absent slots are coded as run lengths, so the core
may have holes, and counts as Rice-coded differences, since neighbours are alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import WireError
from .alphabet import Alphabet
from .bits import bit_length
from .bitstream import BitReader, BitWriter
from .varint import read_varint, unzigzag, write_varint, zigzag

MAX_CORE_SIZE = 4096
MAX_MANTISSA_BITS = 7
_MAX_RICE_WIDTH = 15
_MAX_COUNT_BITS = 40  # 4,224 counts then sum to less than 2**53, exact in float64
_MAX_TABLE_BYTES = 1 << 16


@dataclass(frozen=True)
class Frequencies:
    """Relative frequencies of the slots of an alphabet.

    Attributes
    ----------
    alphabet : Alphabet
        Its first and its last slot are present.
    slots : ndarray of int64
        The slots that occur, ascending; at least two.
    levels : ndarray of int64
        Their rounded counts as codes, see :func:`level_of_counts`.
    mantissa_bits : int
        Bits behind the leading one of a count, in ``[0, 7]``.
    """

    alphabet: Alphabet
    slots: NDArray[np.int64]
    levels: NDArray[np.int64]
    mantissa_bits: int

    @property
    def weights(self) -> NDArray[np.float64]:
        """Weight of each present slot: a positive integer, held in float64."""
        return counts_of_levels(self.levels, self.mantissa_bits).astype(np.float64)

    def to_bytes(self) -> bytes:
        """Write the table, its length first.

        Returns
        -------
        bytes
            Typically 8 to 180 bytes.
        """
        alphabet, bits = self.alphabet, BitWriter()
        bits.gamma(alphabet.core_size)
        bits.gamma(alphabet.buckets_below + 1)
        bits.gamma(alphabet.buckets_above + 1)
        bits.fixed(self.mantissa_bits, 3)
        for run in _runs(self.slots):
            bits.gamma(int(run))
        steps = _steps(self.levels)
        width = int(rice_bits(steps).argmin())
        bits.fixed(width, 4)
        bits.gamma(int(self.levels[0]))
        for step in steps:
            bits.rice(int(step), width)
        table = bits.to_bytes()
        return write_varint(zigzag(alphabet.low)) + write_varint(len(table)) + table

    @staticmethod
    def read(data: bytes, pos: int) -> tuple[Frequencies, int]:
        """Invert :meth:`to_bytes`, strictly.

        Parameters
        ----------
        data : bytes
            Bytes that hold a table.
        pos : int
            Where it starts.

        Returns
        -------
        tuple[Frequencies, int]
            The table, and the position behind it.

        Raises
        ------
        WireError
            If the bytes hold no valid table.
        """
        low, pos = read_varint(data, pos)
        table_size, pos = read_varint(data, pos)
        if table_size > min(len(data) - pos, _MAX_TABLE_BYTES):
            raise WireError(
                f"Frequencies: expected a table of at most {_MAX_TABLE_BYTES} bytes, "
                f"found {table_size} of {len(data) - pos} left; the data are damaged"
            )
        bits = BitReader(data[pos : pos + table_size])
        core_size, below, above = bits.gamma(), bits.gamma() - 1, bits.gamma() - 1
        if core_size > MAX_CORE_SIZE or max(below, above) > 64:
            raise WireError(
                f"Frequencies: expected a core of at most {MAX_CORE_SIZE} values and "
                f"64 buckets a side, found {core_size}, {below} and {above}; the data "
                "are damaged"
            )
        alphabet = Alphabet(unzigzag(low), core_size, below, above)
        mantissa_bits = bits.fixed(3)
        slots = _read_slots(bits, alphabet.size)
        width = bits.fixed(4)
        levels = [bits.gamma()]
        for _ in range(len(slots) - 1):
            levels.append(levels[-1] + unzigzag(bits.rice(width)))
        bits.finish()
        end = (_MAX_COUNT_BITS + 1 - mantissa_bits) << mantissa_bits
        if min(levels) < 1 or max(levels) >= end:
            raise WireError(
                f"Frequencies: expected codes of counts in [1, {end}), found "
                f"{min(levels)} to {max(levels)}; the data are damaged"
            )
        frequencies = Frequencies(
            alphabet, slots, np.array(levels, dtype=np.int64), mantissa_bits
        )
        return frequencies, pos + table_size


def level_of_counts(
    counts: NDArray[np.int64], mantissa_bits: int | NDArray[np.int64]
) -> NDArray[np.int64]:
    """Round positive counts to codes that ascend with the count.

    Parameters
    ----------
    counts : ndarray of int64
        Positive.
    mantissa_bits : int or ndarray of int64
        Counts up to ``2 * 2**mantissa_bits`` are kept exactly, larger ones to so many
        bits behind the leading one.

    Returns
    -------
    ndarray of int64
        Codes from 1 on.
    """
    shifts = np.maximum(bit_length(counts.view(np.uint64)) - 1 - mantissa_bits, 0)
    levels: NDArray[np.int64] = (shifts << mantissa_bits) + (counts >> shifts)
    return levels


def counts_of_levels(
    levels: NDArray[np.int64], mantissa_bits: int | NDArray[np.int64]
) -> NDArray[np.int64]:
    """Give the middle of the counts that share a code.

    Parameters
    ----------
    levels : ndarray of int64
        Codes from :func:`level_of_counts`.
    mantissa_bits : int or ndarray of int64
        As there.

    Returns
    -------
    ndarray of int64
        Positive counts.
    """
    shifts = np.maximum((levels >> mantissa_bits) - 1, 0)
    mantissas = levels - (shifts << mantissa_bits)
    counts: NDArray[np.int64] = (mantissas << shifts) + ((1 << shifts) >> 1)
    return counts


def table_bits(
    slots: NDArray[np.int64], levels: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Estimate the bits of :meth:`Frequencies.to_bytes`.

    Parameters
    ----------
    slots : ndarray of int64
        The slots that occur, ascending.
    levels : ndarray of int64
        Their codes, a row for each precision.

    Returns
    -------
    ndarray of float64
        Bits for each row, without the few that depend on the alphabet only.
    """
    runs = _runs(slots).astype(np.float64)
    run_bits = (2 * np.frexp(runs)[1] - 1).sum()
    bits: NDArray[np.float64] = run_bits + rice_bits(_steps(levels)).min(
        axis=-1, initial=1e9
    )
    return bits


def rice_bits(steps: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count the bits of Rice codes for each width of the low part.

    Parameters
    ----------
    steps : ndarray of int64
        Non-negative integers; of several rows, each is counted.

    Returns
    -------
    ndarray of int64
        Bits for widths 0 to 15, on the last axis.
    """
    widths = np.arange(_MAX_RICE_WIDTH + 1)
    high_parts: NDArray[np.int64] = (steps[..., None] >> widths).sum(axis=-2)
    bits: NDArray[np.int64] = high_parts + (widths + 1) * steps.shape[-1]
    return bits


def _runs(slots: NDArray[np.int64]) -> NDArray[np.int64]:
    """Lengths of runs, present and absent in turn; both ends are present."""
    gaps = np.diff(slots)
    breaks = np.flatnonzero(gaps > 1)
    present = np.diff(np.concatenate([[-1], breaks, [len(slots) - 1]]))
    runs = np.empty(2 * len(breaks) + 1, dtype=np.int64)
    runs[0::2], runs[1::2] = present, gaps[breaks] - 1
    return runs


def _read_slots(bits: BitReader, size: int) -> NDArray[np.int64]:
    present = np.zeros(size, dtype=np.bool_)
    pos, is_present = 0, True
    while pos < size or is_present:
        run = bits.gamma()
        if run > size - pos:
            raise WireError(
                f"Frequencies: expected runs that end with a present slot at {size}, "
                f"found one to {pos + run}; the data are damaged"
            )
        present[pos : pos + run] = is_present
        pos, is_present = pos + run, not is_present
    slots = np.flatnonzero(present)
    if len(slots) < 2:
        raise WireError(
            "Frequencies: expected at least two slots, found one; the data are damaged"
        )
    return slots


def _steps(levels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Differences of neighbouring codes, zigzag: 0, -1, 1, -2, ... to 0, 1, 2, 3."""
    steps = np.diff(levels)
    return (steps << 1) ^ (steps >> 63)
