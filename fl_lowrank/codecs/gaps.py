"""Gaps of a uniformly random index set, coded without a table.

With k of d indices drawn, gaps are geometric with success probability ``k / d``,
which both ends know. A gap is cut into a cell of ``2**shift`` values, coded by
asymmetric numeral systems, and the place in the cell, ``shift`` plain bits: cells are
so narrow against the mean gap that this costs less than 0.01 %. Cells beyond the last
share one symbol, and how far beyond is coded as a stream of its own.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import WireError
from .ans import ans_decode, ans_encode
from .bits import pack_uints, unpack_equal_uints
from .symbols import decode_symbols, plan_stream
from .varint import read_varint, write_varint

_CELLS_A_MEAN_BITS = 6  # a mean gap spans 32 to 63 cells if it spans so many values
_MEANS_COVERED = 16  # a random gap is longer with probability exp(-16)


class _Cells(NamedTuple):
    shift: int
    weights: NDArray[np.float64]  # one a cell, and the last for all beyond


def write_random_gaps(gaps: NDArray[np.int64], universe: int) -> bytes:
    """Code the gaps of an index set that is neither empty nor everything.

    Parameters
    ----------
    gaps : ndarray of int64
        How many indices each index skips, non-negative.
    universe : int
        How many indices there are.

    Returns
    -------
    bytes
        About ``log2(binomial(universe, count)) / 8`` bytes for a random set.
    """
    shift, weights = _cells(len(gaps), universe)
    last = len(weights) - 1
    cells = gaps >> shift
    beyond = cells[cells >= last] - last
    coded = ans_encode(np.minimum(cells, last).astype(np.int32), weights)
    places = (gaps & ((1 << shift) - 1)).view(np.uint64)
    low_bits = pack_uints(places, np.full(len(gaps), shift, dtype=np.uint8))
    tail = plan_stream(beyond).write()
    return low_bits + write_varint(len(coded)) + coded + tail


def read_random_gaps(data: bytes, count: int, universe: int) -> NDArray[np.int64]:
    """Invert :func:`write_random_gaps`, strictly.

    Parameters
    ----------
    data : bytes
        What :func:`write_random_gaps` returned, all of it.
    count : int
        In ``[1, universe)``.
    universe : int
        How many indices there are.

    Returns
    -------
    ndarray of int64
        Non-negative gaps, each below the universe.

    Raises
    ------
    WireError
        If the bytes hold no such gaps.
    """
    shift, weights = _cells(count, universe)
    last = len(weights) - 1
    pos = -(-shift * count // 8)
    # Slicing never fails: too few bytes are noticed by the strict readers.
    places = unpack_equal_uints(data[:pos], shift, count)
    size, pos = read_varint(data, pos)
    if size > len(data) - pos:
        raise WireError(
            f"read_random_gaps: expected {size} coded bytes, found {len(data) - pos}; "
            "the data are cut or damaged"
        )
    cells = ans_decode(data[pos : pos + size], weights, count).astype(np.int64)
    is_beyond = cells == last
    num_beyond = int(np.count_nonzero(is_beyond))
    beyond = decode_symbols(data[pos + size :], num_beyond).numpy()
    if num_beyond and not 0 <= beyond.min() <= beyond.max() < universe:
        raise WireError(
            f"read_random_gaps: expected gaps below {universe}, found cells from "
            f"{beyond.min()} to {beyond.max()} beyond the last; the data are damaged"
        )
    cells[is_beyond] += beyond
    if int(cells.max()) > (universe - 1) >> shift:
        raise WireError(
            f"read_random_gaps: expected gaps below {universe}, found one in cell "
            f"{cells.max()} of {1 << shift} values; the data are damaged"
        )
    return (cells << shift) | places.view(np.int64)


@lru_cache(maxsize=64)
def _cells(count: int, universe: int) -> _Cells:
    """Cut the geometric distribution into cells; both ends call this.

    Only basic operations in float64, in a fixed order, and integer weights: every
    machine finds the same numbers. Remembered, since the replies of a round have
    tensors of the same few sizes.
    """
    mean = universe // count
    shift = max(0, mean.bit_length() - _CELLS_A_MEAN_BITS)
    chosen = count / universe  # of one index, then of any in two, four, ...
    for _ in range(shift):
        chosen *= 2.0 - chosen
    cells_in_use = ((universe - 1) >> shift) + 1
    num_cells = min(_MEANS_COVERED * ((mean >> shift) + 1), cells_in_use)
    factors = np.full(num_cells + 1, 1.0 - chosen)
    factors[0] = 1.0
    masses = np.multiply.accumulate(factors)
    masses[-1] /= chosen
    weights = np.floor(masses * 2.0**32) + 1.0
    weights.flags.writeable = False
    return _Cells(shift, weights)
