"""A count sketch of few entries, and the way back: peeling.

The entry at position i lies in one cell of each of three disjoint sub-tables, with a
sign: ``cells[h_j(i)] += g_j(i) x_i``. Cells and signs come from the counter hash, so
whoever knows the seed and the positions knows them. A cell that holds a single entry
gives it away; taken out of its other cells, it leaves new cells of single entries,
until none is left. In the integers all of this is exact, whatever was summed.

References
----------
H. Li, Y. Xu et al., "Accelerating Distributed Deep Learning using Lossless Homomorphic
Compression", 2024, arXiv 2402.07529. M. Molloy, "Cores in random hypergraphs and
Boolean formulas", Random Structures and Algorithms 2005: with three cells an entry, all
are given back with a probability that tends to 1 if there are more than 1.222 cells
for each, and a core is left with a probability that tends to 1 if there are fewer.

Differences: entries are hashed by themselves, not by rows of 1024, so that a tensor
is one problem and not many small ones; the sub-tables are disjoint, so that no
entry meets itself; counts do not overflow, since they are derived from the positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..rng import stream

SUB_TABLES = 3
#: Random positions need some 20 rounds, and a few hundred close to the threshold. A
#: chain made by hand, which gives away one entry a round, is left half done.
MAX_ROUNDS = 1000


@dataclass(frozen=True)
class Edges:
    """Where u entries lie: ``cells`` (3, u) of int32, ``signs`` (3, u) of int8."""

    cells: Tensor
    signs: Tensor

    def rows(self, which: Tensor) -> Edges:
        """Give those of some entries."""
        return Edges(self.cells[:, which], self.signs[:, which])


@dataclass(frozen=True)
class Peeling:
    """What came out of the cells.

    Attributes
    ----------
    values : Tensor
        (u,) int64; 0 where ``left``.
    left : Tensor
        Rows, increasing, of the entries that could not be had.
    rest : Tensor
        What is left in the cells without the others.
    load : Tensor
        How many of those left lie in each cell.
    rounds : int
        Each takes out what lies alone at its start.
    """

    values: Tensor
    left: Tensor
    rest: Tensor
    load: Tensor
    rounds: int


def enough_cells(union: int) -> int:
    """Cells for so many entries: ``1.3 u + 64``, in three equal sub-tables.

    The 64 are for small u, where a pair of entries with equal cells is not rare: some
    2% of all seeds leave something behind at u near 100, fewer for larger u.
    """
    return SUB_TABLES * -(-(13 * union + 640) // (10 * SUB_TABLES))


def hashed(positions: Tensor, num_cells: int, seed: int) -> Edges:
    """Give cells and signs of the entries at ``positions`` (int64 below 2^32)."""
    size = num_cells // SUB_TABLES
    shape = SUB_TABLES, positions.numel()
    cells = torch.empty(shape, dtype=torch.int32, device=positions.device)
    signs = torch.empty(shape, dtype=torch.int8, device=positions.device)
    for table in range(SUB_TABLES):
        bits = stream(seed, "sketch", table).bits32_at(positions)
        signs[table] = 1 - 2 * (bits & 1)
        high = ((bits >> 1) & 0x7FFFFFFF).to(torch.int64)
        cells[table] = high.mul_(size).bitwise_right_shift_(31).add_(table * size)
    return Edges(cells, signs)


def folded(edges: Edges, values: Tensor, num_cells: int) -> Tensor:
    """Add the entries up in their cells."""
    cells = torch.zeros(num_cells, dtype=torch.int64, device=values.device)
    _add(cells, edges, values)
    return cells


def _add(cells: Tensor, edges: Edges, values: Tensor) -> None:
    for places, signs in zip(edges.cells, edges.signs, strict=True):
        cells.index_add_(0, places, signs * values)


def _enlist(
    load: Tensor, owners: Tensor, edges: Edges, rows: Tensor, times: int
) -> None:
    """Add 1 and its row for each entry to its cells; or subtract, ``times`` -1."""
    each = torch.full_like(rows, times, dtype=load.dtype)
    for places in edges.cells:
        load.index_add_(0, places, each)
        owners.index_add_(0, places, rows, alpha=times)


def peel(edges: Edges, cells: Tensor) -> Peeling:
    """Take out all entries that can be had.

    Work and memory are linear in the number of entries and cells, on the device of
    the cells; each round is a handful of operations on whole tensors.
    """
    count, size = edges.cells.shape[1], cells.numel() // SUB_TABLES
    rest, owners = cells.clone(), torch.zeros_like(cells)
    load = torch.zeros_like(cells, dtype=torch.int32)  # counts, as the turns below
    rows = torch.arange(count, device=cells.device)
    _enlist(load, owners, edges, rows, 1)
    values = torch.zeros_like(rows)
    # Which of the lone cells gave the entry away.
    turn = torch.full_like(rows, -1, dtype=torch.int32)
    alone = (load == 1).nonzero().reshape(-1)
    rounds = 0
    while alone.numel() and rounds < MAX_ROUNDS:
        rounds += 1
        rows = owners[alone]
        number = torch.arange(rows.numel(), dtype=turn.dtype, device=rows.device)
        turn[rows] = number  # an entry that lies alone several times is taken once
        once = turn[rows] == number
        rows, alone = rows[once], alone[once]
        taken = edges.rows(rows)
        found = edges.signs[alone // size, rows] * rest[alone]
        values[rows] = found
        _add(rest, taken, -found)
        _enlist(load, owners, taken, rows, -1)
        alone = taken.cells[load[taken.cells] == 1]
    return Peeling(values, (turn < 0).nonzero().reshape(-1), rest, load, rounds)


def estimates(edges: Edges, rest: Tensor) -> Tensor:
    """Guess entries by the median of their three signed cells.

    Each of the three is right on average over the signs of the others.
    """
    return (edges.signs * rest[edges.cells]).median(0).values
