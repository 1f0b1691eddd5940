"""Geometric numbers in Golomb-Rice codes: no table, so few numbers suffice.

A number is cut into its low ``w`` bits, as they are, and the rest in unary: so many
zeros and a one. One width serves all, the one that takes fewest bytes. For numbers
that are geometric with mean M this costs about ``log2 M + 1.56`` bits each, 0.12 above
their entropy. First all low bits, then all unary parts::

    width      1 byte
    low bits   as `bits.pack_uints` writes them
    unary      one bit each, lowest first, padded with zeros

S. W. Golomb, "Run-length encodings", 1966; R. F. Rice, "Some practical universal
noiseless coding techniques", JPL 79-22, 1979.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError, WireError
from .bits import (
    pack_mask,
    pack_uints,
    unpack_equal_uints,
    unpack_mask,
    unpack_narrow_rows,
)
from .symbols import StreamPlan

#: Numbers are below ``2**MAX_BITS``.
MAX_BITS = 40


def encode_rice(numbers: Tensor) -> bytes:
    """Code a vector of non-negative integers; its length must be known to the decoder.

    Parameters
    ----------
    numbers : Tensor
        One-dimensional int64, in ``[0, 2^40)``, on any device.

    Returns
    -------
    bytes
        Empty for no numbers.

    Raises
    ------
    InputError
        If a number is out of range.
    """
    return plan_rice(numbers.detach().to("cpu", torch.int64).numpy()).write()


def plan_rice(values: NDArray[np.int64]) -> StreamPlan:
    """Find the width for numbers and the size, without coding them yet.

    Raises
    ------
    InputError
        If a number is out of range.
    """
    if not len(values):
        return StreamPlan(0, bytes)
    if int(values.min()) < 0 or int(values.max()) >> MAX_BITS:
        raise InputError(
            f"encode_rice: expected numbers in [0, 2^{MAX_BITS}), found "
            f"{int(values.min())} to {int(values.max())}"
        )
    # The best width is next to the logarithm of the mean.
    guess = int(values.sum() // len(values)).bit_length()
    bits, width = min(
        (w * len(values) + int((values >> w).sum()), w)
        for w in range(max(guess - 3, 0), guess + 1)
    )
    size_bytes = 1 + -(-(bits + len(values)) // 8)
    return StreamPlan(size_bytes, partial(_write, values, width))


def _write(values: NDArray[np.int64], width: int) -> bytes:
    low = (values & ((1 << width) - 1)).view(np.uint64)
    ends = np.cumsum((values >> width) + 1)
    unary = np.zeros(int(ends[-1]), dtype=np.bool_)
    unary[ends - 1] = True
    head = bytes([width]) + pack_uints(low, np.full(len(low), width, dtype=np.uint8))
    return head + pack_mask(unary)


def decode_rice(data: bytes, count: int) -> Tensor:
    """Invert :func:`encode_rice`, strictly.

    Parameters
    ----------
    data : bytes
        What :func:`encode_rice` returned, all of it.
    count : int
        How many numbers it holds; memory is bounded by this and the data.

    Returns
    -------
    Tensor
        One-dimensional, int64, on the CPU.

    Raises
    ------
    WireError
        If the bytes do not hold exactly `count` such numbers.
    """
    if count == 0 and not data:
        return torch.empty(0, dtype=torch.int64)
    ((ends,), (low,), width) = _parts([data], count)
    high = np.diff(ends, prepend=-1) - 1
    if int(high.max()) >> (MAX_BITS - width):
        raise WireError(
            f"decode_rice: expected numbers below 2^{MAX_BITS}, found a larger one; "
            "the data are damaged"
        )
    high <<= width
    high += low
    return torch.from_numpy(high)


def decode_rice_places(
    rows: Sequence[bytes], count: int, universe: int
) -> NDArray[np.int64]:
    """Give increasing places whose gaps the numbers are, for many vectors in one pass.

    Parameters
    ----------
    rows : sequence of bytes
        Each what :func:`encode_rice` returned, all of it, and with the same first
        byte; at least one.
    count : int
        How many numbers each holds, at least one.
    universe : int
        Places are below it.

    Returns
    -------
    ndarray of int64
        One row for each, strictly increasing.

    Raises
    ------
    WireError
        If one does not hold exactly `count` numbers, or a place is not below.
    """
    ends, low, width = _parts(rows, count)
    step = 1 << width
    # Where bit e ends number i, the numbers up to it hold e - i steps of 2^width.
    num_steps = int(ends[:, -1].max()) + 1 - count
    if num_steps << width >= universe or count << width > 1 << 62:
        raise WireError(
            f"decode_rice: expected places below {universe}, found one beyond; the "
            "data are damaged"
        )
    rest = low - (np.int16(step - 1) if width < 8 else step - 1)
    rest[:, 0] += step - 1
    ends <<= width
    ends += np.add.accumulate(rest, axis=1, dtype=np.int64)
    if (last := int(ends[:, -1].max())) >= universe:
        raise WireError(
            f"decode_rice: expected places below {universe}, found {last}; the data "
            "are damaged"
        )
    return ends


def _parts(
    rows: Sequence[bytes], count: int
) -> tuple[NDArray[np.int64], NDArray[np.integer[Any]], int]:
    """Give where unary parts end, the low bits, and how many these are; by rows."""
    width = rows[0][0] if rows[0] else MAX_BITS
    begin = 1 + width // 8 * count + (width % 8 * count + 7) // 8
    if count < 1 or width >= MAX_BITS or begin >= min(map(len, rows)):
        raise WireError(
            f"decode_rice: expected {count} numbers with {width} low bits, found "
            f"{min(map(len, rows))} bytes; the data are cut or damaged"
        )
    packed = [row[1:begin] for row in rows]
    low: NDArray[np.integer[Any]]
    if width < 8:
        low = unpack_narrow_rows(packed, width, count)
    else:
        uints = [unpack_equal_uints(row, width, count) for row in packed]
        low = np.stack(uints).view(np.int64)
    unary = [row[begin:] for row in rows]
    bits = unpack_mask(b"".join(unary), 8 * sum(map(len, unary)))
    (found,) = bits.nonzero()
    starts = np.array([0, *accumulate(8 * len(part) for part in unary)])
    # Each row has as many ones as it should, and one of them in its last byte.
    right = len(found) == count * len(rows) and all(part[-1] for part in unary)
    if right:
        first, last = found[::count], found[count - 1 :: count]
        right = not ((first < starts[:-1]) | (last >= starts[1:])).any()
    if not right:
        raise WireError(
            f"decode_rice: expected {count} unary numbers to the last byte, found "
            f"{len(found) / len(rows):g}; the data are damaged"
        )
    ends: NDArray[np.int64] = found.reshape(len(rows), count)
    if len(rows) > 1:
        ends -= starts[:-1, None]
    return ends, low, width
