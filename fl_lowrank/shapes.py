"""Tensors as matrices, and as tensors of more dimensions."""

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
    rows = _divisor(count)
    return rows, count // rows


def as_matrix(x: Tensor) -> Tensor:
    """View ``x`` as its matrix (`matrix_shape`)."""
    return x.reshape(matrix_shape(tuple(x.shape)))


def tensor_shape(shape: Shape, order: int) -> Shape:
    """Give the view of at least ``order`` dimensions in which a tensor is factorised.

    Dimensions of one are left out. While there are too few, the largest one that is
    no prime (of equal ones the last) becomes two, as nearly equal as can be:
    1024 x 768 becomes 32 x 32 x 24 x 32 for order 4, and a convolution kernel
    (64, 32, 3, 3) stays as it is. Fewer dimensions come back where all are primes.
    """
    dims = [n for n in shape if n != 1]
    while 0 < len(dims) < order:
        splits = [(n, i) for i, n in enumerate(dims) if _divisor(n) > 1]
        if not splits:
            break
        n, i = max(splits)
        dims[i : i + 1] = [_divisor(n), n // _divisor(n)]
    return tuple(dims)


def _divisor(n: int) -> int:
    """Give the largest divisor up to the square root."""
    return next((m for m in range(math.isqrt(n), 0, -1) if n % m == 0), 1)
