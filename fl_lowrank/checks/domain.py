"""Laws of the domain: zero, tensors of few entries, the ends of the dtype."""

from __future__ import annotations

import torch

from .. import decoders, wire
from ..errors import CompressionError, InputError
from ..types import Compressor, Shape
from .examples import examples, fresh, gaussian, require, rng_for


def check_zero_maps_to_zero(
    compressor: Compressor,
    shape: Shape,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> None:
    """``C(0) = 0`` exactly, from a fresh state and from one that saw another input."""
    zero = torch.zeros(shape, dtype=dtype, device=device)
    _, warm = compressor.encode(
        gaussian(shape, dtype, device), fresh(compressor, zero), rng_for("warm")
    )
    for state in (fresh(compressor, zero), warm):
        payload, _ = compressor.encode(zero, state, rng_for("zero"))
        y = decoders.decode(decoders.unpack(wire.pack(payload)))
        require(not bool(y.any()), compressor, zero, "zero does not decode to zero")


def check_handles_scalar_empty_and_one(
    compressor: Compressor,
    shape: Shape = (),
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> None:
    """Tensors of no or one entry survive, and so does the announced ``shape``."""
    for small in {(), (0,), (0, 3), (3, 0), (1,), (1, 1), shape}:
        for name, x in examples(small, dtype, device).items():
            payload, _ = compressor.encode(x, fresh(compressor, x), rng_for(name))
            y = decoders.decode(decoders.unpack(wire.pack(payload)))
            ok = y.shape == x.shape and bool(torch.isfinite(y).all())
            require(ok, compressor, x, f"{name}: decodes to {y}")


def check_rejects_nan_and_inf(
    compressor: Compressor,
    shape: Shape,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> None:
    """NaN and infinity raise `InputError`; of integers only exact ones take any."""
    for bad in (float("nan"), float("inf"), float("-inf")):
        x = gaussian(shape, dtype, device).reshape(-1)
        if not x.numel():
            return
        x[x.numel() // 2] = bad
        x = x.reshape(shape)
        try:
            compressor.encode(x, fresh(compressor, x), rng_for("bad"))
        except InputError as error:
            require(bool(str(error)), compressor, x, "InputError without a message")
        else:
            require(False, compressor, x, f"takes {bad}; call types.check_input")


def check_large_and_tiny_numbers(
    compressor: Compressor,
    shape: Shape,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> None:
    """Near both ends of the dtype: refused while encoding, or decoded to finite.

    What cannot be decoded must not be sent: only `InputError` may be raised, and
    not for numbers 10,000 times smaller than the largest one.
    """
    info = torch.finfo(dtype)
    names = ("normal", "all equal", "heavy tails", "rank one, zero columns")
    for magnitude in (info.max, info.max / 3, info.max / 1e5, info.tiny, info.tiny / 8):
        for name, x in examples(shape, torch.float64, device, names).items():
            if not bool(x.any()):
                continue
            x = (x / x.abs().max() * magnitude).to(dtype)
            try:
                payload, _ = compressor.encode(x, fresh(compressor, x), rng_for(name))
            except InputError:
                refusable = magnitude > info.max / 1e4
                require(refusable, compressor, x, f"{name}: {magnitude:.3g} is refused")
                continue
            try:
                decoders.decode(decoders.unpack(wire.pack(payload)))
            except CompressionError as error:
                require(
                    False,
                    compressor,
                    x,
                    f"{name}: entries up to {magnitude:.3g} are encoded and cannot be "
                    f"decoded ({error}); raise InputError in encode",
                )
