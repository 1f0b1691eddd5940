"""A vertex's own model between messages, as a value and pure steps.

``model/NAME`` is float64, whatever the model's dtype: what rounding keeps from the
model that is trained is not lost, and thousands of flows do not move the mean.
``public/NAME`` is the public copy, where differences to it are sent.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import InputError
from ..model import ModelCodec
from ..rng import Rng
from ..types import State
from .rows import Rows

_MODEL, _PUBLIC = "model/", "public/"
_EXACT = ModelCodec("identity()")
_LARGEST = 2**53


def begin(rows: Rows, model: Mapping[str, Tensor], *, tracks: bool) -> State:
    """Start from a public copy.

    Parameters
    ----------
    rows : Rows
        Of the model.
    model : Mapping[str, Tensor]
        All of ``rows.whole``.
    tracks : bool
        Whether differences to the copy will be sent.
    """
    state = {_MODEL + name: _exactly(name, x) for name, x in model.items()}
    if tracks:
        state |= {_PUBLIC + name: model[name] for name in rows.parameters}
    return state


def fits(rows: Rows, state: State) -> bool:
    """Whether this is the state of such a model."""
    return {n: t.shape for n, t in rows.layout.items()} == {
        key.removeprefix(_MODEL): tuple(x.shape)
        for key, x in state.items()
        if key.startswith(_MODEL)
    }


def model_of(rows: Rows, state: State) -> dict[str, Tensor]:
    """Give the model, in its own dtypes."""
    return {n: state[_MODEL + n].to(t.dtype) for n, t in rows.layout.items()}


def gain(state: State, flow: Mapping[str, Tensor]) -> State:
    """Add a flow; variances stay at least 0, even if it comes late."""
    after = dict(state)
    for name, x in flow.items():
        moved = state[_MODEL + name] + x
        after[_MODEL + name] = (
            moved.clamp_(min=0.0) if name.endswith("running_var") else moved
        )
    return after


def train(
    state: State, before: Mapping[str, Tensor], after: Mapping[str, Tensor]
) -> State:
    """Take over what training has made of ``before``.

    A flow that has come in meanwhile stays, and so does what rounding has kept from
    ``before``.
    """
    return dict(state) | {
        _MODEL + name: _exactly(name, x)
        + (state[_MODEL + name] - _exactly(name, before[name]))
        for name, x in after.items()
    }


def message(
    rows: Rows, state: State, codec: ModelCodec, memory: State, rng: Rng
) -> tuple[bytes, bytes, State]:
    """Write what neighbours get.

    Parameters
    ----------
    rows : Rows
        Of the model.
    state : State
        Of the vertex.
    codec : ModelCodec
        For the parameters, or their difference to the public copy.
    memory : State
        Of the codec.
    rng : Rng
        For the codec.

    Returns
    -------
    tuple of bytes, bytes and State
        The parameters, the statistics (exactly; empty if there are none), and the
        codec's memory afterwards.
    """
    update = {n: state[_MODEL + n].to(t.dtype) for n, t in rows.parameters.items()}
    if any(_PUBLIC + name in state for name in update):
        update = {name: x - state[_PUBLIC + name] for name, x in update.items()}
    data, memory = codec.encode(update, memory, rng)
    statistics = {n: state[_MODEL + n].to(t.dtype) for n, t in rows.statistics.items()}
    return data, encode_exactly(statistics), memory


def settle(rows: Rows, state: State, data: bytes) -> State:
    """Note that a message has entered the public copy."""
    if not any(_PUBLIC + name in state for name in rows.parameters):
        return state
    sent = ModelCodec.decode(data, rows.parameters)
    return dict(state) | {_PUBLIC + n: state[_PUBLIC + n] + x for n, x in sent.items()}


def encode_exactly(tensors: Mapping[str, Tensor]) -> bytes:
    """Write tensors without loss; nothing for none."""
    return _EXACT.encode(tensors, {}, Rng(0))[0] if tensors else b""


def _exactly(name: str, x: Tensor) -> Tensor:
    """Give a tensor in float64; `InputError` if that cannot hold its integers."""
    wide = x.to(torch.float64)
    if not x.dtype.is_floating_point and x.numel() and wide.abs().max() >= _LARGEST:
        msg = (
            f"consensus: expected integers below 2^53 in {name!r}, found larger ones; "
            "leave the array out of the model"
        )
        raise InputError(msg)
    return wide
