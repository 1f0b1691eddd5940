"""Uniform directions by number: the t-th one of a seed, bit for bit on every device.

Both ends of a wire draw them, and an encoder that remembers what its receiver decodes
must know the very same numbers. So nothing is used but integer arithmetic and sums,
products and quotients of float64, which IEEE 754 fixes to the last bit, one kernel
each. Logarithm, sine and square root are made of these: those of a library differ in
the last bits between devices (torch.sqrt on a CPU is off by two).

Normal numbers are made by the method of Box and Muller (1958) from 32-bit draws and
rounded to multiples of 2^-20. Their squares then add up exactly in any order, and the
direction is the vector over its length. What the polynomials leave out is 1e-9, far
below that grid.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..rng import Rng

#: Squares of so many normal numbers add up below 2^53 units.
MAX_DIMENSIONS = 64
_GRID = 2.0**20
_SINE = [(-1.0) ** k / math.factorial(2 * k + 1) for k in range(6)]
_COSINE = [(-1.0) ** k / math.factorial(2 * k) for k in range(7)]
_POWERS = torch.tensor([2.0**e for e in range(-40, 41)], dtype=torch.float64)
_LOG_2 = 0.6931471805599453
_ATANH = [1.0 / (2 * k + 1) for k in range(7)]


def counters_of(dimensions: int) -> int:
    """Counters that one direction takes: two for each pair of normal numbers."""
    return dimensions + dimensions % 2


def directions_from(rng: Rng, start: int, count: int, like: Tensor) -> Tensor:
    """Draw the directions ``start``, ..., one for each row; (count, m) float64.

    ``like`` gives the number of dimensions m, its last size, and the device.
    """
    width = counters_of(like.shape[-1])
    bits = rng.bits32(count * width, like.device, start * width)
    return _directions(bits.reshape(count, width), like.shape[-1])


def directions_at(rng: Rng, numbers: Tensor, dimensions: int) -> Tensor:
    """Jump to the directions with these numbers, int64 (n,); (n, m) float64."""
    width = counters_of(dimensions)
    counters = numbers[:, None] * width + torch.arange(width, device=numbers.device)
    return _directions(rng.bits32_at(counters), dimensions)


def _directions(bits: Tensor, dimensions: int) -> Tensor:
    """Directions from 32-bit patterns, (n, width): radii first, then angles."""
    half = bits.shape[1] // 2
    unsigned = bits[:, :half].to(torch.int64) & 0xFFFFFFFF
    uniform = (unsigned.to(torch.float64) + 0.5) * 2.0**-32
    radius = _sqrt(_log(uniform) * -2.0)
    # A quarter of the angle, so that the polynomials converge; doubled twice.
    angle = bits[:, half:].to(torch.float64) * (math.pi / 2.0**33)
    square = angle * angle
    sine, cosine = angle * _polynomial(_SINE, square), _polynomial(_COSINE, square)
    for _ in range(2):
        sine, cosine = (
            sine * cosine * 2.0,
            (cosine - sine) * (cosine + sine),
        )
    normal = torch.cat((radius * cosine, radius * sine), dim=1)[:, :dimensions]
    units = torch.round(normal * _GRID)
    return units / _sqrt((units * units).sum(dim=1, keepdim=True))


def _log(x: Tensor) -> Tensor:
    """Natural logarithm of float64 numbers in (0, 1)."""
    mantissa, exponent = torch.frexp(x)
    low = mantissa < math.sqrt(0.5)
    mantissa = torch.where(low, mantissa * 2.0, mantissa)
    exponent = exponent - low.to(exponent.dtype)
    ratio = (mantissa - 1.0) / (mantissa + 1.0)
    series = ratio * _polynomial(_ATANH, ratio * ratio) * 2.0
    return exponent.to(torch.float64) * _LOG_2 + series


def _sqrt(x: Tensor) -> Tensor:
    """Square root of float64 numbers in [2^-80, 2^80), by Newton's iteration."""
    mantissa, exponent = torch.frexp(x)
    odd = exponent & 1
    mantissa = mantissa * (odd + 1)  # in [0.5, 2)
    root = (mantissa + 1.0) * 0.5
    for _ in range(4):  # relative errors of 6e-2, 2e-3, 2e-6, 1e-12, none
        root = (root + mantissa / root) * 0.5
    scale = _POWERS.to(x.device)[(exponent - odd) // 2 + 40]
    return root * scale


def _polynomial(coefficients: list[float], x: Tensor) -> Tensor:
    """Evaluate by Horner's rule, multiplication and addition apart."""
    out = torch.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        out.mul_(x).add_(coefficient)
    return out
