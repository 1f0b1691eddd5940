"""Subtractive dither: rounding whose error is independent of what is rounded.

With the step ``s rms(x)``, ``rms(x) = |x| / sqrt d``, and q = x / (s rms(x)), noise u
that both ends draw, uniform in [-1/2, 1/2], is added before rounding and subtracted
after it: ``k = round(q + u)`` is sent, and ``k - u = q + e`` with e uniform in
[-1/2, 1/2], whatever x is. So ``E|C(x) - x|^2 / |x|^2`` is ``s^2 / 12`` exactly, for
every x (`DitherUnbiased`). The factor ``1 / (1 + s^2 / 12)``, Wiener's, takes that to
the ``1 / (1 + 12 / s^2)`` that no other factor gets below (`Dither`).

The reader knows u, so k costs its entropy given u: levels are coded in four groups by
the quarter in which u lies, which comes near to that. Gaussian numbers cost 1.090
times the bound ``log2(1 / nmse) / 2`` at nmse = 0.02, 1.12 at 0.05, 1.16 at 0.1, 1.23
at 0.2, 1.41 at 0.4 with `Dither`, and a seed of 8 bytes.

References
----------
L. G. Roberts, "Picture coding using pseudo-random noise", IRE Transactions on
Information Theory, 1962. L. Schuchman, "Dither signals and their effect on quantization
noise", IEEE Transactions on Communication Technology, 1964. R. Zamir, M. Feder, "On
universal quantization by randomized uniform/lattice quantizers", IEEE Transactions on
Information Theory, 1992: entropy coding given the dither, and the rate.

Differences: u has 32 random bits.
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
from .dithering import scale_tensor
from .levels import Scaled, blocks, to_levels
from .scalar import LARGEST_STEP, check_step

_GROUPS = ("first", "second", "third", "fourth")
DITHERED = Kind(
    14,
    "dithered",
    ("seed", "scale", *_GROUPS),
    (Coding.VARINTS, Coding.RAW, *(Coding.SYMBOLS,) * 4),
)

#: Levels are in one group, the first, where four tables would cost more than they
#: gain: at so few entries, and below such steps.
_FEW, _FINE = 1 << 13, 0.6


def _noise(bits: Tensor, dtype: torch.dtype) -> Tensor:
    """Make numbers in [-1/2, 1/2] of patterns of 32 bits; the same on every device."""
    return bits.to(dtype).mul_(2.0**-32)


def _quarters(bits: Tensor) -> list[Tensor]:
    """Positions of the noise of each quarter of [-1/2, 1/2)."""
    quarter = (bits >> 30).to(torch.int8)
    if bits.device.type != "cpu":
        return [(quarter == i).nonzero().reshape(-1) for i in range(-2, 2)]
    # NumPy finds the true ones of a mask several times as fast as torch on a CPU.
    on_host = quarter.numpy()
    return [torch.from_numpy((on_host == i).nonzero()[0]) for i in range(-2, 2)]


def _encode(x: Tensor, scaled: Scaled, step: float, factor: float, rng: Rng) -> Payload:
    """Round with noise; the reader multiplies by the step and ``factor``."""
    seed = rng.child("dither").key >> 1  # 63 bits, so that int64 holds it
    bits = Rng(seed).bits32(x.numel(), x.device)
    unit = step * scaled.rms

    def with_noise(q: Tensor, block: slice) -> Tensor:
        return q.add_(_noise(bits[block], q.dtype)).round_()

    levels = to_levels(scaled, unit, with_noise)
    groups = [levels, *(levels[:0],) * 3]
    if x.numel() >= _FEW and step >= _FINE:
        groups = [levels[positions] for positions in _quarters(bits)]
    fields = {
        "seed": Field(Coding.VARINTS, torch.tensor([seed])),
        "scale": Field(Coding.RAW, scale_tensor(x, factor * unit * scaled.peak)),
    }
    symbols = {
        k: Field(Coding.SYMBOLS, g) for k, g in zip(_GROUPS, groups, strict=True)
    }
    return Payload(DITHERED, tuple(x.shape), x.dtype, fields | symbols)


def _decode(payload: Payload) -> Tensor:
    """Draw the noise again, put the levels in their places, subtract, scale."""
    seed, scale = payload.tensor("seed"), payload.tensor("scale")
    groups = [payload.tensor(name) for name in _GROUPS]
    need(seed.numel() == 1 and int(seed) >= 0, payload, "no seed")
    need(scale.numel() == 1 and scale.is_floating_point(), payload, "no scale")
    device, numel = groups[0].device, payload.numel
    counts = [group.numel() for group in groups]
    need(sum(counts) == numel, payload, f"{counts} levels")
    bits = Rng(int(seed)).bits32(numel, device)
    out = torch.empty(numel, dtype=scale.dtype, device=device)
    if counts[0] == numel:
        out.copy_(groups[0])
    else:
        for positions, group in zip(_quarters(bits), groups, strict=True):
            found = positions.numel()
            need(found == group.numel(), payload, f"{group.numel()} levels of {found}")
            out[positions] = group.to(out.dtype)
    for block in blocks(numel, device):
        out[block].sub_(_noise(bits[block], out.dtype)).mul_(scale.to(device))
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
