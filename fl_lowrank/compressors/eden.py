"""EDEN: a random rotation makes every input look normal; a normal quantiser codes it.

With ``y = R x`` (`hadamard.rotate`) and ``u = y sqrt(d) / |x|``, each u_i is replaced
by the nearest of M levels that are best for the normal law (`lloyd_max`), q_i; the
decoder gives ``s R^T q``. With ``u`` normal, q has the error D(M) = 0.363, 0.117,
0.0345, 0.0095 at 1, 2, 3, 4 bits. Two scales s, in units of ``|x| / sqrt(d)``:

- `Eden`: ``s = |u|^2 / <u, q>``, so that ``<C(x), x> = |x|^2`` in every message; error
  D / (1 - D);
- `EdenContractive`: ``s = <u, q> / |q|^2``, the projection on q, the least error, D.

Rates between: with ``M = floor(2^bits)``, a random part of the entries has M + 1 levels
and the others M, so many that a code of fixed length would take ``bits`` for an entry.
Below one bit M is 1, whose only level is 0: a random part of the entries is sent by
signs, and `Eden` multiplies by d / k. The part is drawn from the seed of the rotation.

Measured means over seeds, of Gaussian, Student-t3 and Zipf-1 inputs, d = 10^5 to 2^17:

=====  ====================  ================  =======================
bits   NMSE of `Eden`        `EdenContractive`  bits an entry on the wire
=====  ====================  ================  =======================
0.5    2.14                  0.682             0.50
1      0.571                 0.363             1.00
1.5    0.274                 0.215             1.46
2      0.133                 0.117             1.92
3      0.0358                0.0345            2.83
4      0.0096                0.0095            3.77
=====  ====================  ================  =======================

Wire cost: signs as they are, symbols of three or more levels entropy coded, a seed and
a scale of 32 bits for each part (64 for float64): at most ``bits`` for an entry.

References
----------
S. Vargaftik, R. Ben Basat, A. Portnoy, G. Mendelson, Y. Ben-Itzhak, M. Mitzenmacher,
"EDEN: Communication-Efficient and Robust Distributed Mean Estimation for Federated
Learning", ICML 2022, arXiv 2108.08842; the same authors, "DRIVE: One-bit Distributed
Mean Estimation", NeurIPS 2021, arXiv 2105.08339 (one bit, and the projection scale).

Differences: two Hadamard transforms over overlapping windows instead of one over a
padded vector; fractional rates mix M and M + 1 levels instead of two numbers of bits;
symbols are entropy coded.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ..errors import InputError, SettingError
from ..hadamard import rotate, rotate_back, window_length
from ..linalg import normalised, working_dtype
from ..lloyd_max import normal_levels
from ..rng import Rng
from ..types import (
    Compressor,
    Contractive,
    Guarantee,
    NoGuarantee,
    Payload,
    Shape,
    State,
    check_input,
)
from .common import draw_seed, finish
from .eden_payload import (
    MAX_BITS,
    field_of,
    level_values,
    make_payload,
    nearest_levels,
    places_of,
    read_setup,
    split_rate,
)


class Sums(NamedTuple):
    """Of entries with the same levels: number, ``|u|^2``, ``<u, q>``, ``|q|^2``."""

    entries: int
    energy: float
    along: float
    square: float


def _sums(u: Tensor, q: Tensor) -> Sums:
    product = u * u
    energy = float(product.sum())
    along = float(torch.mul(u, q, out=product).sum())
    return Sums(u.numel(), energy, along, float(torch.mul(q, q, out=product).sum()))


@dataclass(frozen=True)
class RotatedQuantizer(Compressor):
    """What `Eden` and `EdenContractive` share: all but the scale.

    Parameters
    ----------
    bits : float
        For an entry, in (0, 8]; also fractions, also below one.
    """

    bits: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.bits <= MAX_BITS:
            msg = (
                f"{self.name}: expected bits in (0, {MAX_BITS}], found {self.bits}; "
                "try bits=1"
            )
            raise SettingError(msg)
        object.__setattr__(self, "bits", float(self.bits))  # one text for 2 and 2.0

    @abstractmethod
    def scales(self, sums: Sequence[Sums], d: int) -> list[float]:
        """Give a factor for each part, in units of ``|x| / sqrt(d)``."""

    def encode(self, x: Tensor, state: State, rng: Rng) -> tuple[Payload, State]:
        """Rotate, round and scale."""
        work, peak = normalised(check_input(self.name, x).reshape(-1))
        d = work.numel()
        shared = Rng(draw_seed(rng, "rotation"))
        u = rotate(work, shared)
        rms = float(torch.linalg.vector_norm(u)) / math.sqrt(max(d, 1))
        if rms > 0.0:
            u /= rms
        levels, fine = split_rate(self.bits, d)
        symbols, sums = {}, []
        for count, place in places_of(shared, levels, fine, d, u.device).items():
            part = u[place]
            symbols[count] = nearest_levels(part, count)
            sums.append(_sums(part, level_values(symbols[count], count, u.dtype)))
        scales = [s * rms * peak for s in self.scales(sums, d)]
        if not all(map(math.isfinite, scales)):
            msg = (
                f"{self.name}: entries up to {peak:.3g} need a scale beyond float64; "
                "scale the tensor down"
            )
            raise InputError(msg)
        return make_payload(x, shared.key, levels, symbols, scales), state

    @staticmethod
    def decode(payload: Payload) -> Tensor:
        """Look the levels up, scale, rotate back."""
        seed, levels, fine, scales = read_setup(payload)
        device = payload.tensor("signs").device
        dtype, d = working_dtype(payload.dtype), payload.numel
        q = torch.zeros(d, dtype=dtype, device=device)
        places = places_of(Rng(seed), levels, fine, d, device)
        largest = max(scales, default=0.0)
        for (count, place), scale in zip(places.items(), scales, strict=True):
            symbols = payload.tensor(field_of(count, levels))
            # Only the ratio here: the product may be beyond float32 before the end.
            ratio = scale / (largest or 1.0)
            q[place] = level_values(symbols, count, dtype).mul_(ratio)
        wide = rotate_back(q, Rng(seed)).to(payload.tensor("scales").dtype)
        return finish(payload, wide.mul_(largest))


@dataclass(frozen=True)
class Eden(RotatedQuantizer):
    """EDEN with the scale that makes it unbiased for a uniformly random rotation.

    Guarantee: none for every input, since the rotation here is not uniform over all.
    Vectors of few entries are biased: (2, 1) always becomes (5/3, 5/3), a squared bias
    of |x|^2 / 9. From 256 entries on none was found, also for vectors of one or two
    nonzero entries (300 pairs of messages, standard error 0.002 |x|^2 at one bit). In
    every message, from one bit on, ``<C(x), x> = |x|^2``. Wire cost and errors: see
    the module.

    Parameters
    ----------
    bits : float
        For an entry, in (0, 8]; also fractions, also below one.
    """

    name: ClassVar[str] = "eden"

    def guarantee(self, shape: Shape) -> Guarantee:
        """Vargaftik et al. (2022) prove it for a uniform rotation."""
        del shape
        return NoGuarantee(
            "a random Hadamard rotation is not uniform over all rotations: unbiased "
            "only in the limit of many entries"
        )

    def scales(self, sums: Sequence[Sums], d: int) -> list[float]:
        """Let ``<C(x), x>`` be the energy of the entries sent, times d / k."""
        along = sum(s.along for s in sums)
        energy = sum(s.energy for s in sums)
        entries = sum(s.entries for s in sums)
        scale = d / entries * energy / along if along > 0.0 else 0.0
        return [scale] * len(sums)


@dataclass(frozen=True)
class EdenContractive(RotatedQuantizer):
    """EDEN with the scale of least error, for error feedback.

    Guarantee: ``Contractive``, proven for every input and length, far below what is
    measured. Entries of M = 2 levels keep the share ``max(n / 2d, 1 / k)`` of their
    energy, with n the window of the rotation (1/2 if d is a power of two, which is
    attained for d = 2) and k their number; entries of more levels
    ``1 - h^2 - 3 d / (16 c^2 n)``, with h the largest half gap and c the outermost
    level: 0.50, 0.64, 0.80, 0.86 for M = 3, 4, 8, 16. Wire cost: see the module.

    Proof, with the bounds of `hadamard`: the projection on signs leaves
    ``|y|_1^2 / d``, and with k of d random entries, by Jensen's inequality, k/d of it;
    it is also at least the energy over k. For more levels the projection is no worse
    than s = 1, whose error of u is at most h inside the levels, and outside
    ``(|u| - c)^2 <= u^4 / (16 c^2)``.

    Parameters
    ----------
    bits : float
        For an entry, in (0, 8]; also fractions, also below one.
    """

    name: ClassVar[str] = "eden_contractive"
    norm_nonincreasing: ClassVar[bool] = True

    def guarantee(self, shape: Shape) -> Guarantee:
        """See the class; parts with different levels add up by their numbers."""
        d = math.prod(shape)
        if d == 0:
            return Contractive(1.0)
        levels, fine = split_rate(self.bits, d)
        coarse_kept = _kept(levels, d - fine, d) * (d - fine)
        return Contractive((coarse_kept + _kept(levels + 1, fine, d) * fine) / d)

    def scales(self, sums: Sequence[Sums], d: int) -> list[float]:
        """Project each part on its levels."""
        del d
        return [s.along / s.square if s.square > 0.0 else 0.0 for s in sums]


def _kept(levels: int, count: int, d: int) -> float:
    """Bound the share of the energy of ``count`` entries that their levels keep."""
    if levels == 1 or count == 0:
        return 0.0
    n = window_length(d)
    if levels == 2:
        return max(n / (2.0 * d), 1.0 / count)
    table = normal_levels(levels)
    gap, outermost = float(table.diff().max()) / 2.0, float(table[-1])
    return 1.0 - gap**2 - 3.0 * d / (16.0 * outermost**2 * n)
