"""Tensors on which the laws are tried, and how near is near enough."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache

import torch
from torch import Tensor

from ..rng import Rng, stream
from ..shapes import matrix_shape
from ..types import Compressor, Shape, State

#: Seed of every draw in this package; the laws are repeatable.
SEED = 20103246
SHAPES: tuple[Shape, ...] = (
    (),
    (0,),
    (0, 3),
    (1,),
    (1009,),
    (960,),
    (40, 24),
    (24, 40),
    (16, 3, 5, 5),
)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


#: Names of all examples.
NAMES = (
    "normal",
    "all equal",
    "midway between powers of two",
    "four thirds",
    "one hot",
    "89% equal",
    "heavy tails",
    "mostly zero",
    "flat spectrum",
    "rank one, zero columns",
)


def rng_for(*keys: int | str) -> Rng:
    """Give the stream for one use in one law."""
    return stream(SEED, *keys)


def gaussian(
    shape: Shape, dtype: torch.dtype, device: torch.device | str, key: int = 0
) -> Tensor:
    """Draw standard normal numbers, the same for the same key."""
    draws = _normal(math.prod(shape), key)
    return draws.reshape(shape).to(device, dtype, copy=True)


@lru_cache(maxsize=64)
def _normal(count: int, key: int) -> Tensor:
    return rng_for("gaussian", key).normal(count)


def examples(
    shape: Shape,
    dtype: torch.dtype,
    device: torch.device | str,
    names: Iterable[str] = NAMES,
) -> dict[str, Tensor]:
    """Give ordinary and adversarial tensors of one shape, by name.

    Magnitudes stay below 100, so that scaling by d/k fits float16.
    """
    made = _examples(shape)
    return {k: made[k].reshape(shape).to(device, dtype, copy=True) for k in names}


@lru_cache(maxsize=64)
def _examples(shape: Shape) -> dict[str, Tensor]:
    d = math.prod(shape)
    normal = gaussian(shape, torch.float64, "cpu").reshape(-1)
    sign = torch.where(normal < 0, -1.0, 1.0)
    one_hot = torch.zeros(d, dtype=torch.float64)
    one_hot[d // 2 : d // 2 + 1] = -3.0
    position = torch.arange(d, dtype=torch.float64)
    draws: dict[str, Tensor] = {
        "normal": normal,
        "all equal": 0.7 * sign,
        "midway between powers of two": 1.5 * sign,
        "four thirds": 4.0 / 3.0 * sign,
        "one hot": one_hot,
        "89% equal": torch.where(position % 9 == 0, 0.01 * normal, sign),
        "heavy tails": (normal**3).clamp(-90.0, 90.0),
        "mostly zero": torch.where(position % 10 == 0, normal, 0.0),
    }
    m, n = matrix_shape(shape)
    draws["flat spectrum"] = 2.0 * torch.eye(m, n, dtype=torch.float64).reshape(-1)
    thin = torch.outer(normal[:m], normal[-n:] if n else normal[:0])
    thin[:, ::3] = 0.0
    draws["rank one, zero columns"] = thin.reshape(-1)
    return draws


def relative(x: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Flatten to float64 on the CPU, in units of the largest entry of ``x``."""
    peak = float(x.detach().abs().max()) if x.numel() else 0.0
    unit = peak if peak > 0.0 else 1.0
    return tuple(
        t.detach().cpu().to(torch.float64).reshape(-1) / unit for t in (x, *others)
    )


def rounding(x: Tensor) -> float:
    """Error that arithmetic in the dtype of ``x`` may add, in units of its peak.

    Eight units in the last place of the norm, and for each entry one smallest
    subnormal number of the dtype.
    """
    (unit,) = relative(x)
    info = torch.finfo(x.dtype)
    peak = float(x.detach().abs().max()) if x.numel() else 0.0
    smallest = info.tiny * info.eps / peak if peak > 0.0 else 0.0
    return 8.0 * info.eps * float(unit.norm()) + smallest * math.sqrt(x.numel())


def require(
    condition: bool, compressor: Compressor, x: Tensor | Shape, message: str
) -> None:
    """Raise `AssertionError` that names the compressor and the tensor."""
    if not condition:
        what = (
            f"{x.dtype} tensor of shape {tuple(x.shape)} on {x.device}"
            if isinstance(x, Tensor)
            else f"shape {x}"
        )
        msg = f"{compressor}, {what}: {message}"
        raise AssertionError(msg)


def fresh(compressor: Compressor, x: Tensor) -> State:
    """Give the state before the first message of a tensor like ``x``."""
    return compressor.init(tuple(x.shape))
