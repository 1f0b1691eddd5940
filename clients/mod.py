"""The mod that compresses a client's replies."""

from __future__ import annotations

import time
from functools import partial
from typing import Literal

from flwr.app import (
    Array,
    ArrayRecord,
    Context,
    Message,
)
from flwr.clientapp.typing import ClientAppCallable

from fl_lowrank import feedback as feedbacks
from fl_lowrank.envelope import (
    EVALUATE,
    GRADIENTS_KEY,
    REQUEST_KEY,
    STYPE,
    Reply,
    Request,
)
from fl_lowrank.errors import ProtocolError
from fl_lowrank.model import Layout, ModelCodec
from fl_lowrank.rng import Rng
from fl_lowrank.updates import MAX_NUM_EXAMPLES, split_layout, weighted_update

from . import reference, turns
from .arrays import (
    check_finite,
    check_same_model,
    copies_of,
    layout_of_views,
    only_arrays,
    views_of,
)
from .homes import Home, choose
from .importance import GradientFn, Weighing
from .requested import RequestMod

_EXACT = ModelCodec("*: identity()")


class CompressionMod(RequestMod):
    """Sends what the ``Compressed`` strategy asks for instead of whole models.

    Put it first in the list of mods, so that it is the outermost one and sees what
    clipping or noise have made of the update::

        app = ClientApp(mods=[CompressionMod()])

    It holds no settings: compressor, feedback and the numbers of the round come with
    every message. It computes ``reply - received``, adds what the feedback remembers,
    and sends the bytes as one Array of type ``fl-lowrank/1`` in the reply's own
    ArrayRecord. The memory is saved before the reply leaves. A model that comes
    compressed is whole again before anybody else sees it. Messages of a server without
    ``Compressed`` pass untouched.

    A request that cannot be served (older than one already seen, unknown compressor,
    an update that is not finite, arrays of other names or shapes than received) is
    answered with an error that says why; the server goes on without it.

    Parameters
    ----------
    gradient : callable, optional
        Needed by importance compressors (``md_...``) alone. ``gradient(parameters,
        message, context)`` gives the gradient of the local loss at ``parameters``, all
        arrays of the model as tensors, in a dict with at least the trained ones; the
        message is the request that is answered. It must use the same samples whenever
        it is called with one message. How often it was called is in the reply's
        metrics, under ``extra-gradients``.
    memory : Home or "auto"
        Where memories live: ``FileHome(folder)`` or ``ContextHome()``, whatever the
        node's config and environment say; left out, they decide (`clients.homes`).
    """

    key = REQUEST_KEY

    def __init__(
        self,
        gradient: GradientFn | None = None,
        memory: Home | Literal["auto"] = "auto",
    ) -> None:
        super().__init__(memory)
        self.gradient = gradient

    def _serve(
        self,
        message: Message,
        context: Context,
        call_next: ClientAppCallable,
        request: Request,
    ) -> Message:
        """Settle the memory and evaluate; or train, then settle and compress.

        Training does not hold the memory: two requests of one node may train at once,
        after a timeout. The first that ends takes its turn, and the other one too if
        it is newer.
        """
        turns.check_deadline(request)
        feedback = feedbacks.named(request.feedback)
        reference.restore(message, context, request, self.memory)
        received = views_of(only_arrays(message, "the request"))
        layout = layout_of_views(received)
        lossy, exact = split_layout(layout, request.exact)
        home = self.memory
        if home == "auto":
            home = choose(context, request.fid, _num_bytes(lossy))
        if request.purpose == EVALUATE:
            with home.open(context, request.fid) as slot:
                memory = turns.admit(slot.memory, request)
                slot.save(turns.settle(memory, request, feedback, lossy))
            return call_next(message, context)
        # What is wrong already fails before an hour of training.
        turns.admit(home.peek(context, request.fid), request)
        codec = ModelCodec(request.codec)
        weighing = Weighing(codec.importance(lossy), self.gradient, message, context)
        reply = call_next(message, context)
        if reply.has_error():
            return reply
        trained = views_of(only_arrays(reply, "the reply"))
        check_same_model(layout, layout_of_views(trained))
        begin = time.perf_counter()
        factor = _num_examples(reply, request.weight_key) / request.scale
        update = weighted_update(received, trained, lossy, factor)
        check_finite(update)
        untrained = trained | {name: received[name] for name in lossy}
        model = copies_of(untrained) if weighing.needs else {}
        renew = partial(weighing.renew, model, factor)
        kept = copies_of({name: trained[name] for name in exact})
        buffers, _ = _EXACT.encode(kept, {}, Rng(0))
        with home.open(context, request.fid) as slot:
            memory = turns.admit(slot.memory, request)
            memory = turns.settle(memory, request, feedback, lossy)
            memory, turn, payload = turns.take_turn(
                memory, update, feedback, codec, Rng(request.draws), renew
            )
            seconds = time.perf_counter() - begin
            slot.save(memory)
        answer = Reply(
            fid=request.fid,
            epoch=request.epoch,
            ticket=request.ticket,
            base=memory.base,
            turn=turn,
            encode_seconds=seconds,
            error_dropped=memory.gave_up,
            lossy=payload,
            exact=buffers,
        )
        _replace_arrays(reply, answer.pack())
        if weighing.needs:
            (metrics,) = reply.content.metric_records.values()
            metrics[GRADIENTS_KEY] = weighing.num_gradients
        return reply


def _num_bytes(layout: Layout) -> int:
    return sum(t.numel * t.dtype.itemsize for t in layout.values())


def _num_examples(reply: Message, key: str) -> float:
    """Read the weight of the reply from its only MetricRecord."""
    records = list(reply.content.metric_records.values())
    value = records[0].get(key) if len(records) == 1 else None
    if isinstance(value, list) or value is None:
        msg = (
            f"expected one MetricRecord with a number {key!r} in the reply, found "
            f"{len(records)} records"
        )
        raise ProtocolError(msg)
    if not 0 < value <= MAX_NUM_EXAMPLES:
        msg = (
            f"expected {key!r} in (0, {MAX_NUM_EXAMPLES:g}] in the reply, found {value}"
        )
        raise ProtocolError(msg)
    return float(value)


def _replace_arrays(reply: Message, data: bytes) -> None:
    """Put the bytes where the arrays were."""
    key = next(iter(reply.content.array_records))
    array = Array(dtype="uint8", shape=(len(data),), stype=STYPE, data=data)
    reply.content[key] = ArrayRecord({REQUEST_KEY: array})
