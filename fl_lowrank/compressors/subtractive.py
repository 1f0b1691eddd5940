"""Subtractive dither: rounding whose error is independent of what is rounded.

With the step ``s rms(x)``, ``rms(x) = |x| / sqrt d``, and q = x / (s rms(x)), noise u
that both ends draw, uniform in [-1/2, 1/2], is added before rounding and subtracted
after it: ``k = round(q + u)`` is sent, and ``k - u = q + e`` with e uniform in
[-1/2, 1/2], whatever x is. So ``E|C(x) - x|^2 / |x|^2`` is ``s^2 / 12`` exactly, for
every x (`DitherUnbiased`). The factor ``1 / (1 + s^2 / 12)``, Wiener's, takes that to
the ``1 / (1 + 12 / s^2)`` that no other factor gets below (`Dither`).

The reader knows u, so k need not cost more than its entropy given u. Of u, its sign is
used: unless that costs more, k is coded as ``sign(u) k``, since of levels that are not
certain those of the sign of u are more frequent. Gaussian numbers cost 1.09 times the
bound ``log2(1 / nmse) / 2`` at nmse = 0.02, 1.12 at 0.05, 1.16 at 0.1, 1.25 at 0.2 and
1.49 at 0.4 with `Dither`, and a seed of 9 bytes; at the two last `Ecsq` costs less.

References
----------
L. G. Roberts, "Picture coding using pseudo-random noise", IRE Transactions on
Information Theory, 1962. L. Schuchman, "Dither signals and their effect on quantization
noise", IEEE Transactions on Communication Technology, 1964. R. Zamir, M. Feder, "On
universal quantization by randomized uniform/lattice quantizers", IEEE Transactions on
Information Theory, 1992: entropy coding given the dither, and the rate.

Differences: u has 32 random bits, of which the code looks at one: with all of them the
figures were 1.09, 1.12, 1.15, 1.22 and 1.38.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..linalg import working_dtype
from ..rng import Rng
from ..types import (
    Compressor,
    Contractive,
    Guarantee,
    Payload,
    Shape,
    State,
    Unbiased,
    check_input,
)
from .common import check_peak
from .dithered import decode_dithered, encode_dithered
from .levels import Scaled
from .scalar import LARGEST_STEP, check_step


@dataclass(frozen=True)
class Dither(Compressor):
    """Subtractive dither with Wiener's factor.

    Guarantee: ``Contractive(1 - nmse)``, or ``Contractive(1 / (1 + step^2 / 12))``, in
    expectation; the expected error is exactly that for every tensor, so nothing is
    searched. Wire cost: see the module.

    Parameters
    ----------
    step : float, optional
        Distance of levels over the root mean square of the tensor, in [0.002, 1000].
    nmse : float, optional
        Relative squared error, in [1e-6, 1), instead of ``step``, which is then
        ``sqrt(12 nmse / (1 - nmse))``.

    Raises
    ------
    InputError
        On entries within a factor of two of the working precision's largest number.
    """

    name: ClassVar[str] = "dither"

    step: float | None = None
    nmse: float | None = None

    def __post_init__(self) -> None:
        check_step(self.name, self.step, self.nmse, 1.0)

    def guarantee(self, shape: Shape) -> Guarantee:
        """Zamir and Feder (1992): uniform error, independent of x, then shrunk."""
        del shape
        return Contractive(1.0 / (1.0 + self.variance))

    @property
    def variance(self) -> float:
        """Of the error before it is shrunk, over the mean square of the tensor."""
        if self.nmse is not None:
            return min(self.nmse / (1.0 - self.nmse), LARGEST_STEP**2 / 12.0)
        assert self.step is not None
        return self.step**2 / 12.0

    def encode(self, x: Tensor, state: State, rng: Rng) -> tuple[Payload, State]:
        """Round with noise from a seed that the decoder will see."""
        scaled = Scaled.of(check_input(self.name, x))
        # Of the scale, sqrt 3 at the step sqrt 12; decoded values saturate.
        check_peak(self.name, scaled.peak, working_dtype(x.dtype), 2.0)
        step, factor = math.sqrt(12.0 * self.variance), 1.0 / (1.0 + self.variance)
        return encode_dithered(scaled, x, step, factor, rng), state

    @staticmethod
    def decode(payload: Payload) -> Tensor:
        """Subtract the noise and scale."""
        return decode_dithered(payload)


@dataclass(frozen=True)
class DitherUnbiased(Compressor):
    """Subtractive dither as it is: the error is uniform and independent of x.

    Guarantee: ``Unbiased(1 + nmse)``, or ``Unbiased(1 + step^2 / 12)``, attained by
    every tensor. Wire cost: see the module; at equal cost, the error is
    ``nmse / (1 - nmse)`` with the nmse of `Dither`.

    Parameters
    ----------
    step : float, optional
        Distance of levels over the root mean square of the tensor, in [0.002, 1000].
    nmse : float, optional
        Relative variance, in [1e-6, 80000), instead of ``step``, which is then
        ``sqrt(12 nmse)``.

    Raises
    ------
    InputError
        On entries that might overflow their dtype with a step more.
    """

    name: ClassVar[str] = "dither_unbiased"

    step: float | None = None
    nmse: float | None = None

    def __post_init__(self) -> None:
        check_step(self.name, self.step, self.nmse, 80_000.0)

    def guarantee(self, shape: Shape) -> Guarantee:
        """Schuchman (1964): uniform error, independent of x."""
        del shape
        return Unbiased(1.0 + self.variance)

    @property
    def variance(self) -> float:
        """Of the error, over the mean square of the tensor."""
        if self.nmse is not None:
            return self.nmse
        assert self.step is not None
        return self.step**2 / 12.0

    def encode(self, x: Tensor, state: State, rng: Rng) -> tuple[Payload, State]:
        """Round with noise from a seed that the decoder will see."""
        scaled = Scaled.of(check_input(self.name, x))
        step = math.sqrt(12.0 * self.variance)
        check_peak(self.name, scaled.peak, x.dtype, 1.0 + step)
        return encode_dithered(scaled, x, step, 1.0, rng), state

    @staticmethod
    def decode(payload: Payload) -> Tensor:
        """Subtract the noise and scale."""
        return decode_dithered(payload)
