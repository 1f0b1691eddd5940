"""Laws of form: bytes, shapes, purity, text. They hold for every single call."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor

from .. import decoders, wire
from ..spec import parse
from ..types import (
    Compressor,
    Contractive,
    Exact,
    NoGuarantee,
    Payload,
    Shape,
    Unbiased,
)
from .examples import examples, fresh, gaussian, relative, require, rng_for, rounding


def _same_values(a: Payload, b: Payload) -> bool:
    """Whether two payloads hold the same numbers, bit for bit, wherever they lie."""
    if (a.kind, a.shape, a.dtype) != (b.kind, b.shape, b.dtype):
        return False
    for name in a.kind.fields:
        left, right = a.fields[name], b.fields[name]
        if left.coding != right.coding:
            return False
        if isinstance(left.value, Payload) and isinstance(right.value, Payload):
            if not _same_values(left.value, right.value):
                return False
        elif not torch.equal(left.tensor.cpu(), right.tensor.cpu()):
            return False
    return True


def _near(x: Tensor, y: Tensor, z: Tensor) -> bool:
    """Whether ``y`` and ``z`` agree up to rounding, in units of ``x``."""
    _, left, right = relative(x, y, z)
    return float((left - right).norm()) <= rounding(y) * float(left.abs().max())


def check_decodes_from_bytes_alone(
    compressor: Compressor,
    shape: Shape,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> None:
    """Decode from bytes alone: no instance, no setting, no memory of a call.

    ``decode`` must be static, the fields must come back bit for bit, and a message
    must decode to the same tensor after another one has been encoded.
    """
    static = inspect.getattr_static(type(compressor), "decode")
    require(
        isinstance(static, staticmethod),
        compressor,
        shape,
        "decode must be a staticmethod, so that it cannot reach settings",
    )
    names = ("normal", "one hot", "heavy tails", "mostly zero")
    for name, x in examples(shape, dtype, device, names).items():
        payload, _ = compressor.encode(x, fresh(compressor, x), rng_for(name))
        data = wire.pack(payload)
        near = decoders.decode(payload)
        other = gaussian(shape, dtype, device, key=1)
        compressor.encode(other, fresh(compressor, other), rng_for("other"))
        expect = wire.TensorLayout(tuple(x.shape), x.dtype)
        back = decoders.unpack(bytes(bytearray(data)), expect)
        require(
            _same_values(payload, back),
            compressor,
            x,
            f"{name}: the payload changes on its way through pack and unpack",
        )
        far = decoders.decode(back)
        ok = x.numel() == 0 or _near(near, near, far)
        require(ok, compressor, x, f"{name}: bytes decode to another tensor")


def check_keeps_shape_and_dtype(
    compressor: Compressor,
    shape: Shape,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> None:
    """Give the shape and dtype of the input back, also of a strided one."""
    x = gaussian(shape, dtype, device)
    backwards = gaussian(shape[::-1], dtype, device)
    strided = backwards.permute(tuple(reversed(range(len(shape)))))
    for what, tensor in (("contiguous", x), ("strided", strided)):
        tracked = tensor.clone(memory_format=torch.preserve_format).requires_grad_()
        payload, _ = compressor.encode(tracked, fresh(compressor, x), rng_for(what))
        y = decoders.decode(payload)
        require(
            y.shape == x.shape and y.dtype == x.dtype and not y.requires_grad,
            compressor,
            x,
            f"{what}: decodes to {y.dtype} of shape {tuple(y.shape)}, "
            f"requires_grad={y.requires_grad}",
        )
    # A strided tensor is the same tensor: its memory order must not show.
    plain, _ = compressor.encode(
        strided.contiguous(), fresh(compressor, x), rng_for("strided")
    )
    _, left, right = relative(x, decoders.decode(plain), y)
    off = float((left - right).norm())
    # Sums in another order differ in the last places, a wrong order differs in all.
    ok = off <= max(rounding(x), 1e-2 * float(left.norm()))
    require(ok, compressor, x, "a strided tensor is read in the wrong order")


def check_input_untouched(
    compressor: Compressor,
    shape: Shape,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> None:
    """Neither the tensor nor the state that is handed in changes."""
    x = gaussian(shape, dtype, device)
    before = x.clone()
    state = fresh(compressor, x)
    for turn in range(3):
        kept = {k: v.clone() for k, v in state.items()}
        payload, after = compressor.encode(x, state, rng_for(turn))
        decoders.decode(payload)
        require(torch.equal(x, before), compressor, x, "encoding changes its input")
        same = state.keys() == kept.keys() and all(
            torch.equal(state[k], kept[k]) for k in kept
        )
        require(same, compressor, x, "encoding changes the state in place")
        state = after


def check_same_rng_same_bytes(
    compressor: Compressor,
    shape: Shape,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> None:
    """Bytes depend on the arguments alone, never on global random numbers."""
    x = gaussian(shape, dtype, device)
    state = fresh(compressor, x)
    first, after = compressor.encode(x, state, rng_for("same"))
    kept = torch.get_rng_state()
    torch.rand(1)
    moved = torch.get_rng_state()
    again, after_again = compressor.encode(x, state, rng_for("same"))
    untouched = torch.equal(torch.get_rng_state(), moved)
    torch.set_rng_state(kept)
    require(untouched, compressor, x, "torch's global generator is used")
    require(
        wire.pack(first) == wire.pack(again),
        compressor,
        x,
        "the same arguments give other bytes; draw from the rng argument alone",
    )
    same = all(torch.equal(after[k], after_again[k]) for k in after)
    require(same, compressor, x, "the same arguments give another state")


def check_text_rebuilds_it(
    compressor: Compressor,
    shape: Shape = (),
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> None:
    """``parse(str(c)) == c``: that is how settings reach the clients."""
    del dtype, device
    text = str(compressor)
    back = parse(text)
    require(
        back == compressor and str(back) == text,
        compressor,
        shape,
        f"its text {text!r} is read as {back!r}",
    )
    require(
        hash(back) == hash(compressor), compressor, shape, "is not a frozen dataclass"
    )


def check_guarantee_is_stated(
    compressor: Compressor,
    shape: Shape,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> None:
    """State possible constants; ``Exact`` is exact and ``NoGuarantee`` says why."""
    match compressor.guarantee(shape):
        case Unbiased(zeta):
            require(zeta >= 1.0, compressor, shape, f"zeta = {zeta} is below 1")
        case Contractive(delta):
            ok = 0.0 < delta <= 1.0
            require(ok, compressor, shape, f"delta = {delta} is not in (0, 1]")
        case NoGuarantee(reason):
            ok = len(reason.split()) >= 3
            require(ok, compressor, shape, "NoGuarantee needs a reason in words")
        case Exact():
            for name, x in examples(shape, dtype, device).items():
                payload, _ = compressor.encode(x, fresh(compressor, x), rng_for(name))
                y = decoders.decode(payload)
                ok = torch.equal(x, y.to(x.device))
                require(ok, compressor, x, f"{name}: claims to be exact, and is not")


def check_accumulate_equals_sum_of_decodes(
    compressor: Compressor,
    shape: Shape,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> None:
    """Adding weighted messages to a dense sum is adding what they decode to.

    Up to the rounding of the dtype: a sum need not round every message to it.
    """
    weights = (0.5, -2.0, 3.25)
    payloads = []
    for key, _ in enumerate(weights):
        x = gaussian(shape, dtype, device, key)
        payload, _ = compressor.encode(x, fresh(compressor, x), rng_for(key))
        payloads.append(decoders.unpack(wire.pack(payload)))
    start = gaussian(shape, torch.float64, device, key=9)
    out = start.clone()
    decoders.accumulate(payloads, weights, out)
    expected, allowed = start.clone(), 0.0
    for payload, weight in zip(payloads, weights, strict=True):
        y = decoders.decode(payload).to(expected)
        expected += weight * y
        allowed += abs(weight) * 8.0 * torch.finfo(dtype).eps * float(y.norm())
    off = float((out - expected).norm())
    require(
        off <= allowed,
        compressor,
        start,
        f"the sum is off by {off:.3g}, rounding explains {allowed:.3g}",
    )
