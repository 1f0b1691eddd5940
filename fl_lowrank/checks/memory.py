"""The law of state: what a compressor remembers between messages."""

from __future__ import annotations

import torch

from .. import decoders
from ..types import Compressor, Shape, State
from .examples import fresh, gaussian, relative, require, rng_for, rounding


def _layout(state: State) -> dict[str, tuple[Shape, torch.dtype]]:
    return {k: (tuple(v.shape), v.dtype) for k, v in state.items()}


def check_state_is_flat_and_stable_in_shape(
    compressor: Compressor,
    shape: Shape,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> None:
    """State is ``dict[str, Tensor]`` of names, shapes and dtypes that never change.

    A node writes it into flat records and reads it back in another process.
    """
    x = gaussian(shape, dtype, device)
    state = fresh(compressor, x)
    flat = type(state) is dict and all(
        type(k) is str and isinstance(v, torch.Tensor) for k, v in state.items()
    )
    require(flat, compressor, x, f"its state is no dict of tensors: {state}")
    layout = _layout(state)
    for turn in range(5):
        x = gaussian(shape, dtype, device, key=turn)
        _, state = compressor.encode(x, state, rng_for(turn))
        require(
            _layout(state) == layout,
            compressor,
            x,
            f"state changes from {layout} to {_layout(state)} in message {turn + 1}",
        )
        finite = all(bool(torch.isfinite(v).all()) for v in state.values())
        require(finite, compressor, x, f"state is not finite after {turn + 1} messages")


def check_state_that_no_longer_fits_restarts(
    compressor: Compressor,
    shape: Shape,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> None:
    """State that is missing, of another shape or unknown gives what a fresh one gives.

    A schedule may change a rank between rounds, and a node may come back late.
    """
    x = gaussian(shape, dtype, device)
    start = fresh(compressor, x)
    _, warm = compressor.encode(x, start, rng_for("warm"))
    payload, after = compressor.encode(x, start, rng_for("cold"))
    cold = decoders.decode(payload)
    longer = {k: torch.cat((v, v)) for k, v in warm.items()}
    flat = {k: v.reshape(-1)[:-1] for k, v in warm.items()}
    for what, state in {
        "no state": {},
        "longer tensors": longer,
        "flat tensors": flat,
        "unknown names": {"?": torch.ones(2)},
    }.items():
        payload, now = compressor.encode(x, state, rng_for("cold"))
        y = decoders.decode(payload)
        _, left, right = relative(x, cold, y)
        off = float((left - right).norm())
        require(off <= rounding(x), compressor, x, f"{what}: does not start afresh")
        ok = {k: v for k, v in _layout(now).items() if k != "?"} == _layout(after)
        require(ok, compressor, x, f"{what}: state has the wrong layout afterwards")
