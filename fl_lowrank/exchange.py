"""What the two ends of an edge do: the one gains what the other loses.

An edge moves ``f = w (x_j - x_i)`` from j to i. Rounding ``x_i + f`` changes the sum of
all vertices, in the same direction where all of them agree; so j loses not f but what
i has gained after rounding, ``fl(x_i + f) - x_i``. This difference is exact (T. J.
Dekker, "A Floating-Point Technique for Extending the Available Precision", 1971), and
so is taking it from x_j where both have the same exponent: the sum is kept to the last
bit there. In float32, 10^4 steps with local noise on the complete graph of 4 moved the
mean by 1e-7 of its norm, and by 2e-6 where each end rounds for itself. Where the ends'
exponents differ some 1e-8 of the norm is lost or won, which wanders with steps that are
random (to 1e-6 in 10^4 large ones) and adds up under a pull that is the same each time.
Training therefore takes a `flow` in float64 and keeps what rounding leaves of it, see
`consensus.rest`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: Columns at a time on a CPU: few calls, and two rows stay in its cache.
_COLUMNS = 16384
#: Entries at a time of what is computed in float64 on a CPU: a MiB.
_ENTRIES = 1 << 17


@dataclass(frozen=True, eq=False)
class Edges:
    """Edges without a common end, which can exchange at the same time.

    Attributes
    ----------
    first, second : Tensor
        Their ends, int64, shape (edges,).
    weights : Tensor
        Shape (edges, 1), on the device and in the dtype of what is exchanged.
    """

    first: Tensor
    second: Tensor
    weights: Tensor


def exchange(x: Tensor, classes: Sequence[Edges], known: Tensor | None) -> Tensor:
    """Exchange along classes of edges.

    Parameters
    ----------
    x : Tensor
        Shape (n, d).
    classes : sequence of Edges
        One after the other.
    known : Tensor, optional
        Whose differences are exchanged, like x. Without it, those of x after the
        classes before.

    Returns
    -------
    Tensor
        Like x. No two numbers are added in an order that depends on the device.
    """
    out = x.clone()
    along = _exchange_at_once if x.is_cuda else _exchange_in_turn
    along(out, classes, out if known is None else known)
    return out


def _exchange_at_once(new: Tensor, classes: Sequence[Edges], old: Tensor) -> None:
    """Exchange in place: few calls, each for all edges of a class."""
    for edges in classes:
        i, j = edges.first, edges.second
        moved = old.index_select(0, j).sub_(old.index_select(0, i))
        before = new.index_select(0, i)
        moved.mul_(edges.weights).add_(before)
        new.index_copy_(0, i, moved)
        gained = moved.sub_(before)
        new.index_copy_(0, j, new.index_select(0, j).sub_(gained))


def _exchange_in_turn(new: Tensor, classes: Sequence[Edges], old: Tensor) -> None:
    """Do the same edge by edge: nothing is gathered, so that less memory moves."""
    ends = [
        (int(i), int(j), float(weight))
        for edges in classes
        for i, j, weight in zip(edges.first, edges.second, edges.weights, strict=True)
    ]
    for start in range(0, new.shape[1], _COLUMNS):
        columns = slice(start, start + _COLUMNS)
        into, known = new[:, columns].unbind(), old[:, columns].unbind()
        moved, after = torch.empty_like(into[0]), torch.empty_like(into[0])
        for i, j, weight in ends:
            torch.sub(known[j], known[i], out=moved)
            torch.add(moved.mul_(weight), into[i], out=after)
            gained = torch.sub(after, into[i], out=moved)
            into[i].copy_(after)
            into[j].sub_(gained)


def flow(known: Tensor, classes: Sequence[Edges]) -> Tensor:
    """Give what all rows would gain of each other, without adding it to them.

    Parameters
    ----------
    known : Tensor
        Shape (n, d).
    classes : sequence of Edges
        All of them exchange at once; with float64 weights.

    Returns
    -------
    Tensor
        float64, shape (n, d). As above, no order of a sum depends on the device.
    """
    out = torch.zeros_like(known, dtype=torch.float64)
    for columns in slices(known):
        part, into = known[:, columns].double(), out[:, columns]
        for edges in classes:
            i, j = edges.first, edges.second
            moved = part.index_select(0, j).sub_(part.index_select(0, i))
            moved.mul_(edges.weights)
            into.index_add_(0, i, moved).index_add_(0, j, moved, alpha=-1)
    return out


def slices(x: Tensor) -> list[slice]:
    """Cut the columns of x so that some float64 copies of a part stay in a CPU's cache.

    On a GPU there is one part.
    """
    n, d = x.shape
    width = d if x.is_cuda else _ENTRIES // max(n, 1)
    width = max(width, 1)
    return [slice(start, start + width) for start in range(0, d, width)]


def average_pairs(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Replace both ends of one edge after the other by their mean.

    Parameters
    ----------
    x : Tensor
        Shape (n, d), any floating-point dtype and device.
    first, second : Tensor
        The ends, int64, shape (b,), in the order in which they meet; an edge may
        come again.

    Returns
    -------
    Tensor
        Like x; two ends then agree up to one rounding, and the sum is kept.
    """
    half = torch.full((1, 1), 0.5, dtype=x.dtype, device=x.device)
    ends = torch.stack((first, second), dim=1).to(x.device)
    return exchange(x, [Edges(pair[:1], pair[1:], half) for pair in ends], None)
