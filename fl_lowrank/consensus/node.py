"""A vertex's own model between messages, as a value and pure steps.

``model/NAME`` is what is trained, in its own dtype, and ``rest/NAME`` what rounding has
kept back of it (`rest`), so that thousands of flows do not move the mean. Integers are
not mixed and have no rest; they stand in float64. ``public/NAME`` is the public copy,
where differences to it are sent.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import InputError
from ..model import ModelCodec
from ..rng import Rng
from ..types import State
from . import rest
from .rows import Rows

_MODEL, _REST, _PUBLIC = "model/", "rest/", "public/"
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
    state = {_MODEL + n: _exactly(n, model[n]) for n in rows.others}
    for name in rows.mixed:
        _put(state, name, model[name].double(), rows.layout[name].dtype)
    if tracks:
        state |= {_PUBLIC + name: model[name] for name in rows.parameters}
    return state


def fits(rows: Rows, state: State) -> bool:
    """Whether this is the state of such a model."""
    wanted = {_MODEL + n: (t.shape, torch.float64) for n, t in rows.others.items()}
    for name, tensor in rows.mixed.items():
        wanted[_MODEL + name] = tensor.shape, rows.layout[name].dtype
        wanted[_REST + name] = tensor.shape, rest.DTYPE
    found = {k: (tuple(x.shape), x.dtype) for k, x in state.items()}
    return wanted == {k: v for k, v in found.items() if not k.startswith(_PUBLIC)}


def model_of(rows: Rows, state: State) -> dict[str, Tensor]:
    """Give the model, in its own dtypes."""
    return {n: state[_MODEL + n].to(t.dtype) for n, t in rows.layout.items()}


def gain(state: State, flow: Mapping[str, Tensor]) -> State:
    """Add a flow; variances stay at least 0, even if it comes late."""
    after = dict(state)
    for name, x in flow.items():
        moved = _total(state, name) + x
        if name.endswith("running_var"):
            moved.clamp_(min=0.0)
        _put(after, name, moved, state[_MODEL + name].dtype)
    return after


def train(
    state: State, before: Mapping[str, Tensor], after: Mapping[str, Tensor]
) -> State:
    """Take over what training has made of ``before``.

    A flow that has come in meanwhile stays, and so does what rounding has kept back.
    """
    new = dict(state)
    for name, x in after.items():
        now = state[_MODEL + name]
        if _REST + name not in state:
            new[_MODEL + name] = _exactly(name, x) + (now - before[name].double())
        elif torch.equal(now, before[name]):
            new[_MODEL + name] = x
        else:
            moved = x.double() - before[name].double()
            _put(new, name, _total(state, name) + moved, x.dtype)
    return new


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
    """Give integers in float64; `InputError` if that cannot hold them."""
    wide = x.to(torch.float64)
    if x.numel() and wide.abs().max() >= _LARGEST:
        msg = (
            f"consensus: expected integers below 2^53 in {name!r}, found larger ones; "
            "leave the array out of the model"
        )
        raise InputError(msg)
    return wide


def _total(state: State, name: str) -> Tensor:
    return rest.total(state[_MODEL + name], state[_REST + name])


def _put(
    state: dict[str, Tensor], name: str, exact: Tensor, dtype: torch.dtype
) -> None:
    state[_MODEL + name], state[_REST + name] = rest.rounded(exact, dtype)
