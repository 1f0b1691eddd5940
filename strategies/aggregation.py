"""From the replies of a round to what the inner strategy averages."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from logging import WARNING

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord
from flwr.common import log
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fl_lowrank.errors import CompressionError, WireError
from fl_lowrank.model import Layout, ModelCodec
from fl_lowrank.updates import split_layout

from . import replies as reading
from .inner import metrics_of
from .ledger import Ledger
from .norms import ExactLimit, NormLimit, Sent
from .replies import Incoming
from .sinks import Sink, Update, sink_for
from .turns import SLICE, Book, Staged
from .uplink import Uplink


@dataclass(frozen=True)
class Accepted:
    """A reply that takes part in the round.

    Attributes
    ----------
    incoming : Incoming
        The reply.
    update : dict
        What it tells of the client's update; empty where only the sum is asked for.
    """

    incoming: Incoming
    update: Update


@dataclass(frozen=True)
class Round:
    """What all steps of one aggregation share.

    Attributes
    ----------
    number : int
        Of the round.
    arrays : ArrayRecord
        The model that the clients got.
    uplink : Uplink
        What clients were asked to send.
    scale : float
        Unit of the updates.
    limit : NormLimit
        What is too large to be true.
    exact_limit : ExactLimit
        The same of arrays that travel exactly.
    """

    number: int
    arrays: ArrayRecord
    uplink: Uplink
    scale: float
    limit: NormLimit
    exact_limit: ExactLimit

    def collect(
        self,
        book: Book,
        ledger: Ledger,
        valid: Sequence[tuple[str, Message]],
        *,
        singly: bool,
    ) -> list[Accepted]:
        """Read, check and decode or sum replies, and stage their turns.

        A reply that cannot be used is logged with its client and reason, and left
        out; its client will take the turn back.
        """
        read: list[Incoming] = []
        for client, message in valid:
            try:
                read.append(reading.read(client, message, self.uplink.weight_key))
            except CompressionError as error:
                _leave_out(ledger, self.number, client, error)
        usual = reading.same_form([r.message for r in read])
        lossy, _ = self._layouts
        norms = not self.uplink.sums_undecoded
        sink = sink_for(book, lossy, singly=singly, norms=norms)
        if self.limit.knows_nothing:
            self._learn_norms(sink, read)
        accepted: dict[str, Accepted] = {}
        begin = time.perf_counter()
        decoded = sink.read_all(r.reply for r in read)
        for incoming, ok, parts in zip(read, usual, decoded, strict=True):
            client, reply = incoming.client, incoming.reply
            try:
                if not ok:
                    raise WireError(reading.OTHER_FORM)
                if singly and not reading.finite_metrics(incoming.message):
                    raise WireError("one of its metrics is not finite")
                if isinstance(parts, CompressionError):
                    raise parts
                self.exact_limit.check(self._sent, self._exact_of(incoming))
                norm = sink.norm(parts) / incoming.num_examples
                self.limit.check(norm, first=reply.base == 0)
                book.claim(client, reply)
                update = sink.put(client, reply, parts)
            except CompressionError as error:
                _leave_out(ledger, self.number, client, error)
                continue
            accepted[client] = Accepted(incoming, update)
        arrived, failed = sink.close()
        ledger.add_seconds(self.number, "decode", time.perf_counter() - begin)
        for client, failure in failed.items():
            _leave_out(ledger, self.number, client, failure)
            del accepted[client]
        for a in accepted.values():
            _note(ledger, self.number, a.incoming)
        turns = [
            Staged(client, a.incoming.reply.turn, a.incoming.num_examples)
            for client, a in accepted.items()
        ]
        book.stage(turns, arrived, sink.give_back)
        return list(accepted.values())

    def _learn_norms(self, sink: Sink, read: Sequence[Incoming]) -> None:
        """See what is usual before the first reply is judged."""
        decoded = sink.read_all(r.reply for r in read)
        for incoming, parts in zip(read, decoded, strict=True):
            if not isinstance(parts, CompressionError):
                norm = sink.norm(parts) / incoming.num_examples
                self.limit.note(norm, first=incoming.reply.base == 0)
            with suppress(CompressionError):
                self.exact_limit.note(self._sent, self._exact_of(incoming))

    def average(
        self,
        inner: Strategy,
        book: Book,
        accepted: Sequence[Accepted],
        errors: list[Message],
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Give a linear strategy one reply: the mean of all.

        Its metrics function still sees every reply.
        """
        means = reading.weighted_mean(
            (self._exact_of(a.incoming), a.incoming.num_examples) for a in accepted
        )
        mean = self._record(means, book.estimate, self.scale)
        book.forget_arrived()
        weight = sum(a.incoming.num_examples for a in accepted)
        first = accepted[0].incoming.message
        reply = reading.with_arrays(first, mean, (self.uplink.weight_key, weight))
        with metrics_of(inner, [a.incoming.message for a in accepted]):
            return inner.aggregate_train(self.number, [reply, *errors])

    def pass_on(
        self, inner: Strategy, accepted: Sequence[Accepted], errors: list[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Give any other strategy every reply, decoded to a whole model."""
        messages = []
        for a in accepted:
            arrays = self._record(
                self._exact_of(a.incoming),
                partial(_slices_of, a.update),
                self.scale / a.incoming.num_examples,
            )
            messages.append(reading.with_arrays(a.incoming.message, arrays))
        return inner.aggregate_train(self.number, messages + errors)

    @cached_property
    def _layouts(self) -> tuple[Layout, Layout]:
        """What was compressed, and what travelled exactly."""
        return split_layout(reading.layout_of(self.arrays), self.uplink.exact)

    @cached_property
    def _sent(self) -> Sent:
        """What clients got of the arrays that travel exactly."""
        _, exact = self._layouts
        return Sent({name: reading.entries_of(self.arrays[name]) for name in exact})

    def _exact_of(self, incoming: Incoming) -> dict[str, Tensor]:
        _, exact = self._layouts
        return ModelCodec.decode(incoming.reply.exact, exact)

    def _record(
        self,
        exact: Mapping[str, Tensor],
        update: Callable[[str], Iterable[Tensor]],
        factor: float,
    ) -> ArrayRecord:
        """Give the exact arrays, and the others plus ``factor`` times their update."""
        lossy, _ = self._layouts
        arrays = {}
        for name, before in self.arrays.items():
            if name in lossy:
                parts = _moved(before, update(name), factor)
            else:
                parts = _slices_of(exact, name)
            arrays[name] = reading.array_of(parts, before)
        return ArrayRecord(arrays)


def _slices_of(tensors: Mapping[str, Tensor], name: str) -> Iterator[Tensor]:
    yield from torch.split(tensors[name].reshape(-1), SLICE)


def _moved(before: Array, update: Iterable[Tensor], factor: float) -> Iterator[Tensor]:
    """Add ``factor`` times an update to an array, slice by slice, in float64."""
    entries, begin = reading.entries_of(before), 0
    for part in update:
        wide = entries[begin : begin + len(part)].astype(np.float64)
        begin += len(part)
        yield part.to(torch.float64).mul(factor).add_(torch.from_numpy(wide))


def _note(ledger: Ledger, round_: int, incoming: Incoming) -> None:
    """Enter what a reply that counts says of itself."""
    ledger.add_seconds(round_, "encode", incoming.reply.encode_seconds)
    ledger.add_gradients(round_, reading.extra_gradients(incoming.message))
    if incoming.reply.error_dropped:
        log(
            WARNING,
            "Compressed: %s gave up an error that it could not deliver",
            incoming.client,
        )


def _leave_out(
    ledger: Ledger, round_: int, client: str, error: CompressionError
) -> None:
    ledger.add_dropped(round_)
    log(WARNING, "Compressed: left out the reply of %s: %s", client, error)
