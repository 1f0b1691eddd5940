"""The mod of a client that has a model of its own, and mixes it with neighbours'."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    RecordDict,
)
from flwr.clientapp.typing import ClientAppCallable
from torch import Tensor

from fl_lowrank.consensus import CONSENSUS_KEY, STEPS_KEY, Parcel, Rows, node
from fl_lowrank.envelope import STYPE, TRAIN, Reply, Request
from fl_lowrank.errors import ProtocolError
from fl_lowrank.model import layout_of

from . import turns, vertex
from .arrays import check_finite, check_same_model, only_arrays, tensors_of
from .homes import choose
from .requested import RequestMod
from .turns import Memory


class ConsensusMod(RequestMod):
    """Trains the node's own model instead of one that the server sends.

    For the strategies ``Consensus`` and ``Gossip``. Put it first in the list of mods::

        app = ClientApp(mods=[ConsensusMod()])

    The user's functions see messages as any strategy of Flower sends them: the arrays
    are the node's own model, with what it has gained from its neighbours. What training
    makes of them stays on the node; neighbours get it exactly, or as a compressed
    difference to the copy that they have. The config says how many local steps are due
    (``local-steps``; what a step is, the app decides) and the number of the first one
    (``first-local-step``). Steps that a lost message has asked for are left out.

    The model lives in the node's memory, which is saved before a reply leaves. A node
    that has lost it restarts from the copy that its neighbours have. Messages of other
    strategies pass untouched.

    Parameters
    ----------
    memory : Home or "auto"
        Where memories live, see `CompressionMod`. They hold the model, a float32 number
        for what rounding has kept back of each of its entries, and if messages are
        compressed the neighbours' copy of it.
    """

    key = CONSENSUS_KEY

    def _serve(
        self,
        message: Message,
        context: Context,
        call_next: ClientAppCallable,
        request: Request,
    ) -> Message:
        """Take in what was gained; train or evaluate; save, then answer.

        Training does not hold the memory, as in `CompressionMod`: of two requests that
        are served at once, the later one adds what it has trained.
        """
        turns.check_deadline(request)
        parcel = Parcel.unpack(_data_of(message))
        rows = Rows(parcel.layout, request.exact)
        home = self.memory
        if home == "auto":
            num_bytes = sum(t.numel * t.dtype.itemsize for t in rows.whole.values())
            home = choose(context, request.fid, num_bytes)
        trains = request.purpose == TRAIN
        with home.open(context, request.fid) as slot:
            memory = vertex.receive(slot.memory, request, parcel, rows)
            if memory is not None and not trains:
                slot.save(memory)
        if memory is None:
            return _tell_loss(message, request)
        before = node.model_of(rows, memory.tensors)
        if not trains:
            reply = _call(message, context, call_next, before)
            return _answered(reply, request, memory, node.encode_exactly(before))
        reply = Message(RecordDict(), reply_to=message)
        after = before
        if _steps_due(message):
            reply = _call(message, context, call_next, before)
            if reply.has_error():
                return reply
            after = tensors_of(only_arrays(reply, "the reply"))
            check_same_model(layout_of(before), layout_of(after))
            check_finite(after)
        begin = time.perf_counter()
        with home.open(context, request.fid) as slot:
            memory = vertex.receive(slot.memory, request, parcel, rows)
            if memory is None:  # lost while it was training
                return _tell_loss(message, request)
            memory = replace(memory, tensors=node.train(memory.tensors, before, after))
            turn, lossy, exact = turns.new_turn(), b"", b""
            if request.codec:
                memory, turn, lossy, exact = vertex.speak(memory, request, rows)
            seconds = time.perf_counter() - begin
            slot.save(memory)
        return _answered(reply, request, memory, lossy, exact, turn, seconds)


def _data_of(message: Message) -> bytes:
    """Give the parcel's bytes, or `ProtocolError`."""
    arrays = list(only_arrays(message, "the request").values())
    if len(arrays) != 1 or arrays[0].stype != STYPE:
        msg = f"expected one array of type {STYPE} in the request, found {len(arrays)}"
        raise ProtocolError(msg)
    return arrays[0].data


def _steps_due(message: Message) -> bool:
    """Whether the request asks for local steps; of a server that says nothing, yes."""
    records: list[ConfigRecord] = list(message.content.config_records.values())
    return all(record.get(STEPS_KEY, 1) for record in records)


def _call(
    message: Message,
    context: Context,
    call_next: ClientAppCallable,
    model: Mapping[str, Tensor],
) -> Message:
    """Let the user's code work on the node's own model."""
    (key,) = message.content.array_records
    arrays = {name: Array(x.numpy()) for name, x in model.items()}
    message.content[key] = ArrayRecord(arrays)
    return call_next(message, context)


def _tell_loss(message: Message, request: Request) -> Message:
    """Say that there is no model that goes with the public copy."""
    reply = Message(RecordDict(), reply_to=message)
    nothing = Memory(request.fid, request.feedback)
    return _answered(reply, request, nothing, b"")


def _answered(
    reply: Message,
    request: Request,
    memory: Memory,
    lossy: bytes,
    exact: bytes = b"",
    turn: int = 1,
    seconds: float = 0.0,
) -> Message:
    """Put the answer where the reply's arrays were."""
    if reply.has_error():
        return reply
    data = Reply(
        fid=request.fid,
        epoch=memory.epoch,
        ticket=request.ticket,
        base=memory.base,
        turn=turn,
        encode_seconds=seconds,
        error_dropped=False,
        lossy=lossy,
        exact=exact,
    ).pack()
    for key in list(reply.content.array_records):
        del reply.content[key]
    array = Array(dtype="uint8", shape=(len(data),), stype=STYPE, data=data)
    reply.content[CONSENSUS_KEY] = ArrayRecord({CONSENSUS_KEY: array})
    return reply
