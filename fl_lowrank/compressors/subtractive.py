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

import torch
from torch import Tensor

from ..linalg import working_dtype
from ..rng import Rng
from ..types import (
    Coding,
    Compressor,
    Contractive,
    Field,
    Guarantee,
    Kind,
    Payload,
    Shape,
    State,
    Unbiased,
    check_input,
)
from .common import check_peak, finish, need
from .dithering import scale_and_levels, scale_tensor
from .levels import Scaled, blocks, to_levels
from .scalar import LARGEST_STEP, check_step

DITHERED = Kind(
    14,
    "dithered",
    ("seed", "scale", "levels"),
    (Coding.VARINTS, Coding.RAW, Coding.SYMBOLS),
)

_SAMPLE_SIZE = 1 << 14  # levels on which it is tried whether folding pays


def _noise(bits: Tensor, dtype: torch.dtype) -> Tensor:
    """Make numbers in [-1/2, 1/2] of patterns of 32 bits; the same on every device."""
    return bits.to(dtype).mul_(2.0**-32)


def _fold(levels: Tensor, bits: Tensor) -> Tensor:
    """Turn levels, in place, to count in the direction of the noise; or back."""
    return levels.mul_((bits >> 31).bitwise_or_(1))


def _folding_pays(sample: Scaled, step: float, noise: Rng) -> bool:
    """Whether levels have less entropy when folded, to judge by a sample."""
    if not sample.peak > 0.0:
        return False
    q = sample.part(slice(None)).div_(step)
    bits = noise.bits32(q.numel(), q.device)
    plain = q.add_(_noise(bits, q.dtype)).round_().clamp_(-32, 32)
    before = _nats(plain)
    return _nats(_fold(plain, bits)) < 0.997 * before


def _nats(levels: Tensor) -> float:
    """Entropy of levels from -32 to 32."""
    counts = torch.bincount(levels.to(torch.int64) + 32).to(torch.float64)
    return float(torch.special.entr(counts / counts.sum()).sum())


def _encode(x: Tensor, scaled: Scaled, step: float, factor: float, rng: Rng) -> Payload:
    """Round with noise; the reader multiplies by the step and ``factor``."""
    seed = rng.child("dither").key >> 1  # 63 bits, so that int64 holds it
    noise, unit = Rng(seed), step * scaled.rms
    folded = _folding_pays(scaled.sample(_SAMPLE_SIZE), unit, noise)

    def with_noise(q: Tensor, block: slice) -> Tensor:
        bits = noise.bits32(q.numel(), q.device, block.start)
        k = q.add_(_noise(bits, q.dtype)).round_()
        return _fold(k, bits) if folded else k

    levels = to_levels(scaled, unit, with_noise)
    fields = {
        "seed": Field(Coding.VARINTS, torch.tensor([seed, int(folded)])),
        "scale": Field(Coding.RAW, scale_tensor(x, factor * unit * scaled.peak)),
        "levels": Field(Coding.SYMBOLS, levels),
    }
    return Payload(DITHERED, tuple(x.shape), x.dtype, fields)


def _decode(payload: Payload) -> Tensor:
    """Draw the noise again, subtract it, scale."""
    scale, levels = scale_and_levels(payload)
    head = payload.tensor("seed").tolist()
    ok = len(head) == 2 and head[0] >= 0 and head[1] in (0, 1)
    need(ok, payload, "no seed and fold")
    noise, folded = Rng(head[0]), head[1]
    out = torch.empty(payload.numel, dtype=scale.dtype, device=levels.device)
    for block in blocks(payload.numel, levels.device):
        bits = noise.bits32(block.stop - block.start, levels.device, block.start)
        part = levels[block].to(scale.dtype)
        if folded:
            _fold(part, bits)
        out[block] = part.sub_(_noise(bits, scale.dtype)).mul_(scale)
    return finish(payload, out)


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
        return _encode(x.detach(), scaled, step, factor, rng), state

    @staticmethod
    def decode(payload: Payload) -> Tensor:
        """Subtract the noise and scale."""
        return _decode(payload)


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
        return _encode(x.detach(), scaled, step, 1.0, rng), state

    @staticmethod
    def decode(payload: Payload) -> Tensor:
        """Subtract the noise and scale."""
        return _decode(payload)
