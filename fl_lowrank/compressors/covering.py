"""For each block, the number of the first random direction within an angle.

All blocks are compared with the same directions: one matrix product for a chunk of
them and the blocks that still wait.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..bounds import log_cap_probability
from ..rng import Rng
from .directions import counters_of, directions_from

#: A block that has waited so many times the mean is given up; e^-32 of them are.
PATIENCE = 32
#: Blocks with a smaller norm count as zero: their squares underflow.
LEAST_NORM = 1e-150
#: Blocks handled at a time, which bounds the memory.
ROWS = 1 << 14
_CELLS = 1 << 20  # inner products formed at a time
_LEAST_CHUNK, _MOST_CHUNK = 256, 4096  # directions drawn at a time


class Cover(NamedTuple):
    """Directions found for blocks."""

    coded: Tensor  # (c,) int64, blocks for which one was found
    plain: Tensor  # (p,) int64, blocks for which none was; zero blocks are in neither
    norms: Tensor  # (c,) float64
    cosines: Tensor  # (c,) float64, of blocks and directions
    numbers: Tensor  # (c,) int64, of the directions


def mean_draws(block: int, error: float) -> float:
    """Mean number of directions until one has a squared sine of at most ``error``."""
    return math.exp(-log_cap_probability(block, error))


def _search(rows: Tensor, rng: Rng, error: float) -> tuple[Tensor, Tensor]:
    """Give number and cosine of the first direction near each row; -1 if none came.

    ``rows`` are unit vectors, (n, m) float64. Chunks of directions are compared with
    the rows that still wait.
    """
    found = torch.full((len(rows),), -1, dtype=torch.int64, device=rows.device)
    cosines = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    waiting = torch.arange(len(rows), device=rows.device)
    cosine, mean = math.sqrt(1.0 - error), mean_draws(rows.shape[1], error)
    most = min(math.ceil(PATIENCE * mean), (1 << 32) // counters_of(rows.shape[1]))
    chunk = min(max(math.ceil(4.0 * mean), _LEAST_CHUNK), _MOST_CHUNK)
    start = 0
    while waiting.numel() and start < most:
        count = min(chunk, _CELLS // waiting.numel(), most - start)
        directions = directions_from(rng, start, count, rows)
        products = rows[waiting] @ directions.T
        row, column = (products >= cosine).nonzero(as_tuple=True)
        first = torch.ones_like(row, dtype=torch.bool)
        first[1:] = row[1:] != row[:-1]
        row, column = row[first], column[first]
        found[waiting[row]] = column + start
        cosines[waiting[row]] = products[row, column]
        waiting = waiting[found[waiting] < 0]
        start += count
    return found, cosines


def cover(blocks: Tensor, rng: Rng, error: float) -> Cover:
    """Search for all blocks, (n, m) float64, to a squared sine of at most ``error``.

    The largest entry of all is 1, or all are zero.
    """
    parts = []
    for begin in range(0, max(len(blocks), 1), ROWS):
        part = blocks[begin : begin + ROWS]
        norms = part.square().sum(dim=1).sqrt()
        alive = (norms > LEAST_NORM).nonzero().reshape(-1)
        norms = norms[alive]
        rows = part[alive] / norms[:, None]
        numbers, cosines = _search(rows, rng, error)
        found = numbers >= 0
        where, none = alive + begin, ~found
        parts.append(
            (where[found], where[none], norms[found], cosines[found], numbers[found])
        )
    return Cover(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
