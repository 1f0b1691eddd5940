"""What rounding keeps back of a model when it gains something.

A vertex trains x, in the dtype of its model, and holds x + rest: a flow is added to
both in float64, x is the rounded sum and rest what is left of it. Flows that are zero
together then leave the mean of x + rest where it is, and x is half a unit in its last
place away. If x alone were kept, one and the same rounding could be lost at every
step: under a pull that is the same each time float32 moved the mean by 1e-8 of its
norm a step, 1e-4 in 10^4 steps.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..exchange import slices

#: It is half a unit in x's last place at most, so that its own rounding is 4e-15 of a
#: float32 x.
DTYPE = torch.float32


def rounded(exact: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Split float64 numbers.

    Parameters
    ----------
    exact : Tensor
        float64, any shape.
    dtype : torch.dtype
        Of the first part, floating-point.

    Returns
    -------
    tuple of Tensor and Tensor
        The rounded numbers, and float32 for what they lack.
    """
    x = exact.to(dtype)
    return x, (exact - x).to(DTYPE)


def total(x: Tensor, rest: Tensor) -> Tensor:
    """Give x + rest in float64."""
    return x.to(torch.float64, copy=True).add_(rest)


def gain(
    x: Tensor, rest: Tensor, flow: Callable[[slice], Tensor], vertices: Tensor
) -> None:
    """Let vertices gain what flows to them, in place.

    Parameters
    ----------
    x, rest : Tensor
        Shape (n, d).
    flow : callable
        Gives the flows of some columns, float64, shape (n, any).
    vertices : Tensor
        Those at an edge that mixes, int64. x + rest of the others could be rounded
        anew as well, but over a network they are not heard of.
    """
    if not len(vertices):
        return
    # All rows as a slice: what is indexed is copied.
    every = len(vertices) == len(x)
    some = slice(None) if every else vertices.to(x.device)
    for columns in slices(x):
        there, kept = x[:, columns], rest[:, columns]
        gained = total(there[some], kept[some]).add_(flow(columns)[some])
        there[some], kept[some] = rounded(gained, x.dtype)
