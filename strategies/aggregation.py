"""From the replies of a round to what the inner strategy averages."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from logging import WARNING

import torch
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.common import log
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fl_lowrank.errors import CompressionError, WireError
from fl_lowrank.model import layout_of
from fl_lowrank.updates import split_layout

from . import replies as reading
from .inner import metrics_of
from .ledger import Ledger
from .replies import Incoming
from .turns import Book, Staged


@dataclass(frozen=True)
class Decoded:
    """A reply that takes part in the round."""

    incoming: Incoming
    update: dict[str, Tensor]
    exact: dict[str, Tensor]


@dataclass(frozen=True)
class Round:
    """What all steps of one aggregation share.

    Attributes
    ----------
    number : int
        Of the round.
    arrays : ArrayRecord
        The model that the clients got.
    exact : tuple of str
        Patterns of arrays that travel exactly.
    scale : float
        Unit of the updates.
    weight_key : str
        Name of the number of examples.
    """

    number: int
    arrays: ArrayRecord
    exact: tuple[str, ...]
    scale: float
    weight_key: str

    def collect(
        self, book: Book, ledger: Ledger, valid: Sequence[tuple[str, Message]]
    ) -> list[Decoded]:
        """Read, check and decode replies, and stage their turns.

        A reply that cannot be used is logged with its client and reason, and left
        out; its client will take the turn back.
        """
        read: list[Incoming] = []
        for client, message in valid:
            try:
                read.append(reading.read(client, message, self.weight_key))
            except CompressionError as error:
                _leave_out(ledger, self.number, client, error)
        usual = reading.same_metrics([r.message for r in read])
        lossy, exact = split_layout(layout_of(self._before), self.exact)
        decoded: list[Decoded] = []
        for incoming, ok in zip(read, usual, strict=True):
            begin = time.perf_counter()
            try:
                if not ok:
                    raise WireError(reading.OTHER_METRICS)
                update, buffers = reading.decode(incoming, lossy, exact)
                book.claim(incoming.client, incoming.reply)
            except CompressionError as error:
                _leave_out(ledger, self.number, incoming.client, error)
                continue
            if incoming.reply.error_dropped:
                log(
                    WARNING,
                    "Compressed: %s gave up an error that it could not deliver",
                    incoming.client,
                )
            book.stage(
                Staged(
                    incoming.client,
                    incoming.reply.turn,
                    incoming.num_examples,
                    update,
                )
            )
            decoded.append(Decoded(incoming, update, buffers))
            ledger.add_seconds(self.number, "encode", incoming.reply.encode_seconds)
            ledger.add_seconds(self.number, "decode", time.perf_counter() - begin)
            ledger.add_gradients(self.number, reading.extra_gradients(incoming.message))
        return decoded

    def average(
        self,
        inner: Strategy,
        book: Book,
        decoded: Sequence[Decoded],
        errors: list[Message],
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Give a linear strategy one reply: the mean of all.

        Its metrics function still sees every reply.
        """
        mean = reading.weighted_mean(
            (d.exact, d.incoming.num_examples) for d in decoded
        )
        model = self._moved(book.estimate(), self.scale) | mean
        arrived = sum(d.incoming.num_examples for d in decoded)
        first = decoded[0].incoming.message
        reply = reading.with_arrays(
            first, reading.record_of(model, self.arrays), (self.weight_key, arrived)
        )
        with metrics_of(inner, [d.incoming.message for d in decoded]):
            return inner.aggregate_train(self.number, [reply, *errors])

    def pass_on(
        self, inner: Strategy, decoded: Sequence[Decoded], errors: list[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Give any other strategy every reply, decoded to a whole model."""
        messages = []
        for d in decoded:
            model = self._moved(d.update, self.scale / d.incoming.num_examples)
            arrays = reading.record_of(model | d.exact, self.arrays)
            messages.append(reading.with_arrays(d.incoming.message, arrays))
        return inner.aggregate_train(self.number, messages + errors)

    @cached_property
    def _before(self) -> dict[str, Tensor]:
        """The model that the clients got, copied to tensors once a round."""
        return reading.tensors_of(self.arrays)

    def _moved(self, update: dict[str, Tensor], factor: float) -> dict[str, Tensor]:
        """Give the model plus ``factor`` times the update, in float64."""
        return {
            name: self._before[name].to(torch.float64)
            + value.to(torch.float64) * factor
            for name, value in update.items()
        }


def _leave_out(
    ledger: Ledger, round_: int, client: str, error: CompressionError
) -> None:
    ledger.add_dropped(round_)
    log(WARNING, "Compressed: left out the reply of %s: %s", client, error)
