"""A random rotation before any compressor.

``C(x) = R^T inner(R x)`` with the rotation of `hadamard`. After it, large entries are
spread over all, which suits quantisers with one step for many entries, and spoils
sparse ones.

References
----------
A. Suresh, F. Yu, S. Kumar, H. McMahan, "Distributed Mean Estimation with Limited
Communication", ICML 2017, arXiv 1611.00429: stochastic k-level quantisation after a
random Hadamard rotation.

Differences: two transforms over overlapping windows, so that no length is padded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import InputError
from ..hadamard import rotate, rotate_back
from ..linalg import normalised
from ..rng import Rng
from ..types import (
    Coding,
    Compressor,
    Contractive,
    Exact,
    Field,
    Guarantee,
    Kind,
    Payload,
    Shape,
    State,
    check_input,
)
from .common import draw_seed, finish, need, read_seed

ROTATED = Kind(13, "rotated", ("seed", "inner"), (Coding.VARINTS, Coding.NESTED))

#: Relative squared error that rounding in float32 may add, generously.
ROUNDING_ERROR = 2.0**-40


@dataclass(frozen=True)
class Rotated(Compressor):
    """Rotate at random, compress with ``inner``, rotate back.

    The inner compressor sees a vector of all entries, in float32, or in float64 for
    such input. Its state passes through; a warm start means little, since every
    message has a rotation of its own.
    Guarantee: that of ``inner`` for the vector, because rotations keep inner products
    and are drawn independently of the inner draws. An exact one becomes
    ``Contractive(1 - 2^-40)``, because rotating there and back rounds.
    Wire cost: that of ``inner``, and some 25 bytes.

    Parameters
    ----------
    inner : Compressor
        What compresses the rotated vector.
    """

    name: ClassVar[str] = "rotated"

    inner: Compressor

    def guarantee(self, shape: Shape) -> Guarantee:
        """Orthogonal maps keep both classes and their constants."""
        found = self.inner.guarantee((math.prod(shape),))
        if isinstance(found, Exact):
            return Contractive(1.0 - ROUNDING_ERROR)
        return found

    def init(self, shape: Shape) -> State:
        """State of the inner compressor."""
        return self.inner.init((math.prod(shape),))

    def encode(self, x: Tensor, state: State, rng: Rng) -> tuple[Payload, State]:
        """Rotate and hand on."""
        work, peak = normalised(check_input(self.name, x).reshape(-1))
        norm = math.sqrt(float(work.square().sum(dtype=torch.float64)))
        if norm * peak * (1.0 + 1e-4) > torch.finfo(work.dtype).max:  # it rounds
            msg = (
                f"{self.name}: entries up to {peak:.3g} may exceed {work.dtype} when "
                "rotated; scale the tensor down"
            )
            raise InputError(msg)
        seed = draw_seed(rng, "rotation")
        # The zero tensor has peak 0 and stays as it is.
        vector = rotate(work, Rng(seed)) * peak
        inner, state = self.inner.encode(vector, state, rng.child("rotated"))
        fields = {
            "seed": Field(Coding.VARINTS, torch.tensor([seed])),
            "inner": Field(Coding.NESTED, inner),
        }
        return Payload(ROTATED, tuple(x.shape), x.dtype, fields), state

    @staticmethod
    def decode(payload: Payload) -> Tensor:
        """Rotate back."""
        seed, vector = read_seed(payload), payload.tensor("inner")
        need(
            vector.numel() == payload.numel and vector.is_floating_point(),
            payload,
            f"{vector.numel()} values of {vector.dtype}",
        )
        work, peak = normalised(vector)
        return finish(payload, rotate_back(work, Rng(seed)) * peak)
