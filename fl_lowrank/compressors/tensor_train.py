"""A chain of small tensors: `TensorTrain`.

``C(x)[i_1, ..., i_N] = G_1[i_1] G_2[i_2] ... G_N[i_N]``, a product of matrices, with
cores G_k of shape (r_(k-1), n_k, r_k) and r_0 = r_N = 1.

References
----------
I. Oseledets, "Tensor-Train Decomposition", SIAM J. Scientific Computing 2011:
algorithm 1 (TT-SVD) and theorem 2.2. A. Novikov, D. Podoprikhin, A. Osokin, D. Vetrov,
"Tensorizing Neural Networks", NIPS 2015, arXiv 1509.06569: matrices with their
dimensions split.

Differences: by accuracy, what a step leaves of its share of the error is used by those
after it. All cores but the last are sent with their columns at the lengths of their
parts (see `tensors`). Row and column dimensions of a matrix are not paired.
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

TRAIN = Kind(
    20, "train", ("layout", "cores"), (Coding.VARINTS, Coding.RAW), inner=("cores",)
)


@dataclass(frozen=True)
class TensorTrain(TensorFormat):
    """Singular value decompositions of one unfolding after the other.

    Guarantee: by accuracy ``Contractive(1 - accuracy^2)``; by rank
    ``Contractive(delta)`` with delta the product over k < N of r_k over
    ``min(r_(k-1) n_k, n_(k+1) ... n_N)``; both for every message. The squared error is
    at most N - 1 times that of the best approximation of these ranks (Oseledets, 2011).
    Wire cost: ``sum r_(k-1) n_k r_k`` numbers; where that is no less than the tensor
    has, the tensor itself. Time: O(d r n_k) for each step.

    Parameters
    ----------
    rank, accuracy, order
        See `TensorFormat`; ``rank`` bounds each r_k. With ``order=2`` and a matrix,
        this is the truncated singular value decomposition.
    """

    name: ClassVar[str] = "tensor_train"
    kind: ClassVar[Kind] = TRAIN

    @staticmethod
    def steps(dims: Shape, most: int) -> list[tuple[int, int]]:
        """One between two neighbours each."""
        result, before, after = [], 1, math.prod(dims)
        for n in dims[:-1]:
            after //= n
            bound = min(before * n, after)
            result.append((min(most, bound), bound))
            before = result[-1][0]
        return result

    @staticmethod
    def sizes(dims: Sequence[int], ranks: Sequence[int]) -> tuple[int, ...]:
        """All cores in one field."""
        chain = zip((1, *ranks), dims, (*ranks, 1), strict=True)
        return (sum(a * n * b for a, n, b in chain),)

    @staticmethod
    def factorise(
        x: Tensor, most: int, allowed: float
    ) -> tuple[list[int], tuple[Tensor, ...]]:
        """Split off one dimension after the other."""
        cores, ranks = [], [1]
        start, rest = squared_norm(x), x.reshape(1, -1)
        for k, n in enumerate(x.shape[:-1]):
            left = allowed - (start - squared_norm(rest))
            rows = rest.reshape(ranks[-1] * n, -1)
            basis = dominant_basis(rows, most, max(left, 0.0) / (x.ndim - 1 - k))
            rest = basis.T @ rows
            cores.append((basis * rest.norm(dim=1)).reshape(-1))
            ranks.append(basis.shape[1])
        return ranks[1:], (torch.cat((*cores, rest.reshape(-1))),)

    @staticmethod
    def decode(payload: Payload) -> Tensor:
        """Multiply from left to right; no product has more entries than the tensor."""
        dims, ranks = read_layout(payload, bonds=1)
        (size,) = TensorTrain.sizes(dims, ranks)
        cores, after = payload.tensor("cores"), payload.numel
        for n, r in zip(dims, ranks, strict=False):
            after //= n
            need(r <= after, payload, f"ranks {ranks} for dimensions {dims}")
        need(
            cores.numel() == size < payload.numel,
            payload,
            f"{cores.numel()} numbers for {dims} and {ranks}",
        )
        work = working_dtype(payload.dtype)
        out, at = torch.ones(1, 1, dtype=work, device=cores.device), 0
        for a, n, b in zip((1, *ranks[:-1]), dims[:-1], ranks, strict=True):
            core = unit_columns(cores[at : at + a * n * b].reshape(a * n, b), work)
            out = (out @ core.reshape(a, n * b)).reshape(-1, b)
            at += a * n * b
        return finish(payload, out @ cores[at:].to(work).reshape(ranks[-1], dims[-1]))
