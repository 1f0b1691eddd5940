"""Choosing the alphabet of a stream: the core and the precision that cost least.

The choice is the encoder's alone; a decoder reads the table and needs none of this.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .alphabet import INT64_MAX, INT64_MIN, Alphabet, Located
from .frequencies import (
    MAX_CORE_SIZE,
    MAX_MANTISSA_BITS,
    Frequencies,
    counts_of_levels,
    level_of_counts,
    table_bits,
)

_SAMPLE_SIZE = 4096
_DEFAULT_MANTISSA_BITS = 2
_PATIENCE = 4  # cores tried in vain before the search ends


class Histogram(NamedTuple):
    """Counts of the values in a window, and the values outside it.

    ``offsets`` are ``value - start`` as unsigned integers, so a value is inside the
    window if its offset is below ``len(counts)``.
    """

    start: int
    counts: NDArray[np.int64]
    offsets: NDArray[np.uint64]
    outside: NDArray[np.int64]


class Plan(NamedTuple):
    """A table, where it puts the outside values, and the bytes of the stream."""

    frequencies: Frequencies
    outside: Located
    size_bytes: float


def histogram(values: NDArray[np.int64]) -> Histogram:
    """Count the values in a window of at most 4096 around the median.

    Parameters
    ----------
    values : ndarray of int64
        At least one value.

    Returns
    -------
    Histogram
        The window spans all values if it can.
    """
    start, stop = int(values.min()), int(values.max()) + 1
    if stop - start > MAX_CORE_SIZE:
        sample = values[:: -(-len(values) // _SAMPLE_SIZE)]
        # A value that occurs, so that the window is never empty.
        median = int(np.partition(sample, len(sample) // 2)[len(sample) // 2])
        half = MAX_CORE_SIZE // 2
        start = max(INT64_MIN, min(median - half, INT64_MAX + 1 - MAX_CORE_SIZE))
        stop = start + MAX_CORE_SIZE
    size = stop - start
    offsets = values.view(np.uint64) - np.uint64(start % (1 << 64))
    is_outside = offsets >= size
    outside = values[is_outside]
    inside = offsets[~is_outside] if len(outside) else offsets
    counts = np.bincount(inside.view(np.int64), minlength=size)
    return Histogram(start, counts, offsets, outside)


def plan(found: Histogram) -> Plan:
    """Choose a core and a precision by their cost on the histogram.

    Parameters
    ----------
    found : Histogram
        Of a stream with at least two distinct values.

    Returns
    -------
    Plan
        The size is estimated where values lie outside the window.
    """
    kinds = np.flatnonzero(found.counts)
    step = -(-len(found.outside) // _SAMPLE_SIZE) or 1
    sample = found.outside[::step]
    support = np.concatenate([kinds + found.start, sample])
    scale = len(found.outside) / max(len(sample), 1)
    masses = np.concatenate([found.counts[kinds], np.full(len(sample), scale)])
    best_bits, best_core, failures = np.inf, (0, 0), 0
    for core in _cores(found.counts):
        alphabet = Alphabet(found.start + core[0], core[1] - core[0] + 1)
        located = alphabet.locate(support)
        slots, counts = _tally(alphabet, located, masses)
        bits = float(masses @ located.widths)
        bits += _coded_bits(slots, counts, _DEFAULT_MANTISSA_BITS)
        failures = failures + 1 if bits >= best_bits else 0
        if bits < best_bits:
            best_bits, best_core = bits, core
        elif failures == _PATIENCE:
            break
    return _finish(found, best_core)


def _finish(found: Histogram, core: tuple[int, int]) -> Plan:
    """Count exactly, choose the precision and trim the alphabet."""
    alphabet = Alphabet(found.start + core[0], core[1] - core[0] + 1)
    kinds = np.flatnonzero(found.counts)
    support = np.concatenate([kinds + found.start, found.outside])
    masses = np.ones(len(support))
    masses[: len(kinds)] = found.counts[kinds]
    located = alphabet.locate(support)
    slots, counts = _tally(alphabet, located, masses)
    costs = [
        _coded_bits(slots, counts, mantissa_bits)
        for mantissa_bits in range(MAX_MANTISSA_BITS + 1)
    ]
    mantissa_bits = int(np.argmin(costs))
    trimmed = Alphabet(
        alphabet.low,
        alphabet.core_size,
        max(0, alphabet.buckets_below - int(slots[0])),
        max(0, int(slots[-1]) + 1 - alphabet.buckets_below - alphabet.core_size),
    )
    trim = alphabet.buckets_below - trimmed.buckets_below
    levels = level_of_counts(counts, mantissa_bits)
    frequencies = Frequencies(trimmed, slots - trim, levels, mantissa_bits)
    outside = Located(
        located.slots[len(kinds) :] - trim,
        located.widths[len(kinds) :],
        located.offsets[len(kinds) :],
    )
    bits = costs[mantissa_bits] + float(masses @ located.widths)
    # Around the table and the coder's words: mode, core and lengths.
    return Plan(frequencies, outside, bits / 8 + 10)


def _cores(counts: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Spans of the values seen at least so often, for doubling thresholds."""
    cores: list[tuple[int, int]] = []
    threshold, most = 1, int(counts.max())
    while threshold <= most:
        frequent = np.flatnonzero(counts >= threshold)
        core = int(frequent[0]), int(frequent[-1])
        if core not in cores:
            cores.append(core)
        threshold *= 2
    mode = int(counts.argmax())
    return cores if (mode, mode) in cores else [*cores, (mode, mode)]


def _tally(
    alphabet: Alphabet, located: Located, masses: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Give the slots that occur, and how often each does."""
    sums = np.bincount(located.slots, weights=masses, minlength=alphabet.size)
    slots = np.flatnonzero(sums)
    return slots, np.maximum(np.rint(sums[slots]), 1).astype(np.int64)


def _coded_bits(
    slots: NDArray[np.int64], counts: NDArray[np.int64], mantissa_bits: int
) -> float:
    """Bits of the table and of the slots coded with it."""
    levels = level_of_counts(counts, mantissa_bits)
    weights = counts_of_levels(levels, mantissa_bits).astype(np.float64)
    coded = counts.sum() * np.log2(weights.sum()) - float(counts @ np.log2(weights))
    return float(coded) + table_bits(slots, levels)
