"""A small core and a basis for each dimension: `Tucker`.

``C(x) = core x_1 U_1 x_2 ... x_N U_N`` with U_k of shape (n_k, r_k); a dimension that
keeps all its n_k has no basis, and its coordinates stay as they are.

References
----------
L. De Lathauwer, B. De Moor, J. Vandewalle, "A Multilinear Singular Value
Decomposition", SIAM J. Matrix Analysis 2000. N. Vannieuwenhoven, R. Vandebril,
K. Meerbergen, "A New Truncation Strategy for the Higher-Order Singular Value
Decomposition", SIAM J. Scientific Computing 2012: algorithm 3.1 (ST-HOSVD).

Differences: by accuracy, what a dimension leaves of its share of the error is used by
those after it. The bases are sent at the lengths of their parts (see `tensors`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..linalg import dominant_basis, squared_norm, working_dtype
from ..types import Coding, Kind, Payload, Shape
from .common import finish, need
from .tensors import TensorFormat, read_layout, unit_columns

TUCKER = Kind(
    19,
    "tucker",
    ("layout", "core", "bases"),
    (Coding.VARINTS, Coding.RAW, Coding.RAW),
    inner=("core", "bases"),
)


@dataclass(frozen=True)
class Tucker(TensorFormat):
    """Sequentially truncated higher-order singular value decomposition.

    Guarantee: by accuracy ``Contractive(1 - accuracy^2)``; by rank
    ``Contractive(delta)`` with delta the product over the dimensions of r_k over
    ``min(n_k, r_1 ... r_(k-1) n_(k+1) ... n_N)``; both for every message. The squared
    error is at most N times that of the best approximation of these ranks
    (Vannieuwenhoven et al., 2012). Wire cost: ``prod r_k + sum n_k r_k`` numbers, the
    sum over dimensions with r_k < n_k; where that is no less than the tensor has, the
    tensor itself. Time: O(d n_k) for each dimension.

    Parameters
    ----------
    rank, accuracy, order
        See `TensorFormat`; ``rank`` bounds each r_k.
    """

    name: ClassVar[str] = "tucker"
    kind: ClassVar[Kind] = TUCKER

    @staticmethod
    def steps(dims: Shape, most: int) -> list[tuple[int, int]]:
        """One for each dimension."""
        result, count = [], math.prod(dims)
        for n in dims:
            others = count // n
            bound = min(n, others)
            result.append((min(most, bound), bound))
            count = others * result[-1][0]
        return result

    @staticmethod
    def sizes(dims: Sequence[int], ranks: Sequence[int]) -> tuple[int, ...]:
        """Core and bases."""
        pairs = zip(dims, ranks, strict=True)
        return math.prod(ranks), sum(n * r for n, r in pairs if r < n)

    @staticmethod
    def factorise(
        x: Tensor, most: int, allowed: float
    ) -> tuple[list[int], tuple[Tensor, ...]]:
        """Project one dimension after the other; the first one becomes the last."""
        bases, ranks = [x.new_empty(0)], []
        start, core = squared_norm(x), x.reshape(-1)
        for k, n in enumerate(x.shape):
            rest = allowed - (start - squared_norm(core))
            rows = core.reshape(n, -1)
            basis = dominant_basis(rows, most, max(rest, 0.0) / (x.ndim - k))
            ranks.append(basis.shape[1])
            if ranks[-1] < n:
                rows = basis.T @ rows
                bases.append((basis * rows.norm(dim=1)).reshape(-1))
            core = rows.T.reshape(-1)
        return ranks, (core, torch.cat(bases))

    @staticmethod
    def decode(payload: Payload) -> Tensor:
        """Multiply one dimension after the other by its basis."""
        dims, ranks = read_layout(payload, bonds=0)
        sizes = Tucker.sizes(dims, ranks)
        core, bases = payload.tensor("core"), payload.tensor("bases")
        need(
            all(r <= n for n, r in zip(dims, ranks, strict=True))
            and (core.numel(), bases.numel()) == sizes
            and sum(sizes) < payload.numel,
            payload,
            f"{core.numel()} and {bases.numel()} numbers for {dims} and {ranks}",
        )
        work = working_dtype(payload.dtype)
        out, at = core.to(work), 0
        for n, r in zip(dims, ranks, strict=True):
            rows = out.reshape(r, -1)
            if r < n:
                rows = unit_columns(bases[at : at + n * r].reshape(n, r), work) @ rows
                at += n * r
            out = rows.T.reshape(-1)
        return finish(payload, out)
