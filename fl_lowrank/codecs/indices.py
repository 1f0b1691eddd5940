"""Index sets to bytes: the count and the places, whatever form is shortest.

The first byte tells the form: 0 nothing, 1 everything, 2 one bit for every index,
3 gaps under the model of a uniformly random set (`gaps`), 4 gaps as a stream of
symbols with a table of its own (`symbols`), which finds runs, rows and columns,
5 the complement in one of these forms, 6 gaps in Golomb-Rice codes (`rice`), which are
read in a fifth of the time of 3, and used where they take at most half a percent more:
for few indices, and for many if so many are in use as suit codes of whole bits, such as
0.5%, 1% or 2% of all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError, WireError
from .bits import pack_mask, unpack_mask
from .gaps import read_random_gaps, write_random_gaps
from .rice import MAX_BITS, decode_rice_places, plan_rice
from .symbols import decode_symbols, plan_stream
from .varint import read_varint, write_varint

_MANY_GAPS = 4096  # different ones, of which a table would not hold all
_FAST_COST = 1.005  # sizes that a fast form may have, to that of the shortest
_NOTHING, _EVERYTHING, _BITMAP, _RANDOM, _STREAM, _COMPLEMENT, _RICE = range(7)


def encode_indices(indices: Tensor, universe: int) -> bytes:
    """Code a strictly increasing vector of indices, its length included.

    Parameters
    ----------
    indices : Tensor
        One-dimensional, int64, strictly increasing, in ``[0, universe)``; on any
        device.
    universe : int
        How many indices there are.

    Returns
    -------
    bytes
        For a uniformly random set of k indices about
        ``log2(binomial(universe, k)) / 8`` bytes, for clustered sets fewer.

    Raises
    ------
    InputError
        If the tensor is not such a vector.
    """
    if indices.dtype != torch.int64 or indices.dim() != 1:
        raise InputError(
            "encode_indices: expected a one-dimensional int64 tensor, found "
            f"{indices.dtype} of shape {tuple(indices.shape)}; convert it first"
        )
    places = indices.detach().cpu().numpy()
    count = len(places)
    if count and not (
        places[0] >= 0 and places[-1] < universe and (places[1:] > places[:-1]).all()
    ):
        raise InputError(
            f"encode_indices: expected strictly increasing indices in [0, {universe}), "
            f"found {places.min()} to {places.max()} or not increasing; sort them and "
            "remove doubles"
        )
    if 2 * count > universe > count:
        return bytes([_COMPLEMENT]) + _encode(_complement(places, universe), universe)
    return _encode(places, universe)


def decode_indices(data: bytes, universe: int) -> Tensor:
    """Invert :func:`encode_indices`.

    Parameters
    ----------
    data : bytes
        What :func:`encode_indices` returned, all of it.
    universe : int
        How many indices there are; bounds the memory that is used.

    Returns
    -------
    Tensor
        One-dimensional, int64, strictly increasing, in ``[0, universe)``, on the CPU.

    Raises
    ------
    WireError
        If the bytes hold no such set.
    """
    if data[:1] == bytes([_COMPLEMENT]):
        return torch.from_numpy(_complement(_decode(data[1:], universe), universe))
    return torch.from_numpy(_decode(data, universe))


def decode_index_sets(
    sets: Sequence[tuple[bytes, int]],
) -> list[Tensor | WireError]:
    """Do as :func:`decode_indices` for many sets, those of one size in one pass.

    Parameters
    ----------
    sets : sequence of tuple
        The data and the universe of each.

    Returns
    -------
    list of Tensor or WireError
        In the same order; an error where the bytes hold no such set.
    """
    alike: dict[tuple[int, int, int], list[int]] = {}
    for i, (data, universe) in enumerate(sets):
        head = _rice_head(data, universe)
        if head is not None:
            alike.setdefault((universe, *head), []).append(i)
    found: dict[int, Tensor] = {}
    for (universe, count, _), members in alike.items():
        bodies = [sets[i][0][1 + len(write_varint(count)) :] for i in members]
        with suppress(WireError):  # one of them is at fault, which is found below
            rows = decode_rice_places(bodies, count, universe)
            found.update(zip(members, map(torch.from_numpy, rows), strict=True))
    return [found[i] if i in found else _tried(*sets[i]) for i in range(len(sets))]


def announced_bytes(data: bytes, universe: int) -> int:
    """Bound the memory that a decoded set takes, without decoding it."""
    head = _rice_head(data, universe)
    return 8 * (universe if head is None else head[0])


def _rice_head(data: bytes, universe: int) -> tuple[int, int] | None:
    """Read number and width of numbers in Golomb-Rice codes; None for all else."""
    if len(data) < 3 or data[0] != _RICE:
        return None
    try:
        count, pos = read_varint(data, 1)
    except WireError:
        return None
    if 0 < count < universe and pos < len(data):
        return count, data[pos]
    return None


def _tried(data: bytes, universe: int) -> Tensor | WireError:
    try:
        return decode_indices(data, universe)
    except WireError as error:
        return error


def _encode(places: NDArray[np.int64], universe: int) -> bytes:
    count = len(places)
    if count in (0, universe):
        return bytes([_EVERYTHING if count else _NOTHING])
    gaps = np.diff(places, prepend=-1) - 1
    random_size = _random_size(count, int(places[-1]), universe)
    bitmap_size = 1 + -(-universe // 8)
    least = min(random_size, bitmap_size)
    if _hoped_stream_size(gaps) < least:
        stream = plan_stream(gaps)
        if 1 + len(write_varint(count)) + stream.size_bytes < least:
            return bytes([_STREAM]) + write_varint(count) + stream.write()
    if bitmap_size <= random_size:
        return bytes([_BITMAP]) + pack_mask(_mask(places, universe))
    announced = write_varint(count)
    if not int(gaps.max()) >> MAX_BITS:
        fast = plan_rice(gaps)
        if fast.size_bytes <= _FAST_COST * random_size:
            return bytes([_RICE]) + announced + fast.write()
    return bytes([_RANDOM]) + announced + write_random_gaps(gaps, universe)


def _decode(data: bytes, universe: int) -> NDArray[np.int64]:
    form = data[0] if data else -1
    if form == _BITMAP:
        return np.flatnonzero(unpack_mask(data[1:], universe))
    if form in (_RANDOM, _STREAM, _RICE):
        return _read_gaps(data, universe, form)
    if form in (_NOTHING, _EVERYTHING) and len(data) == 1:
        return np.arange(universe if form == _EVERYTHING else 0)
    raise WireError(
        f"decode_indices: expected a form from 0 to {_RICE} (not nested) and its "
        f"bytes, found {len(data)} bytes that begin with '{data[:1].hex()}'; the data "
        "are damaged or of a later release"
    )


def _mask(places: NDArray[np.int64], universe: int) -> NDArray[np.bool_]:
    mask = np.zeros(universe, dtype=np.bool_)
    mask[places] = True
    return mask


def _complement(places: NDArray[np.int64], universe: int) -> NDArray[np.int64]:
    return np.flatnonzero(~_mask(places, universe))


def _read_gaps(data: bytes, universe: int, form: int) -> NDArray[np.int64]:
    count, pos = read_varint(data, 1)
    if not 0 < count < universe:
        raise WireError(
            f"decode_indices: expected 1 to {universe - 1} indices, found {count} "
            "announced; the data are damaged"
        )
    if form == _RICE:
        rows = decode_rice_places([data[pos:]], count, universe)
        return rows.reshape(-1)
    if form == _RANDOM:
        gaps = read_random_gaps(data[pos:], count, universe)
    else:
        gaps = decode_symbols(data[pos:], count).numpy()
    # The sum in float64 guards the exact one, which might overflow.
    if gaps.min() < 0 or gaps.sum(dtype=np.float64) > 1.001 * universe:
        raise WireError(
            f"decode_indices: expected gaps of {universe} indices in all, found "
            f"{gaps.min()} as the smallest and {gaps.sum(dtype=np.float64):.3g} in "
            "all; the data are damaged"
        )
    places = np.cumsum(gaps + 1) - 1
    if not 0 <= int(places[-1]) < universe:
        raise WireError(
            f"decode_indices: expected indices below {universe}, found {places[-1]}; "
            "the data are damaged"
        )
    return places


def _random_size(count: int, last: int, universe: int) -> float:
    """Bytes of the form for random sets: it depends on no more than these."""
    chosen = count / universe
    skipped = last + 1 - count
    bits = -count * math.log2(chosen) - skipped * math.log1p(-chosen) / math.log(2)
    return bits / 8 + 8


def _hoped_stream_size(gaps: NDArray[np.int64]) -> float:
    """Bytes that gaps as symbols take if all goes well, found without planning.

    Entropy and, for each different gap, two bits: one in the table, and about one by
    which the entropy of so few symbols is underestimated (G. Miller, 1955). Random sets
    are told apart by this; to plan a stream takes longer than to write them.
    """
    if int(gaps.max()) >= _MANY_GAPS:
        return 0.0
    counts = np.bincount(gaps)
    counts = counts[counts > 0].astype(np.float64)
    bits = float(counts @ np.log2(len(gaps) / counts))
    return (bits + 2 * len(counts)) / 8
