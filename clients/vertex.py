"""A vertex's side of the mail room, as pure steps on its memory.

The memory's ``epoch`` is the id of the last flow that is in the model, its ``base``
that of the public copy.
"""

from __future__ import annotations

from dataclasses import replace

from fl_lowrank.consensus import Parcel, Rows, node
from fl_lowrank.consensus.mail_room import TRACKED
from fl_lowrank.envelope import Request
from fl_lowrank.model import ModelCodec
from fl_lowrank.rng import Rng

from . import turns
from .turns import Memory


def receive(
    memory: Memory | None, request: Request, parcel: Parcel, rows: Rows
) -> Memory | None:
    """Learn what has become of the last message, and take in the flow, once.

    Returns
    -------
    Memory or None
        None if the memory is lost, or not the one that the mail room knows of, and the
        parcel holds no model to restart from.

    Raises
    ------
    ProtocolError
        If the request is old or repeated; nothing changes then.
    WireError
        If the parcel is damaged.
    """
    memory = turns.admit(memory, request)
    pending = memory.pending
    if not memory.tensors or not node.fits(rows, memory.tensors):
        memory = replace(memory, base=0, pending=None)
    elif pending is not None and request.applied == pending[0]:
        tensors = node.settle(rows, memory.tensors, pending[1])
        memory = replace(memory, tensors=tensors, base=pending[0])
    if memory.base != request.applied:
        if not parcel.model:
            return None
        model = ModelCodec.decode(parcel.model, rows.whole)
        tracks = request.feedback == TRACKED
        memory = Memory(
            memory.fid,
            memory.feedback,
            seen=memory.seen,
            base=request.applied,
            tensors=node.begin(rows, model, tracks=tracks),
        )
    if parcel.flow and memory.epoch != request.epoch:
        flow = ModelCodec.decode(parcel.flow, rows.flows)
        tensors = node.gain(memory.tensors, flow)
        memory = replace(memory, epoch=request.epoch, tensors=tensors)
    return replace(memory, pending=None)


def speak(
    memory: Memory, request: Request, rows: Rows
) -> tuple[Memory, int, bytes, bytes]:
    """Write the message for the neighbours.

    Returns
    -------
    tuple of Memory, int, bytes and bytes
        The memory to save, the message's id, parameters and statistics.
    """
    lossy, exact, codec = node.message(
        rows,
        memory.tensors,
        ModelCodec(request.codec),
        memory.codec,
        Rng(request.draws),
    )
    turn = turns.new_turn()
    kept = lossy if request.feedback == TRACKED else b""
    return replace(memory, pending=(turn, kept), codec=codec), turn, lossy, exact
