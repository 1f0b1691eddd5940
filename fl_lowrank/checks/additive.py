"""The law of sums without decoding."""

from __future__ import annotations

import torch

from .. import decoders, wire
from ..types import Additive, Compressor, Shape
from .examples import examples, fresh, require, rng_for


def check_add_equals_sum_of_decodes(
    compressor: Compressor,
    shape: Shape,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> None:
    """Decode a sum of messages to the sum of what they decode to, if `Additive`.

    For messages of x, -3x and x/4, and of zero, since sums of other tensors may need
    more room than a setting gives. The sum is packed and read like any message.
    """
    if not isinstance(compressor, Additive):
        return
    for name, x in examples(shape, dtype, device).items():
        payloads = []
        for key, factor in enumerate((1.0, -3.0, 0.25, 0.0)):
            scaled = x * factor
            payload, _ = compressor.encode(
                scaled, fresh(compressor, scaled), rng_for(name, key)
            )
            payloads.append(payload)
        data = wire.pack(decoders.add(payloads))
        found = decoders.decode(decoders.unpack(data)).to("cpu", torch.float64)
        expected, allowed = torch.zeros_like(found), 0.0
        for payload in payloads:
            y = decoders.decode(payload).to("cpu", torch.float64)
            expected += y
            allowed += 8.0 * torch.finfo(dtype).eps * float(y.norm())
        off = float((found - expected).norm())
        require(
            off <= allowed,
            compressor,
            x,
            f"{name}: the sum is off by {off:.3g}, rounding explains {allowed:.3g}",
        )
