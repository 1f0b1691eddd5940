"""Memory that is given back to the system piece by piece, while the rest is in use.

The sum of a round is twice the model; the mean that is made of it is one more. Where
each piece of the sum is given back as soon as it has been used, the two never stand
side by side.
"""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

_ITEM = torch.float64.itemsize


class Pages:
    """A float64 vector of zeros in memory of its own.

    Parameters
    ----------
    numel : int
        Entries.

    Attributes
    ----------
    vector : Tensor
        The vector; views of it keep the memory alive.
    """

    def __init__(self, numel: int) -> None:
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._map = mmap.mmap(-1, _ITEM * max(numel, 1), flags=private)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            # Entries are added all over it, which finds large pages faster.
            self._map.madvise(mmap.MADV_HUGEPAGE)
        self.vector = torch.frombuffer(self._map, dtype=torch.float64)[:numel]

    def give_back(self, part: Tensor) -> None:
        """Free a contiguous view of the vector, but for its last page and its first.

        It must not be read again: it holds zeros, or what it held.
        """
        begin = part.data_ptr() - self.vector.data_ptr()
        first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (begin + part.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first:
            self._map.madvise(mmap.MADV_DONTNEED, first, last - first)
