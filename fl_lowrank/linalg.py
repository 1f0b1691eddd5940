"""Orthonormal bases and truncated factorisations.

Everything runs on the device of its input. Halves are computed in float32, since
neither CPU nor CUDA factorises them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .rng import Rng

_PATTERNS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Precision in which tensors of ``dtype`` are computed with."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def orthonormal(a: Tensor) -> Tensor:
    """Give an orthonormal basis, (m, r), whose span holds the columns of ``a``.

    Householder QR: also for dependent or zero columns the result is
    orthonormal, unlike Gram-Schmidt.
    """
    basis: Tensor = torch.linalg.qr(a, mode="reduced").Q
    return basis


def bit_pattern(x: Tensor) -> Tensor:
    """View floating-point numbers as signed integers of the same width.

    Those of finite numbers that are not negative are in the same order.
    """
    return x.view(_PATTERNS[x.dtype.itemsize])


def largest_magnitude(x: Tensor) -> Tensor:
    """Give the largest magnitude of a tensor that is not empty, as a scalar tensor."""
    low, high = torch.aminmax(x)
    return torch.maximum(low.abs(), high.abs())


def normalised(x: Tensor) -> tuple[Tensor, float]:
    """Give ``x`` in working precision over its largest magnitude, and that.

    Squares of very large or very small entries then neither overflow nor vanish.
    The zero tensor and the empty one come back with scale 0.
    """
    work = x.to(working_dtype(x.dtype))
    if not work.numel():
        return work, 0.0
    top = largest_magnitude(work)
    peak = float(top)
    # Divided by a tensor: CUDA would multiply by the reciprocal of a Python number,
    # which is infinite for subnormal ones.
    return (work / top, peak) if peak > 0.0 else (work, 0.0)


def squared_norm(a: Tensor) -> float:
    """Sum the squares in float64."""
    return float(a.to(torch.float64).square().sum())


def least_rank(squares: Tensor, allowed: float) -> int:
    """Give the smallest r of at least 1 such that ``squares[r:]`` add to ``allowed``.

    ``squares`` are squared singular values in falling order, float64.
    """
    tails = squares.flip(0).cumsum(0)
    return max(1, squares.numel() - int((tails <= allowed).sum()))


def truncated_svd(
    a: Tensor, rank: int, allowed: float | None = None
) -> tuple[Tensor, Tensor]:
    """Give the best rank-``rank`` factors: ``left`` (m, r), ``right`` (n, r).

    ``left @ right.T`` is the nearest matrix of that rank in Frobenius norm
    (Eckart and Young, 1936). With ``allowed``, the rank is the smallest one with at
    most this squared error instead. The singular values are split evenly, so both
    factors have the same scale; this matters when they are quantised.
    """
    u, s, vh = torch.linalg.svd(a, full_matrices=False)
    if allowed is not None:
        rank = least_rank(s.to(torch.float64).square(), allowed)
    root = s[:rank].sqrt()
    return u[:, :rank] * root, vh[:rank].T * root


def range_finder(a: Tensor, columns: int, num_iterations: int, rng: Rng) -> Tensor:
    """Find an orthonormal basis, (m, columns), of nearly the range of ``a``.

    Halko, Martinsson and Tropp, "Finding Structure with Randomness" (SIAM Review
    2011, arXiv 0909.4061), algorithm 4.4: Gaussian start, ``num_iterations`` power
    steps with an orthonormalisation at each half step.
    """
    start = rng.normal(a.shape[1], columns, device=a.device).to(a.dtype)
    q = orthonormal(a @ start)
    for _ in range(num_iterations):
        q = orthonormal(a @ orthonormal(a.T @ q))
    return q


def dominant_basis(a: Tensor, most: int, allowed: float) -> Tensor:
    """Give an orthonormal basis, (m, r), of the leading left singular vectors.

    The smallest r at which the rest has a squared norm of at most ``allowed``, and no
    more than ``most``. By the eigenvectors of the smaller Gram matrix, which resolve
    parts down to 1e-8 of the norm in float64; ``a`` must be of that dtype.
    """
    tall = a.shape[0] > a.shape[1]
    squares, vectors = torch.linalg.eigh(a.T @ a if tall else a @ a.T)
    squares = squares.flip(0).clamp(min=0.0)
    chosen = vectors.flip(1)[:, : min(most, least_rank(squares, allowed))]
    return orthonormal(a @ chosen) if tall else chosen
