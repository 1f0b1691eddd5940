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

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, WireError
from .bits import pack_mask, pack_uints, unpack_equal_uints, unpack_mask

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
    values = numbers.detach().to("cpu", torch.int64).numpy()
    if not len(values):
        return b""
    if int(values.min()) < 0 or int(values.max()) >> MAX_BITS:
        raise InputError(
            f"encode_rice: expected numbers in [0, 2^{MAX_BITS}), found "
            f"{int(values.min())} to {int(values.max())}"
        )
    # The best width is next to the logarithm of the mean.
    guess = int(values.sum() // len(values)).bit_length()
    widths = range(max(guess - 3, 0), guess + 1)
    width = min(widths, key=lambda w: w * len(values) + int((values >> w).sum()))
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
    if count < 0 or (count == 0) != (len(data) == 0):
        raise WireError(
            f"decode_rice: expected bytes for {count} numbers, found {len(data)} bytes"
        )
    if count == 0:
        return torch.empty(0, dtype=torch.int64)
    width = data[0]
    begin = 1 + width // 8 * count + (width % 8 * count + 7) // 8
    if width >= MAX_BITS or begin >= len(data):
        raise WireError(
            f"decode_rice: expected {count} numbers with {width} low bits, found "
            f"{len(data)} bytes; the data are cut or damaged"
        )
    low = unpack_equal_uints(data[1:begin], width, count)
    unary = unpack_mask(data[begin:], 8 * (len(data) - begin))
    if np.count_nonzero(unary) != count or not data[-1]:
        raise WireError(
            f"decode_rice: expected {count} unary numbers to the last byte, found "
            f"{np.count_nonzero(unary)}; the data are damaged"
        )
    high = np.diff(np.flatnonzero(unary), prepend=-1) - 1
    if int(high.max()) >> (MAX_BITS - width):
        raise WireError(
            f"decode_rice: expected numbers below 2^{MAX_BITS}, found a larger one; "
            "the data are damaged"
        )
    return torch.from_numpy((high << width) | low.view(np.int64))
