"""Orthonormal bases and truncated factorisations.

Everything runs on the device of its input. Halves are computed in float32, since
neither CPU nor CUDA factorises them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .rng import Rng


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


def truncated_svd(a: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Give the best rank-``rank`` factors: ``left`` (m, r), ``right`` (n, r).

    ``left @ right.T`` is the nearest matrix of that rank in Frobenius norm
    (Eckart and Young, 1936). The singular values are split evenly, so both
    factors have the same scale; this matters when they are quantised.
    """
    u, s, vh = torch.linalg.svd(a, full_matrices=False)
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
