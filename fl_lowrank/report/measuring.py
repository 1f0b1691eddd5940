"""One compressor on one tensor: real bytes, error and time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from .. import decoders, wire
from ..bounds import efficiency
from ..errors import CompressionError
from ..rng import stream
from ..spec import parse
from ..types import Compressor, Guarantee

_T = TypeVar("_T")
_PATIENCE = 1.0  # seconds


@dataclass(frozen=True)
class Row:
    """What a compressor did to a tensor.

    Attributes
    ----------
    text : str
        The compressor.
    guarantee : Guarantee or None
        What it states for this shape; None if it cannot be used on it.
    numel : int
        Entries of the tensor.
    size_bytes : int or None
        Of the message; None if the tensor was refused.
    nmse : float
        ``|C(x) - x|^2 / |x|^2``.
    encode_ms, decode_ms : float
        To bytes and from bytes, milliseconds.
    refusal : str
        Why the tensor was refused, or empty.
    """

    text: str
    guarantee: Guarantee | None
    numel: int
    size_bytes: int | None = None
    nmse: float = math.nan
    encode_ms: float = math.nan
    decode_ms: float = math.nan
    refusal: str = ""

    @property
    def bits_per_entry(self) -> float:
        """Size of the message over the number of entries."""
        if self.size_bytes is None or not self.numel:
            return math.nan
        return 8.0 * self.size_bytes / self.numel

    @property
    def efficiency(self) -> float:
        """Bits over the least possible for Gaussian entries with this error.

        NaN where that is no number: for exact copies, for errors of 1 and more.
        """
        if self.size_bytes is None or not 0.0 < self.nmse < 1.0:
            return math.nan
        return efficiency(8.0 * self.size_bytes, self.numel, self.nmse)


def measure(
    method: str | Compressor, x: Tensor, repeats: int = 1, seed: int = 0
) -> Row:
    """Send a tensor through a compressor, its bytes, and back.

    Parameters
    ----------
    method : str or Compressor
        A text is parsed; `SpecError` and `SettingError` pass.
    x : Tensor
        Of a floating-point dtype.
    repeats : int
        Times are the best of so many runs; none is started after a second.
    seed : int
        Of the draws.

    Returns
    -------
    Row
        A refusal of this tensor is in the row and not raised.
    """
    compressor = parse(method) if isinstance(method, str) else method
    shape, rng = tuple(x.shape), stream(seed, "report")
    text = method if isinstance(method, str) else str(method)
    try:
        guarantee = compressor.guarantee(shape)
        state = compressor.init(shape)
        encode_ms, data = _best(
            lambda: wire.pack(compressor.encode(x, state, rng)[0]), repeats
        )
        decode_ms, y = _best(lambda: decoders.decode(decoders.unpack(data)), repeats)
    except CompressionError as error:
        return Row(text, None, x.numel(), refusal=str(error))
    return Row(text, guarantee, x.numel(), len(data), nmse(x, y), encode_ms, decode_ms)


def nmse(x: Tensor, y: Tensor) -> float:
    """``|y - x|^2 / |x|^2`` in float64; zero for two zeros."""
    peak = float(x.detach().abs().max()) if x.numel() else 0.0
    unit = peak if peak > 0.0 else 1.0
    wide = x.detach().cpu().to(torch.float64) / unit
    off = float((y.cpu().to(torch.float64) / unit - wide).square().sum())
    return off / float(wide.square().sum()) if peak > 0.0 else off


def _best(action: Callable[[], _T], repeats: int) -> tuple[float, _T]:
    """Least milliseconds of some runs, and the last result."""
    times = []
    for _ in range(max(repeats, 1)):
        start = time.perf_counter()
        result = action()
        times.append(time.perf_counter() - start)
        if sum(times) > _PATIENCE:
            break
    return 1e3 * min(times), result
