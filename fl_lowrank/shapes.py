"""Tensors as matrices and back."""

from __future__ import annotations

import math

from torch import Tensor

from .types import Shape


def matrix_shape(shape: Shape) -> tuple[int, int]:
    """Give the m x n view in which a tensor of this shape is factorised.

    Two or more dimensions: rows are the first one and columns all others, so a
    convolution (out, in, kh, kw) becomes out x (in kh kw), as in Vogels et al.,
    "PowerSGD" (NeurIPS 2019, arXiv 1905.13727). One dimension: the divisors
    closest to a square; a prime length stays a single row.
    """
    count = math.prod(shape)
    if count == 0:
        return 0, 0
    if len(shape) >= 2:
        return shape[0], count // shape[0]
    rows = next(m for m in range(math.isqrt(count), 0, -1) if count % m == 0)
    return rows, count // rows


def as_matrix(x: Tensor) -> Tensor:
    """View ``x`` as its matrix (`matrix_shape`)."""
    return x.reshape(matrix_shape(tuple(x.shape)))
