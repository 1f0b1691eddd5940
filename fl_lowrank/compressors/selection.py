"""Where the largest entries can be at most: a pass that spares sorting the others.

A sample tells the magnitude that some more than the wanted number of entries reach;
those that reach it are counted, so that the answer is certain.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..linalg import bit_pattern

_SAMPLE_SIZE = 1 << 14
_CHUNK = 1 << 16  # entries looked at together on a CPU: the work stays in its cache


def candidates(values: Tensor, k: int) -> Tensor:
    """Positions, in increasing order, among which the ``k`` largest magnitudes are.

    Parameters
    ----------
    values : Tensor
        (d,) finite numbers.
    k : int
        Less than d.

    Returns
    -------
    Tensor
        int64; for most inputs not many more than ``k``. With an entry, all of the
        same or a larger magnitude are there.
    """
    d = values.numel()
    if d > 2 * _SAMPLE_SIZE:
        stride = d // _SAMPLE_SIZE
        sample = values[::stride].abs()
        expected = k / stride  # of the sample; five deviations more hardly ever fail
        rank = math.ceil(expected + 5.0 * math.sqrt(expected) + 5.0)
        if rank < sample.numel() // 2:
            floor = torch.topk(sample, rank, sorted=False).values.min()
            found = _reaching(values, floor)
            if found.numel() >= k:
                return found
    return torch.arange(d, device=values.device)


def _reaching(values: Tensor, floor: Tensor) -> Tensor:
    """Positions of entries of at least the magnitude ``floor``, in increasing order."""
    if values.device.type != "cpu":
        return (values.abs() >= floor).nonzero().reshape(-1)
    # NumPy finds the few true ones of a mask five times as fast as torch on a CPU.
    # Once the sign is off, patterns of finite numbers are ordered as their magnitudes.
    bits = bit_pattern(values.contiguous()).numpy()
    least = int(bit_pattern(floor))
    magnitude_bits = np.iinfo(bits.dtype).max
    parts = [
        np.flatnonzero((bits[begin : begin + _CHUNK] & magnitude_bits) >= least) + begin
        for begin in range(0, len(bits), _CHUNK)
    ]
    return torch.from_numpy(np.concatenate(parts))
