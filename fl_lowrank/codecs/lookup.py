"""Reading a table at many places, within a processor's cache."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

_CHUNK = 1 << 15
Entry = TypeVar("Entry", bound=np.integer[Any])


def look_up(table: NDArray[Entry], places: NDArray[np.integer[Any]]) -> NDArray[Entry]:
    """Give ``table[places]``; what places outside the table give means nothing.

    Parameters
    ----------
    table : ndarray of integers
        One-dimensional, not empty.
    places : ndarray of integers
        One-dimensional, of any integer dtype but uint64.

    Returns
    -------
    ndarray
        As long as `places`, of the dtype of `table`.
    """
    found = np.empty(len(places), dtype=table.dtype)
    if (table[1:] - table[:-1] == 1).all():  # consecutive numbers need no table
        np.add(places, table[0], out=found, casting="unsafe")
        return found
    for begin in range(0, len(places), _CHUNK):
        part = slice(begin, begin + _CHUNK)
        # NumPy widens narrow indices: here never more than a chunk of them.
        index = places[part].astype(np.int64, copy=False)
        table.take(index, mode="clip", out=found[part])
    return found
