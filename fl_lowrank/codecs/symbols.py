"""Streams of integers to bytes near their order-0 entropy.

Three ways, told apart by the first byte:

- 0 to 64: all values in so many bits above a minimum (0: a constant stream);
- 65: zigzag varints, for a handful of values with outliers;
- 66: an alphabet with a compact table (`alphabet`, `frequencies`) coded by
  asymmetric numeral systems (`ans`), the low bits of tail values as they are.

The encoder takes the shortest. No values: no bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError, WireError
from .alphabet import INT64_MAX
from .ans import ans_decode, ans_encode
from .bits import pack_uints, unpack_equal_uints, unpack_uints
from .frequencies import Frequencies
from .lookup import look_up
from .planning import Histogram, Plan, histogram, plan
from .varint import read_varint, unzigzag, write_varint, zigzag

_MODE_VARINTS, _MODE_ANS = 65, 66
_MAX_VARINTS = 64  # they are read one by one
_NEVER = np.zeros(0, dtype=np.bool_)
_SYMBOL_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def encode_symbols(symbols: Tensor) -> bytes:
    """Code a vector of integers; its length must be known to the decoder.

    Parameters
    ----------
    symbols : Tensor
        One-dimensional, of an integer dtype, any 64-bit values, on any device.

    Returns
    -------
    bytes
        Empty for no symbols; about ``count * entropy / 8`` plus a table otherwise.

    Raises
    ------
    InputError
        If the tensor is not a vector of integers.
    """
    if symbols.dtype not in _SYMBOL_DTYPES or symbols.dim() != 1:
        raise InputError(
            "encode_symbols: expected a one-dimensional integer tensor, found "
            f"{symbols.dtype} of shape {tuple(symbols.shape)}; convert it first"
        )
    return plan_stream(symbols.detach().cpu().numpy()).write()


def decode_symbols(data: bytes, count: int) -> Tensor:
    """Invert :func:`encode_symbols`.

    Parameters
    ----------
    data : bytes
        What :func:`encode_symbols` returned, all of it.
    count : int
        How many symbols it holds; memory is bounded by this number and the data.

    Returns
    -------
    Tensor
        One-dimensional, int64, on the CPU.

    Raises
    ------
    WireError
        If the bytes do not hold exactly `count` symbols.
    """
    if count < 0 or (count == 0) != (len(data) == 0):
        raise WireError(
            f"decode_symbols: expected bytes for {count} symbols, found {len(data)} "
            "bytes; the data are cut, extended or announced wrongly"
        )
    if count == 0:
        return torch.empty(0, dtype=torch.int64)
    mode = data[0]
    if mode < _MODE_VARINTS:
        values = _read_fixed(data, count, mode)
    elif mode == _MODE_VARINTS:
        values = _read_varints(data, count)
    elif mode == _MODE_ANS:
        values = _read_ans(data, count)
    else:
        raise WireError(
            f"decode_symbols: expected mode 0 to {_MODE_ANS}, found {mode}; the data "
            "are damaged or of a later release"
        )
    return torch.from_numpy(values)


class StreamPlan(NamedTuple):
    """A way to code some values: its size, nearly exact, and how to do it."""

    size_bytes: float
    write: Callable[[], bytes]


def plan_stream(values: NDArray[np.integer[Any]]) -> StreamPlan:
    """Find the shortest way to code values, without coding them yet.

    Parameters
    ----------
    values : ndarray of int64, int32, int16, int8 or uint8
        One-dimensional.

    Returns
    -------
    StreamPlan
        Its ``write()`` gives the bytes that :func:`decode_symbols` reads.
    """
    if len(values) == 0:
        return StreamPlan(0, bytes)
    low, high = int(values.min()), int(values.max())
    width = (high - low).bit_length()
    head = bytes([width]) + write_varint(zigzag(low))
    fixed_size = len(head) + -(-width * len(values) // 8)
    ways = [StreamPlan(fixed_size, partial(_write_fixed, values, head, low, width))]
    if width and len(values) <= _MAX_VARINTS:
        varints = bytes([_MODE_VARINTS]) + b"".join(
            write_varint(zigzag(value)) for value in values.tolist()
        )
        ways.append(StreamPlan(len(varints), lambda: varints))
    if width:
        found = histogram(values, low, high)
        planned = plan(found)
        ways.append(StreamPlan(planned.size_bytes, partial(_write_ans, found, planned)))
    return min(ways, key=lambda way: way.size_bytes)


def _write_fixed(
    values: NDArray[np.integer[Any]], head: bytes, low: int, width: int
) -> bytes:
    wide = values.astype(np.int64, copy=False)
    offsets = wide.view(np.uint64) - np.uint64(low % (1 << 64))
    return head + pack_uints(offsets, np.full(len(values), width, dtype=np.uint8))


def _read_fixed(data: bytes, count: int, width: int) -> NDArray[np.int64]:
    image, pos = read_varint(data, 1)
    low = unzigzag(image)
    offsets = unpack_equal_uints(data[pos:], width, count)
    highest = low + int(offsets.max())
    if highest > INT64_MAX:
        raise WireError(
            f"decode_symbols: expected 64-bit integers, found {highest}; the data are "
            "damaged"
        )
    return (offsets + np.uint64(low % (1 << 64))).view(np.int64)


def _read_varints(data: bytes, count: int) -> NDArray[np.int64]:
    if count > _MAX_VARINTS:
        raise WireError(
            f"decode_symbols: expected at most {_MAX_VARINTS} varints, found {count} "
            "announced; the data are damaged"
        )
    values, pos = [], 1
    for _ in range(count):
        image, pos = read_varint(data, pos)
        values.append(unzigzag(image))
    if pos != len(data):
        raise WireError(
            f"decode_symbols: expected the end after {count} varints, found "
            f"{len(data) - pos} more bytes; the data are extended or damaged"
        )
    return np.array(values, dtype=np.int64)


def _write_ans(found: Histogram, planned: Plan) -> bytes:
    frequencies, outside, _ = planned
    alphabet, slots = frequencies.alphabet, frequencies.slots
    ranks = np.zeros(alphabet.size, dtype=np.int32)
    ranks[slots] = np.arange(len(slots), dtype=np.int32)
    # One look-up a value, by its place in the window. What places outside the window
    # give is overwritten; slots that "clip" moves belong to no value.
    places: NDArray[np.integer[Any]] = found.offsets
    if places.dtype == np.uint64:
        places = places.view(np.int64)
    window = alphabet.locate(found.start + np.arange(len(found.counts)))
    is_rest = found.offsets >= len(found.counts) if len(found.outside) else _NEVER
    rest = np.flatnonzero(is_rest)
    symbols = look_up(ranks.take(window.slots, mode="clip"), places)
    symbols[rest] = ranks[outside.slots]
    coded = ans_encode(symbols, frequencies.weights)
    head = bytes([_MODE_ANS]) + frequencies.to_bytes()
    if not alphabet.entries(slots).widths.any():
        return head + coded
    # Tails are all that is not in the core: a few values in most streams.
    first, last = alphabet.low - found.start, alphabet.high - found.start
    tails = np.flatnonzero((places < first) | (places > last))
    ends = places[tails]
    widths = window.widths.take(ends, mode="clip")
    offsets = window.offsets.take(ends, mode="clip")
    if len(rest):
        widths[is_rest[tails]], offsets[is_rest[tails]] = outside[1:]
    low_bits = pack_uints(offsets, widths)
    return head + write_varint(len(coded)) + coded + low_bits


def _read_ans(data: bytes, count: int) -> NDArray[np.int64]:
    frequencies, pos = Frequencies.read(data, 1)
    entries = frequencies.alphabet.entries(frequencies.slots)
    if not entries.widths.any():
        symbols = ans_decode(data[pos:], frequencies.weights, count)
        return look_up(entries.bases, symbols)
    size, pos = read_varint(data, pos)
    if size > len(data) - pos:
        raise WireError(
            f"decode_symbols: expected {size} coded bytes, found {len(data) - pos}; "
            "the data are cut or damaged"
        )
    symbols = ans_decode(data[pos : pos + size], frequencies.weights, count)
    first = np.count_nonzero(entries.signs < 0)
    last = len(entries.signs) - 1 - np.count_nonzero(entries.signs > 0)
    tails = np.flatnonzero((symbols < first) | (symbols > last))
    kinds = symbols[tails]
    offsets = unpack_uints(data[pos + size :], entries.widths[kinds])
    if (offsets > entries.rooms[kinds]).any():
        raise WireError(
            "decode_symbols: expected 64-bit integers, found values beyond; the data "
            "are damaged"
        )
    symbols -= first
    core = entries.bases[first : last + 1]
    values = look_up(core if len(core) else entries.bases, symbols)
    values[tails] = entries.bases[kinds] + entries.signs[kinds] * offsets.view(np.int64)
    return values
