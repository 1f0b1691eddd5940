"""The client's side of the downlink: a compressed model becomes a whole one.

The reference is kept where the memory is, as a part of its own: it changes when the
server moves it, and the memory when the client trains. It is durable before training
begins, and a client that has lost it says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from flwr.app import Array, ArrayRecord, Context, Message
from torch import Tensor

from fl_lowrank.broadcast import Broadcast
from fl_lowrank.envelope import REQUEST_KEY, STYPE, Request
from fl_lowrank.errors import ProtocolError, WireError
from fl_lowrank.model import Layout, ModelCodec, layout_of
from fl_lowrank.reference import fingerprint, followed, moved
from fl_lowrank.updates import split_layout

from .arrays import only_arrays, tensors_of
from .homes import Home, choose
from .turns import REFERENCE, Memory


def restore(
    message: Message,
    context: Context,
    request: Request,
    home: Home | Literal["auto"],
) -> None:
    """Put the whole model where a compressed one stands; leave all others alone.

    Raises
    ------
    ProtocolError
        If this client does not hold a reference that the message continues. The server
        sends the whole model after such a reply.
    WireError
        If the message is damaged; nothing is changed then.
    """
    record = only_arrays(message, "the request")
    array = record.get(REQUEST_KEY)
    if array is None or array.stype != STYPE:
        return
    sent = Broadcast.unpack(array.data)
    if home == "auto":
        home = choose(context, request.fid, sent.model_bytes)
    with home.open(context, request.fid, "reference") as slot:
        before = _ours(slot.memory, request)
        model = _arrays_of(record) if sent.is_whole else dict(before.tensors)
        lossy, exact = split_layout(layout_of(model), request.exact)
        if sent.is_whole:
            _check(model, lossy, sent.reference)
        else:
            model |= _followed(before, sent, lossy)
            model |= ModelCodec.decode(sent.exact, exact)
        shown = model | moved(model, sent.step, lossy) if sent.step else model
        if before.base != sent.reference:
            new = replace(before, seen=request.ticket, base=sent.reference)
            slot.save(replace(new, tensors=model))
    (key,) = message.content.array_records
    arrays = {name: Array(tensor.numpy()) for name, tensor in shown.items()}
    message.content[key] = ArrayRecord(arrays)


def _ours(memory: Memory | None, request: Request) -> Memory:
    """Give the reference of this training, or none; never go back to an older one."""
    if memory is None or (memory.fid, memory.feedback) != (request.fid, REFERENCE):
        return Memory(request.fid, REFERENCE)
    if request.ticket < memory.seen:
        msg = (
            f"request {request.ticket} is older than {memory.seen}, which has moved "
            "the model since; it was delayed on its way"
        )
        raise ProtocolError(msg)
    return memory


def _arrays_of(record: ArrayRecord) -> dict[str, Tensor]:
    """Read the arrays of the model, which stand beside the broadcast."""
    return tensors_of(
        ArrayRecord({name: a for name, a in record.items() if name != REQUEST_KEY})
    )


def _check(model: Mapping[str, Tensor], layout: Layout, wanted: int) -> None:
    """Refuse a whole model that is not the announced one."""
    found = fingerprint({name: model[name] for name in layout})
    if found != wanted:
        msg = f"the model that came is {found:016x}, expected {wanted:016x}; damaged"
        raise WireError(msg)


def _followed(before: Memory, sent: Broadcast, layout: Layout) -> dict[str, Tensor]:
    """Bring the reference that is held to where the server's is."""
    if not before.base:
        msg = (
            "this client holds no model of this training, or has lost it; the server "
            "sends the whole one the next time"
        )
        raise ProtocolError(msg)
    held = {name: before.tensors[name] for name in layout}
    return followed(held, before.base, sent.links, sent.reference, layout)
