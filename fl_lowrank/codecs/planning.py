"""Choosing the alphabet of a stream: the core and the precision that cost least.

The choice is the encoder's alone; a decoder reads the table and needs none of this.
"""

from __future__ import annotations

from typing import Any, NamedTuple

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
_DEFAULT_MANTISSA_BITS = np.array([2])
_PATIENCE = 4  # cores tried in vain before the search ends
_MANY = 1 << 16  # bytes from which on counting them in pairs is faster
_NONE = np.empty(0, dtype=np.int64)


class Histogram(NamedTuple):
    """Counts of the values in a window, and the values outside it.

    ``offsets`` are ``value - start`` as unsigned integers, bytes if the window spans
    all values and they fit. A value is inside the window if its offset is below
    ``len(counts)``; ``outside`` are the values that are not, in order.
    """

    start: int
    counts: NDArray[np.int64]
    offsets: NDArray[np.uint64] | NDArray[np.uint8]
    outside: NDArray[np.int64]


class Plan(NamedTuple):
    """A table, where it puts the outside values, and the bytes of the stream."""

    frequencies: Frequencies
    outside: Located
    size_bytes: float


def histogram(values: NDArray[np.integer[Any]], low: int, high: int) -> Histogram:
    """Count the values in a window of at most 4096 around the median.

    Parameters
    ----------
    values : ndarray of int64, int32, int16, int8 or uint8
        At least one value.
    low, high : int
        The smallest and the largest of them.

    Returns
    -------
    Histogram
        The window spans all values if it can.
    """
    size = high - low + 1
    if size <= 1 << 8:
        # The difference is right modulo 2**8, whatever the difference overflows.
        places = values.astype(np.uint8) - np.uint8(low % (1 << 8))
        return Histogram(low, _count_bytes(places, size), places, _NONE)
    wide = values.astype(np.int64, copy=False)
    start, size = (low, size) if size <= MAX_CORE_SIZE else _window(wide)
    offsets = wide.view(np.uint64) - np.uint64(start % (1 << 64))
    if start == low and high - low < size:
        return Histogram(start, _count(offsets, size), offsets, _NONE)
    is_inside = offsets < size
    return Histogram(start, _count(offsets[is_inside], size), offsets, wide[~is_inside])


def _window(values: NDArray[np.int64]) -> tuple[int, int]:
    """Place a window of full size; gives its start and its size."""
    sample = values[:: -(-len(values) // _SAMPLE_SIZE)]
    # A value that occurs, so that the window is never empty.
    median = int(np.partition(sample, len(sample) // 2)[len(sample) // 2])
    half = MAX_CORE_SIZE // 2
    start = max(INT64_MIN, min(median - half, INT64_MAX + 1 - MAX_CORE_SIZE))
    return start, MAX_CORE_SIZE


def _count(offsets: NDArray[np.uint64], size: int) -> NDArray[np.int64]:
    return np.bincount(offsets.view(np.int64), minlength=size)


def _count_bytes(places: NDArray[np.uint8], size: int) -> NDArray[np.int64]:
    """Count bytes two at a time: half the steps, and fewer wait for each other."""
    even = len(places) & ~1
    if even < _MANY:
        return np.bincount(places, minlength=size)
    pairs = np.bincount(places[:even].view(np.uint16), minlength=1 << 16)
    table = pairs.reshape(1 << 8, 1 << 8)
    counts: NDArray[np.int64] = table.sum(axis=0) + table.sum(axis=1)
    counts[places[even:]] += 1
    return counts[:size]


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
        bits += float(_coded_bits(slots, counts, _DEFAULT_MANTISSA_BITS)[0])
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
    costs = _coded_bits(slots, counts, np.arange(MAX_MANTISSA_BITS + 1))
    mantissa_bits = int(costs.argmin())
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
    bits = float(costs[mantissa_bits]) + float(masses @ located.widths)
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
    slots: NDArray[np.int64],
    counts: NDArray[np.int64],
    mantissa_bits: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Bits of the table and of the slots coded with it, for each precision."""
    levels = level_of_counts(counts, mantissa_bits[:, None])
    weights = counts_of_levels(levels, mantissa_bits[:, None]).astype(np.float64)
    coded: NDArray[np.float64] = counts.sum() * np.log2(weights.sum(axis=1))
    return coded - np.log2(weights) @ counts + table_bits(slots, levels)
