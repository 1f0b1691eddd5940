"""A few random combinations of all columns: `LowRankUnbiased`.

The longer side of the m x n matrix G (`shapes.matrix_shape`), here n, is sketched::

    C(G) = (G Om) Om^T,   Om = sqrt(n / r) D H[:, S],   (n, r)

with D random signs, H the orthonormal Hartley matrix ``cas(2 pi j k / n) / sqrt n`` and
S a random r-subset. The message holds ``G Om`` and the seed of D and S.

``P = r / n Om Om^T`` is a projection with ``E P = r / n I``, since a random subset of
an orthonormal basis is. So ``E C(G) = G`` and ``E|C(G)|^2 = (n / r)^2 tr G E[P] G^T =
n / r |G|^2``, with equality for every G.

References
----------
F. Woolfe, E. Liberty, V. Rokhlin, M. Tygert, "A fast randomized algorithm for the
approximation of matrices", Applied and Computational Harmonic Analysis 2008: signs,
Fourier transform, subset. R. N. Bracewell, "Discrete Hartley transform", JOSA 1983.

Differences: real numbers throughout. Against an orthonormal basis from a QR
factorisation of Gaussian numbers, the first and second moments are the same; but signs
and positions come from integers, so that both ends have the same Om up to rounding on
any device, and it is applied in O(m n log n) without being formed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import InputError
from ..linalg import normalised
from ..rng import Rng
from ..shapes import as_matrix, matrix_shape
from ..types import (
    Coding,
    Exact,
    Field,
    Guarantee,
    Kind,
    Payload,
    Shape,
    State,
    Unbiased,
    check_input,
)
from .common import draw_seed, finish, narrowed, need, read_seed
from .dense import dense_payload
from .ranks import Ranked

PROJECTED = Kind(
    18, "projected", ("seed", "sketch"), (Coding.VARINTS, Coding.RAW), inner=("sketch",)
)


def hartley(x: Tensor) -> Tensor:
    """Transform the rows by the orthonormal Hartley matrix, its own inverse."""
    spectrum: Tensor = torch.fft.fft(x, norm="ortho")
    return spectrum.real - spectrum.imag


def _draws(seed: int, r: int, n: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Give n signs and r of n positions."""
    rng = Rng(seed)
    bits = rng.child("signs").bits32(n, like.device) & 1
    positions = rng.child("positions").subset(r, n, like.device)
    return (1 - 2 * bits).to(like.dtype), positions


@dataclass(frozen=True)
class LowRankUnbiased(Ranked):
    """Project the rows on a random subspace of dimension r, scaled to keep the mean.

    Guarantee: ``Unbiased(zeta)`` with ``zeta = max(m, n) / r`` exactly, for every
    input: that of `RandK` with as many numbers, but no single entry can be missed.
    Inside error feedback use ``shrunk(lowrank_unbiased(...))``. Wire cost:
    ``r min(m, n)`` numbers in the input's dtype and 8 bytes for the seed; where that
    is no less than ``m n`` the tensor itself is sent. Time: O(m n log max(m, n)).

    Parameters
    ----------
    rank, ratio, floats
        Columns of the sketch, see `Ranked`; ``ratio`` gives ``zeta = 1 / ratio``, up
        to the rounding of r.
    """

    name: ClassVar[str] = "lowrank_unbiased"

    @staticmethod
    def column_cost(shape: Shape) -> int:
        """One column of the sketch."""
        return min(matrix_shape(shape))

    def guarantee(self, shape: Shape) -> Guarantee:
        """Second moment of a random projection scaled by n / r: see the module."""
        rank = self.columns(shape)
        if not self.pays(shape, rank):
            return Exact()
        return Unbiased(max(matrix_shape(shape)) / rank)

    def inner_shapes(self, shape: Shape) -> tuple[Shape, ...]:
        """Give the sketch, or the tensor where it does not pay."""
        rank = self.columns(shape)
        count = rank * self.column_cost(shape)
        return ((count,),) if self.pays(shape, rank) else ((math.prod(shape),),)

    def encode(self, x: Tensor, state: State, rng: Rng) -> tuple[Payload, State]:
        """Turn, pick columns, scale."""
        check_input(self.name, x)
        shape = tuple(x.shape)
        rank = self.columns(shape)
        if not self.pays(shape, rank):
            return dense_payload(x.detach()), state
        matrix, peak = normalised(as_matrix(x.detach()))
        wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
        n = wide.shape[1]
        seed = draw_seed(rng, "projection")
        signs, positions = _draws(seed, rank, n, wide)
        sketch = hartley(wide * signs)[:, positions] * math.sqrt(n / rank)
        self._check_reach(x, sketch, peak)
        fields = {
            "seed": Field(Coding.VARINTS, torch.tensor([seed])),
            "sketch": Field(Coding.RAW, narrowed(sketch * peak, x.dtype).reshape(-1)),
        }
        return Payload(PROJECTED, shape, x.dtype, fields), state

    def _check_reach(self, x: Tensor, sketch: Tensor, peak: float) -> None:
        """Refuse what would decode beyond the dtype: that would bias the mean.

        A row of Om has norm sqrt 2 at most; a compressor of the sketch may double it.
        """
        reach = 2.0 * math.sqrt(2.0) * float(sketch.norm(dim=1).max()) * peak
        if reach > torch.finfo(x.dtype).max:
            msg = (
                f"{self.name}: entries up to {peak:.3g} decode to as much as "
                f"{reach:.3g}, which does not fit {x.dtype}; scale the tensor down or "
                "use a wider dtype"
            )
            raise InputError(msg)

    @staticmethod
    def decode(payload: Payload) -> Tensor:
        """Put the columns into zeros and turn back."""
        seed, values = read_seed(payload), payload.tensor("sketch")
        m, n = sorted(matrix_shape(payload.shape))
        rank = values.numel() // m if m else 0
        ok = values.numel() == rank * m and 0 < rank < n and values.is_floating_point()
        need(ok, payload, f"{values.numel()} numbers of a sketch")
        sketch, peak = normalised(values.reshape(m, rank))
        signs, positions = _draws(seed, rank, n, sketch)
        turned = sketch.new_zeros(m, n)
        turned[:, positions] = sketch
        wide = hartley(turned) * signs * math.sqrt(n / rank) * peak
        rows = matrix_shape(payload.shape)[0]
        return finish(payload, wide if rows == m else wide.T)
