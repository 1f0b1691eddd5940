"""A random rotation of vectors of any length by Hadamard matrices.

A Hadamard matrix of order n has entries +-1 and orthogonal rows. They are known for
the powers of two (Sylvester) and, among others, for ``q + 1`` with a prime q = 3 modulo
4 (Paley); products of orders are orders. `window_length` is the largest product of a
power of two and one of a few of Paley's, n: more than 0.89 d from d = 64 on.

The rotation of d entries is ``y = H2 D2 H1 D1 x``: random signs D, a transform H1 of
the first n entries, one H2 of the last n, nothing is padded. Two transforms, because
one leaves ``sum_j +-x_j``, whose distribution shows the few largest entries of x; the
second sums a spread-out vector, and y is nearly normal whatever x was.

Bounds, over the random signs, for every x and d, with ``u = y sqrt(d) / |x|``
(A. Khintchine, 1923; S. Szarek, "On the best constants in the Khinchin inequality",
Studia Math. 1976, for p = 1; the expansion of the square for p = 4)::

    E |y|_1^2 >= (n / 2) |x|^2        E sum_i u_i^4 <= 3 d^2 / n

Proof, for |x| = 1, with a^2 the energy of the first n entries and r = d - n: every y_i
is a sum of independent signs times numbers; of these the energy e_i is a^2 / n for the
first r entries. For the others it is that of H1 D1 x on the last n, over n, whose mean
is ``(1 - a^2 r / n) / n``. As ``E |y_i| >= E sqrt(e_i / 2)``, and e_i n <= 1, so that
its root is at least itself, ``E |y|_1 sqrt(2 / n) >= a r / n + 1 - a^2 r / n >= 1``.
For the fourth powers, ``E y_i^4 <= 3 E e_i^2 <= 3 E e_i / n``, and the e_i add up to 1
in the mean.

References
----------
R. E. A. C. Paley, "On orthogonal matrices", J. Math. Phys. 1933.
N. Ailon, B. Chazelle, "The fast Johnson-Lindenstrauss transform", SIAM J. Comput. 2009
(random signs before a Hadamard transform).
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from .rng import Rng

# What follows decides which rotation a seed means: it is part of the wire format.
#: Primes q = 3 modulo 4 whose Paley order q + 1 is no smaller order times a power of
#: two. Larger ones would cost more than the entries they add to the window are worth.
_PRIMES = (11, 19, 43, 59, 67, 71, 83, 103, 107)
_ORDERS = (1, *(q + 1 for q in _PRIMES))
#: A small order is preferred to a larger one if its window leaves out at most so much.
_SPARE = 1 / 16
#: Sylvester factors: of 2^3 they are the fastest on a CPU, smaller ones wait for memory
#: and larger ones for arithmetic; only the innermost must have longer rows.
_LOG_STEP = 3
_LOG_INNERMOST = 5
_CHUNK = 1 << 20  # entries whose signs are drawn at a time; a multiple of 32


def window_length(d: int) -> int:
    """Entries that one transform spans, at most ``d`` and more than ``d / 2``."""
    return math.prod(_window(d))


@lru_cache(maxsize=4096)
def _window(d: int) -> tuple[int, int]:
    """Give the Paley order and the power of two of the window for d >= 1 entries."""
    fits = [(a, 1 << (d // a).bit_length() - 1) for a in _ORDERS if a <= d]
    good = (f for f in fits if math.prod(f) >= (1.0 - _SPARE) * d)
    return next(good, max(fits, key=math.prod))


@lru_cache(maxsize=64)
def hadamard_matrix(order: int) -> Tensor:
    """Give an orthonormal Hadamard matrix in float64, entries ``+-1 / sqrt(order)``.

    Parameters
    ----------
    order : int
        A power of two, or ``q + 1`` for a prime q = 3 modulo 4.
    """
    if order & (order - 1) == 0:
        h = torch.ones(1, 1, dtype=torch.float64)
        for _ in range(order.bit_length() - 1):
            h = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=h.dtype), h)
        return h / math.sqrt(order)
    q = order - 1
    i = torch.arange(q)
    residue = torch.full((q,), -1.0, dtype=torch.float64)
    residue[i * i % q] = 1.0
    residue[0] = 0.0
    h = torch.eye(order, dtype=torch.float64)
    h[0, 1:] = 1.0
    h[1:, 0] = -1.0
    h[1:, 1:] += residue[(i - i[:, None]) % q]
    return h / math.sqrt(order)


def rotate(x: Tensor, rng: Rng) -> Tensor:
    """Give ``y = H2 D2 H1 D1 x``; orthonormal, so that ``|y| = |x|``.

    Parameters
    ----------
    x : Tensor
        Shape (d,), float32 or float64, on any device; ``|x|`` must fit its dtype.
    rng : Rng
        Of the signs. The same one must be given to `rotate_back`.
    """
    d = x.numel()
    y, spare = x.clone(), torch.empty_like(x)
    if d > 0:
        n = window_length(d)
        _flip(y, rng.child("first"))
        _transform(y[:n], spare[:n], _window(d), inverse=False)
        _flip(y, rng.child("second"))
        _transform(y[d - n :], spare[:n], _window(d), inverse=False)
    return y


def rotate_back(y: Tensor, rng: Rng) -> Tensor:
    """Invert `rotate`, up to rounding."""
    d = y.numel()
    x, spare = y.clone(), torch.empty_like(y)
    if d > 0:
        n = window_length(d)
        _transform(x[d - n :], spare[:n], _window(d), inverse=True)
        _flip(x, rng.child("second"))
        _transform(x[:n], spare[:n], _window(d), inverse=True)
        _flip(x, rng.child("first"))
    return x


def _flip(x: Tensor, rng: Rng) -> None:
    """Multiply by random signs, in place: 32 of one hash."""
    shifts = torch.arange(0, 32, 8, dtype=torch.int32, device=x.device)
    table = _byte_signs().to(x)
    for begin in range(0, x.numel(), _CHUNK):
        part = x[begin : begin + _CHUNK]
        words = rng.bits32(-(-part.numel() // 32), x.device, start=begin // 32)
        octets = ((words[:, None] >> shifts) & 255).view(-1)
        part *= table.index_select(0, octets).view(-1)[: part.numel()]


@lru_cache(maxsize=1)
def _byte_signs() -> Tensor:
    """Give the signs that each octet stands for, (256, 8), in float64."""
    bits = (torch.arange(256)[:, None] >> torch.arange(8)) & 1
    return 1.0 - 2.0 * bits.to(torch.float64)


def _transform(
    x: Tensor, spare: Tensor, window: tuple[int, int], *, inverse: bool
) -> None:
    """Multiply by the Kronecker product of the Hadamard matrices of a window, in place.

    ``spare`` is of the same size. New memory for every factor would take longer than
    the arithmetic.
    """
    order, power = window
    log = power.bit_length() - 1
    steps, rest = divmod(max(log - _LOG_INNERMOST, 0), _LOG_STEP)
    after, now, then = x.numel(), x, spare
    for factor in (order, 1 << rest, *[1 << _LOG_STEP] * steps):
        if factor > 1:
            h = hadamard_matrix(factor).to(x)
            after //= factor
            blocks = (-1, factor, after)
            torch.matmul(h.T if inverse else h, now.view(blocks), out=then.view(blocks))
            now, then = then, now
    h = hadamard_matrix(after).to(x)  # a power of two: symmetric
    torch.mm(now.view(-1, after), h, out=then.view(-1, after))
    if then is not x:
        x.copy_(then)
