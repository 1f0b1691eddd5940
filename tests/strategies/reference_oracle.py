"""What clients must hold and see of a compressed model, computed apart from them.

The oracle reads the messages that reach clients, adds what they carry in numpy, and
knows so every reference that the server has ever had. With it are compared, bit for
bit: what each client keeps, what each user's code is given, and the server's own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
from flwr.app import ArrayRecord, Context, Message
from flwr.clientapp.typing import ClientAppCallable

from clients import storage
from clients.turns import Memory
from fl_lowrank.broadcast import Broadcast
from fl_lowrank.envelope import REQUEST_KEY
from fl_lowrank.model import ModelCodec, layout_of
from fl_lowrank.updates import split_layout
from simulations.loopback import LoopbackGrid
from strategies import Compressed
from strategies.downlink import Downlink
from strategies.replies import tensors_of

Arrays = dict[str, np.ndarray]


def downlink_of(strategy: Compressed) -> Downlink:
    assert strategy._talk is not None
    assert strategy._talk.downlink is not None
    return strategy._talk.downlink


def broadcast_in(message: Message) -> Broadcast | None:
    """Read the compressed model of a message, if there is one."""
    for record in message.content.array_records.values():
        if REQUEST_KEY in record:
            return Broadcast.unpack(record[REQUEST_KEY].data)
    return None


class ReferenceOracle:
    """Follows one training; its `mod` stands behind `CompressionMod`.

    Attributes
    ----------
    references : dict
        Compressed arrays of every reference, by fingerprint.
    counts : Counter
        Messages by what they carried.
    trained : list of (partition, what the client was given)
        In order.
    """

    def __init__(self, grid: LoopbackGrid, model: ArrayRecord) -> None:
        tensors = tensors_of(model)
        self.names = list(tensors)
        self.layout, self.exact = split_layout(layout_of(tensors))
        self.references: dict[int, Arrays] = {}
        self.counts: Counter[str] = Counter()
        self.trained: list[tuple[int, Arrays]] = []
        self.grid = grid
        self._expected: dict[str, Arrays] = {}
        grid.on_request = self._saw

    def _saw(self, message: Message) -> None:
        """Add up what a message brings to a client."""
        sent = broadcast_in(message)
        if sent is None:
            self.counts["other"] += 1
            return
        model: Arrays = {}
        if sent.is_whole:
            self.counts["whole"] += 1
            (record,) = message.content.array_records.values()
            model = {k: a.numpy() for k, a in record.items() if k != REQUEST_KEY}
            self._learn(sent.reference, {k: model[k] for k in self.layout})
        self.counts["links"] += len(sent.links)
        ends = [link.before for link in sent.links[1:]] + [sent.reference]
        for link, end in zip(sent.links, ends, strict=False):
            self._learn(end, self._moved(link.before, link.data))
        if sent.exact:
            found = ModelCodec.decode(sent.exact, self.exact)
            model = {k: v.numpy() for k, v in found.items()}
        if sent.step:
            self.counts["steps"] += 1
            model |= self._moved(sent.reference, sent.step)
        else:
            model |= self.references[sent.reference]
        self._expected[message.metadata.message_id] = model

    def _moved(self, before: int, data: bytes) -> Arrays:
        reference, change = (
            self.references[before],
            ModelCodec.decode(data, self.layout),
        )
        return {
            k: (v.astype(change[k].numpy().dtype) + change[k].numpy()).astype(v.dtype)
            for k, v in reference.items()
        }

    def _learn(self, number: int, arrays: Arrays) -> None:
        same_bits(self.references.setdefault(number, arrays), arrays)

    def mod(
        self, message: Message, context: Context, call_next: ClientAppCallable
    ) -> Message:
        """Compare what a user's code is given."""
        (record,) = message.content.array_records.values()
        given = {k: a.numpy() for k, a in record.items()}
        expected = self._expected[message.metadata.message_id]
        assert list(given) == self.names
        same_bits(given, expected)
        partition = int(context.node_config["partition-id"])
        if message.metadata.message_type == "train":
            self.trained.append((partition, given))
        return call_next(message, context)

    def check_clients(
        self, load: Callable[[Context], Memory | None] | None = None
    ) -> int:
        """Compare what every client keeps; gives how many keep something."""
        num_kept = 0
        for context in self.grid.contexts.values():
            memory = (load or load_reference)(context)
            if memory is not None:
                num_kept += 1
                kept = {k: memory.tensors[k].numpy() for k in self.layout}
                same_bits(kept, self.references[memory.base])
        return num_kept

    def check_server(self, downlink: Downlink) -> None:
        """Compare the server's own reference."""
        assert downlink.chain is not None
        own = {k: v.numpy() for k, v in downlink.chain.tensors.items()}
        same_bits(own, self.references[downlink.chain.end])


def load_reference(context: Context) -> Memory | None:
    return storage.load(context, storage.REFERENCE_KEY)


def same_bits(a: Arrays, b: Arrays) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert (value.dtype, value.shape) == (b[name].dtype, b[name].shape), name
        assert value.tobytes() == b[name].tobytes(), name
