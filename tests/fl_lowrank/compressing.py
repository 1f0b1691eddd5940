"""Small tools of the compressor tests."""

from __future__ import annotations

import torch
from torch import Tensor

import fl_lowrank as fll
from fl_lowrank.types import Compressor, State


def send(
    compressor: Compressor | str, x: Tensor, key: int = 0, state: State | None = None
) -> Tensor:
    """What arrives: encode, pack, unpack, decode."""
    c = fll.parse(compressor) if isinstance(compressor, str) else compressor
    start = c.init(tuple(x.shape)) if state is None else state
    payload, _ = c.encode(x, start, fll.rng.stream(20, key))
    return fll.decode(fll.unpack(fll.pack(payload)))


def error(x: Tensor, y: Tensor) -> float:
    """``|y - x|^2 / |x|^2`` in float64, whatever the magnitude."""
    peak = float(x.abs().max())
    a, b = x.to(torch.float64) / peak, y.to(torch.float64) / peak
    return float((a - b).square().sum() / a.square().sum())


def moments(compressor: Compressor | str, x: Tensor, draws: int) -> tuple[float, float]:
    """Mean of ``|C(x) - x|^2 / |x|^2``, and its standard error."""
    errors = torch.tensor(
        [error(x, send(compressor, x, i)) for i in range(draws)], dtype=torch.float64
    )
    return float(errors.mean()), float(errors.std()) / draws**0.5


def signs(count: int, key: int = 0) -> Tensor:
    """Random signs."""
    return fll.rng.stream(21, key).normal(count).sign()
