"""The client's side of the memory protocol, as a value and pure steps.

A turn is one encoded update. It stays *pending* until a later request tells
whether the server has applied it; only then is the memory settled. Numbers of turns
are random, so two different payloads never share one.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from torch import Tensor

from fl_lowrank.envelope import Request, Ticket
from fl_lowrank.errors import ProtocolError
from fl_lowrank.feedback import Feedback
from fl_lowrank.model import Layout, ModelCodec
from fl_lowrank.rng import Rng
from fl_lowrank.types import State

#: Gives a state with renewed importance weights, for what is about to be sent and what
#: the receiver has of it already.
Renew: TypeAlias = Callable[[State, Mapping[str, Tensor], Mapping[str, Tensor]], State]

#: Stands in a memory's place of a feedback where it is a reference, a whole model.
REFERENCE = "reference"
#: After so many turns in a row that did not arrive, a remembered error is stale.
STALE_AFTER = 3


@dataclass(frozen=True)
class Memory:
    """What a node remembers between messages; durable before a reply leaves.

    Attributes
    ----------
    fid, epoch, seen
        Training, reset and last request that it belongs to.
    base : int
        Id of the last settled turn that the memory holds; 0 for none.
    tensors : dict
        Memory of the feedback, in weighted units of the update.
    pending : tuple of int and bytes, optional
        Id and payload of the turn whose fate is unknown.
    unsettled : int
        Turns in a row that did not arrive.
    gave_up : bool
        An error was given up, and no reply that says so has arrived yet.
    codec : dict
        State of the compressors (warm starts, importance weights).
    """

    fid: bytes
    feedback: str
    epoch: int = 0
    seen: Ticket = (0, 0)
    base: int = 0
    tensors: dict[str, Tensor] = field(default_factory=dict)
    pending: tuple[int, bytes] | None = None
    unsettled: int = 0
    gave_up: bool = False
    codec: dict[str, Tensor] = field(default_factory=dict)


def new_turn() -> int:
    """Draw 64 random bits, never 0."""
    return secrets.randbits(64) or 1


def check_deadline(request: Request) -> None:
    """Refuse, by `ProtocolError`, a request that nobody waits for any more."""
    if time.time() > request.deadline:
        msg = f"request {request.ticket} came after its deadline; check the clocks"
        raise ProtocolError(msg)


def admit(memory: Memory | None, request: Request) -> Memory:
    """Accept a request and forget what it makes void.

    Raises
    ------
    ProtocolError
        If the request is old or repeated; nothing changes then.
    """
    if memory is None or memory.fid != request.fid:
        memory = Memory(request.fid, request.feedback, request.epoch)
    if request.ticket <= memory.seen:
        msg = (
            f"request {request.ticket} is not newer than {memory.seen}; it was "
            "delayed or repeated on its way"
        )
        raise ProtocolError(msg)
    if memory.feedback != request.feedback:
        memory = Memory(request.fid, request.feedback, request.epoch)
    return replace(memory, seen=request.ticket)


def settle(
    memory: Memory, request: Request, feedback: Feedback, layout: Layout
) -> Memory:
    """Bring the memory in line with what the server says it has applied.

    An error that cannot be kept is given up, and every reply says so until one has
    arrived.

    Returns
    -------
    Memory
        Without a pending turn.
    """
    if feedback.has_share and memory.epoch != request.epoch:
        memory = _emptied(memory)
    memory = replace(memory, epoch=request.epoch)
    if not _fits(memory, feedback, layout):
        memory = _emptied(memory)
    if memory.pending is not None and request.applied == memory.pending[0]:
        turn, payload = memory.pending
        sent = ModelCodec.decode(payload, layout)
        tensors = feedback.settle(memory.tensors, sent, applied=True)
        settled = replace(memory, tensors=tensors, base=turn, gave_up=False)
        return replace(settled, pending=None, unsettled=0)
    if request.applied != memory.base:
        # To a server with a sum, base 0 says that the memory is lost. Without one an
        # empty memory follows any turn, and what it gathers from now on must not be
        # lost too when the next turn does not arrive.
        if feedback.has_share:
            return _emptied(memory)
        gave_up = memory.gave_up or bool(memory.tensors)
        return replace(_emptied(memory), base=request.applied, gave_up=gave_up)
    if memory.pending is None:
        return memory
    unsettled = memory.unsettled + 1
    if unsettled >= STALE_AFTER and not feedback.has_share:
        return replace(_emptied(memory), base=memory.base, gave_up=True)
    tensors = feedback.settle(memory.tensors, {}, applied=False)
    return replace(memory, tensors=tensors, pending=None, unsettled=unsettled)


def take_turn(
    memory: Memory,
    update: dict[str, Tensor],
    feedback: Feedback,
    codec: ModelCodec,
    rng: Rng,
    renew: Renew,
) -> tuple[Memory, int, bytes]:
    """Encode an update: the memory to save, the turn's id and its payload.

    Renewed weights are part of the memory that is given: if that is not saved, they
    are as they were.

    Raises
    ------
    InputError
        If the update cannot be compressed, for instance because it is not finite.
    """
    tensors = memory.tensors or feedback.init(update)
    under_way, to_send = feedback.prepare(tensors, update)
    state = renew(memory.codec, to_send, under_way if feedback.has_share else {})
    payload, state = codec.encode(to_send, state, rng)
    turn = new_turn()
    pending = (turn, payload) if feedback.has_memory else None
    after = replace(memory, tensors=under_way, pending=pending, codec=state)
    return after, turn, payload


def _emptied(memory: Memory) -> Memory:
    """Forget what was remembered, but neither the training nor the last request."""
    return Memory(memory.fid, memory.feedback, memory.epoch, memory.seen)


def _fits(memory: Memory, feedback: Feedback, layout: Layout) -> bool:
    """Whether the memory is empty or of this model."""
    shapes = {name: t.shape for name, t in layout.items()}
    return not memory.tensors or feedback.fits(memory.tensors, shapes)
