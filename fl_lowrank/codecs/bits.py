"""Bits and unsigned integers of known widths, packed without a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError, WireError


def encode_bits(bits: Tensor) -> bytes:
    """Pack booleans, eight a byte, lowest bit first, the last padded with zeros.

    Parameters
    ----------
    bits : Tensor
        One-dimensional, of dtype bool.

    Returns
    -------
    bytes
        ``ceil(count / 8)`` bytes.

    Raises
    ------
    InputError
        If the tensor is not a vector of booleans.
    """
    if bits.dtype != torch.bool or bits.dim() != 1:
        raise InputError(
            "encode_bits: expected a one-dimensional bool tensor, found "
            f"{bits.dtype} of shape {tuple(bits.shape)}; convert it first"
        )
    return pack_mask(bits.detach().cpu().numpy())


def decode_bits(data: bytes, count: int) -> Tensor:
    """Invert :func:`encode_bits`.

    Parameters
    ----------
    data : bytes
        What :func:`encode_bits` returned.
    count : int
        How many booleans it holds.

    Returns
    -------
    Tensor
        One-dimensional, of dtype bool, on the CPU.

    Raises
    ------
    WireError
        If the length is wrong or the padding is not zero.
    """
    return torch.from_numpy(unpack_mask(data, count))


def pack_mask(mask: NDArray[np.bool_]) -> bytes:
    """Pack a boolean array, lowest bit first.

    Parameters
    ----------
    mask : ndarray of bool
        One-dimensional.

    Returns
    -------
    bytes
        ``ceil(len(mask) / 8)`` bytes.
    """
    return np.packbits(mask, bitorder="little").tobytes()


def unpack_mask(data: bytes | NDArray[np.uint8], count: int) -> NDArray[np.bool_]:
    """Invert :func:`pack_mask`, strictly.

    Parameters
    ----------
    data : bytes or ndarray of uint8
        Exactly ``ceil(count / 8)`` bytes, the padding zero.
    count : int
        How many bits to return.

    Returns
    -------
    ndarray of bool
        One-dimensional.

    Raises
    ------
    WireError
        If the length is wrong or the padding is not zero.
    """
    check_mask(data, count)
    packed = np.frombuffer(data, dtype=np.uint8)
    return np.unpackbits(packed, count=count, bitorder="little").view(np.bool_)


def check_mask(data: bytes | NDArray[np.uint8], count: int) -> None:
    """Refuse what :func:`pack_mask` does not return for ``count`` booleans.

    Raises
    ------
    WireError
        If the length is wrong or the padding is not zero.
    """
    if count < 0 or len(data) != -(-count // 8):
        raise WireError(
            f"mask: expected {-(-count // 8)} bytes for {count} bits, found "
            f"{len(data)}; the data are cut, extended or announced wrongly"
        )
    if count % 8 and data[-1] >> count % 8:
        raise WireError(
            f"mask: expected zeros behind the last of {count} bits, found "
            f"byte {data[-1]:#04x}; the data are damaged"
        )


def bit_length(values: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Count the bits of each value, like ``int.bit_length``.

    Parameters
    ----------
    values : ndarray of uint64
        Any shape.

    Returns
    -------
    ndarray of int64
        In ``[0, 64]``.
    """
    lengths = np.frexp(values.astype(np.float64))[1].astype(np.int64)
    # Above 2**53 the conversion may round up to the next power of two.
    shifts = np.maximum(lengths - 1, 0)
    too_long = (values >> np.minimum(shifts, 63).astype(np.uint64)) == 0
    lengths[too_long | (lengths > 64)] -= 1
    return np.where(values == 0, 0, lengths)


def pack_uints(values: NDArray[np.uint64], widths: NDArray[Any]) -> bytes:
    """Pack unsigned integers, each in its own number of bits.

    Whole low bytes come first, one plane a byte position, then the remaining top
    bits (fewer than eight) of all values as one stream of bits: so no loop runs
    over the values and at most seven bits are padding.

    Parameters
    ----------
    values : ndarray of uint64
        One-dimensional; each below ``2**width``.
    widths : ndarray of int
        The width of each value, in ``[0, 64]``; same length.

    Returns
    -------
    bytes
        ``sum(widths // 8) + ceil(sum(widths % 8) / 8)`` bytes.
    """
    whole, rest = np.divmod(widths.astype(np.uint8), 8)
    planes = [
        (values[whole > plane] >> np.uint64(8 * plane)).astype(np.uint8).tobytes()
        for plane in range(int(whole.max(initial=0)))
    ]
    has_rest = rest > 0
    # A width of 64 has no remaining bits, so no shift reaches 64 here.
    shifts = 8 * whole[has_rest].astype(np.uint64)
    tops = (values[has_rest] >> shifts).astype(np.uint8)
    columns = np.unpackbits(tops[:, None], axis=1, bitorder="little").view(np.bool_)
    return b"".join([*planes, pack_mask(columns[_used_bits(rest[has_rest])].ravel())])


def unpack_uints(data: bytes, widths: NDArray[Any]) -> NDArray[np.uint64]:
    """Invert :func:`pack_uints`, strictly.

    Parameters
    ----------
    data : bytes
        Exactly what :func:`pack_uints` returned.
    widths : ndarray of int
        The width of each value, in ``[0, 64]``.

    Returns
    -------
    ndarray of uint64
        One-dimensional, as long as `widths`.

    Raises
    ------
    WireError
        If the length is wrong or the padding is not zero.
    """
    whole, rest = np.divmod(widths.astype(np.uint8), 8)
    rest_start = int(whole.sum(dtype=np.int64))
    if rest_start > len(data):
        raise WireError(
            f"unpack_uints: expected at least {rest_start} bytes for {len(widths)} "
            f"integers, found {len(data)}; the data are cut"
        )
    stream = unpack_mask(data[rest_start:], int(rest.sum(dtype=np.int64)))
    values = np.zeros(len(widths), dtype=np.uint64)
    has_rest = rest > 0
    tops = _joined_bits(stream, rest[has_rest]).astype(np.uint64)
    values[has_rest] = tops << 8 * whole[has_rest].astype(np.uint64)
    pos = 0
    for plane in range(int(whole.max(initial=0))):
        reaches = whole > plane
        size = int(np.count_nonzero(reaches))
        column = np.frombuffer(data, dtype=np.uint8, count=size, offset=pos)
        values[reaches] |= column.astype(np.uint64) << np.uint64(8 * plane)
        pos += size
    return values


def unpack_equal_uints(data: bytes, width: int, count: int) -> NDArray[np.uint64]:
    """Do as :func:`unpack_uints` where all widths are the same, in less time.

    Parameters
    ----------
    data : bytes
        Exactly what :func:`pack_uints` returned.
    width : int
        Of every value, in ``[0, 64]``.
    count : int
        How many values there are.

    Returns
    -------
    ndarray of uint64
        One-dimensional.

    Raises
    ------
    WireError
        If the length is wrong or the padding is not zero.
    """
    planes, rest = divmod(width, 8)
    if planes * count > len(data):
        raise WireError(
            f"unpack_uints: expected at least {planes * count} bytes for {count} "
            f"integers, found {len(data)}; the data are cut"
        )
    tops = unpack_narrow_rows([data[planes * count :]], rest, count)
    values: NDArray[np.uint64] = tops[0].astype(np.uint64)
    if planes:
        values <<= np.uint64(8 * planes % 64)
    for plane in range(planes if count else 0):
        column = np.frombuffer(data, np.uint8, count, plane * count)
        values |= column.astype(np.uint64) << np.uint64(8 * plane)
    return values


def unpack_narrow_rows(
    rows: Sequence[bytes], width: int, count: int
) -> NDArray[np.uint8]:
    """Do as :func:`unpack_equal_uints` for fewer than eight bits, many times at once.

    Parameters
    ----------
    rows : sequence of bytes
        Each exactly what :func:`pack_uints` returned; at least one.
    width : int
        Of every value, in ``[0, 7]``.
    count : int
        How many values a row has.

    Returns
    -------
    ndarray of uint8
        One row for each.

    Raises
    ------
    WireError
        If a length is wrong or the padding is not zero.
    """
    for row in rows:
        check_mask(row, width * count)
    if width == 0:
        return np.zeros((len(rows), count), dtype=np.uint8)
    # Eight values fill `width` bytes: each word is read from there, with what follows.
    shape, strides = (len(rows), -(-count // 8)), (len(rows[0]), width)
    words = np.ndarray(shape, "<u8", b"".join(rows) + bytes(8), strides=strides).copy()
    # Halves of a word are moved apart, then halves of these, until each has its byte.
    for half in (4, 2, 1):
        ones = (1 << half * width) - 1
        low = sum(ones << start for start in range(0, 64, 16 * half))
        high = words & np.uint64(low << half * width)
        high <<= np.uint64(half * (8 - width))
        words &= np.uint64(low)
        words |= high
    return words.view(np.uint8)[:, :count]


def _joined_bits(
    stream: NDArray[np.bool_], widths: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Give the numbers whose low bits stand one after another in a stream."""
    used = _used_bits(widths)
    if not isinstance(used, tuple):
        columns = np.zeros((len(widths), 8), dtype=np.bool_)
        columns[used] = stream
        return np.packbits(columns, axis=1, bitorder="little")[:, 0]
    joined = np.zeros(len(widths), dtype=np.uint8)
    if len(widths):
        for bit, column in enumerate(stream.reshape(len(widths), -1).T):
            joined |= column.view(np.uint8) << np.uint8(bit)
    return joined


def _used_bits(widths: NDArray[np.uint8]) -> Any:
    """Select the low bits of each row of eight: a slice if all widths are the same."""
    if len(widths) and (widths == widths[0]).all():
        return np.s_[:, : widths[0]]
    return np.arange(8, dtype=np.uint8) < widths[:, None]
