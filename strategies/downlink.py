"""What goes down: whole models, or what clients lack of the model that all follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from logging import INFO
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message
from flwr.common import log
from torch import Tensor

from fl_lowrank.broadcast import Broadcast, Link
from fl_lowrank.envelope import REQUEST_KEY, STYPE
from fl_lowrank.errors import SettingError
from fl_lowrank.model import Layout, ModelCodec, layout_of
from fl_lowrank.reference import Chain, difference
from fl_lowrank.rng import Rng, stream
from fl_lowrank.scheduled import Scheduled
from fl_lowrank.types import State
from fl_lowrank.updates import split_layout

from . import replies as reading

#: Rounds between two moves of the reference are so many that what absent clients will
#: have to catch up on costs at most this share of what was sent since the last move.
#: More seldom moves save bytes and make the differences, and so their errors, larger.
CATCH_UP_SHARE = 1.0
#: A client that could not follow so often in a row is sent whole models from then on.
MAX_REFUSALS = 3

_EXACT = ModelCodec("*: identity()")


@dataclass(frozen=True)
class _Told:
    """What stands in a message that is under way: the reference, whole or not."""

    reference: int
    is_whole: bool


@dataclass
class Downlink:
    """The server's end of the reference, and what it knows of the clients' ends.

    The first model is the reference. When clients are to get a model x, the difference
    to the reference w is compressed, once: either w moves by it, and everybody will
    need it some time, or it is for this model alone. The reference moves in every
    round if all clients take part, and more seldom the fewer do, see `CATCH_UP_SHARE`:
    who was away must be sent all moves that were missed.

    A client gets the moves since the reference that it held in its last reply; the
    whole reference, where that is not known, or so long ago that the moves would be
    larger. A reply tells by being there: nobody can answer without having followed.

    Costs the server one model, moves of at most another, O(1) a client, and what is
    under way: one message for each of the references that clients hold.

    Attributes
    ----------
    codec : Scheduled
        The compressor, or rules.
    exact : tuple of str
        Patterns of arrays that travel exactly, with every message.
    seed : int
        Of the compressors' draws.
    chain : Chain, optional
        The reference; None before the first message.
    step : bytes
        What leads from the reference to the model that was sent last; empty for none.
    number : int
        Rounds that have led to that model; -1 before the first.
    asked : int
        Messages since the reference has moved.
    held : dict
        Fingerprint of the reference that a client has, by client key.
    refusals : dict
        How often in a row a client could not follow.
    state : dict
        Of the compressors (warm starts).
    """

    codec: Scheduled
    exact: tuple[str, ...]
    seed: int
    chain: Chain | None = None
    step: bytes = b""
    number: int = -1
    asked: int = 0
    held: dict[str, int] = field(default_factory=dict)
    refusals: dict[str, int] = field(default_factory=dict)
    state: State = field(default_factory=dict)
    _records: dict[int, ArrayRecord] = field(default_factory=dict)
    _exactly: dict[str, Tensor] | None = None
    _told: dict[str, _Told] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """Give what must survive a restart."""
        chain = self.chain
        links = (
            [] if chain is None else [[k.before, _array(k.data)] for k in chain.links]
        )
        return {
            "exact": list(self.exact),
            "tensors": None if chain is None else chain.tensors,
            "links": links,
            "step": _array(self.step),
            "number": self.number,
            "asked": self.asked,
            "held": self.held,
            "refusals": self.refusals,
            "state": self.state,
        }

    def resume(self, plain: Mapping[str, Any]) -> None:
        """Go on with what `plain` gave; anew, if other arrays travel exactly now."""
        if plain["exact"] != list(self.exact):
            return
        if plain["tensors"] is not None:
            links = [Link(before, data.tobytes()) for before, data in plain["links"]]
            self.chain = Chain(plain["tensors"], links)
        self.step = plain["step"].tobytes()
        for name in ("number", "asked", "held", "refusals", "state"):
            setattr(self, name, plain[name])

    def send(
        self,
        messages: Sequence[tuple[str, Message]],
        number: int,
        arrays: ArrayRecord,
        num_nodes: int,
    ) -> None:
        """Put what clients need in the place of the model, in messages of one exchange.

        Parameters
        ----------
        messages : sequence of client and message
            Whose content belongs to them alone.
        number : int
            Rounds that have led to the model; the messages that bring one model to
            trainers and to evaluators share all that is compressed.
        arrays : ArrayRecord
            The model.
        num_nodes : int
            All nodes, asked or not.

        Raises
        ------
        SettingError
            If a message holds other arrays than the model.
        InputError
            If the model holds NaN or infinite numbers.
        """
        self._told = {}
        if not messages:
            return
        self.asked += len(messages)
        if number != self.number or self.chain is None:
            self._follow(number, arrays, max(num_nodes - len(messages), 0))
        chain = self.chain
        assert chain is not None  # `_follow` has made it
        for client, message in messages:
            key = _key_of(message, arrays)
            links = chain.since(self.held.get(client, 0))
            if self.refusals.get(client, 0) >= MAX_REFUSALS:
                links = None
            message.content[key] = self._record(chain, arrays, links)
            self._told[client] = _Told(chain.end, links is None)

    def heard(self, client: str) -> None:
        """Note that a client has answered the last message."""
        told = self._told.pop(client, None)
        if told is not None:
            self.held[client] = told.reference
            if not told.is_whole:
                self.refusals.pop(client, None)

    def refused(self, client: str) -> bool:
        """Note that a client could not use the last message; whether it now will."""
        told = self._told.pop(client, None)
        self.held.pop(client, None)
        if told is None or told.is_whole:
            return False
        self.refusals[client] = self.refusals.get(client, 0) + 1
        log(INFO, "Compressed: %s will be sent the whole model", client)
        return True

    def _follow(self, number: int, arrays: ArrayRecord, num_absent: int) -> None:
        """Compress what is new in a model, and move the reference if it is time."""
        model, lossy, self._exactly = self._split(arrays)
        self.number, self.step = number, b""
        self._records.clear()
        chain = self.chain
        if chain is None or layout_of(chain.tensors) != layout_of(model):
            self._start(model)
            return
        change = difference(model, chain.tensors, lossy)
        codec = ModelCodec(self.codec.at(number + 1))
        rng = stream(self.seed, "downlink", number)
        data, self.state = codec.encode(change, self.state, rng)
        if len(data) >= chain.num_bytes:
            self._start(model)
        elif num_absent > CATCH_UP_SHARE * self.asked:
            self.step = data
        else:
            chain.move(data, lossy)
            self.asked = 0
            known = {chain.end, *(link.before for link in chain.links)}
            self.held = {c: held for c, held in self.held.items() if held in known}

    def _start(self, model: dict[str, Tensor]) -> None:
        """Make the model the reference; everybody needs it as a whole."""
        self.chain = Chain(model)
        self.asked = 0
        self.held.clear()

    def _split(
        self, arrays: ArrayRecord
    ) -> tuple[dict[str, Tensor], Layout, dict[str, Tensor]]:
        """Give what is compressed, the layout of its payloads, and what is exact."""
        tensors = reading.tensors_of(arrays)
        lossy, exact = split_layout(layout_of(tensors), self.exact)
        return {k: tensors[k] for k in lossy}, lossy, {k: tensors[k] for k in exact}

    def _record(
        self, chain: Chain, arrays: ArrayRecord, links: tuple[Link, ...] | None
    ) -> ArrayRecord:
        """Give what a client is sent; made once for all who hold the same."""
        place = -1 if links is None else len(links)
        if place not in self._records:
            if self._exactly is None:  # resumed between two exchanges of one model
                _, _, self._exactly = self._split(arrays)
            exact, whole = self._exactly, ArrayRecord()
            sent = Broadcast(chain.end, chain.num_bytes, step=self.step)
            if links is None:
                sent = replace(sent, is_whole=True)
                whole = reading.record_of(chain.tensors | exact, arrays)
            else:
                data, _ = _EXACT.encode(exact, {}, Rng(0))
                sent = replace(sent, links=links, exact=data)
            data = sent.pack()
            array = Array(dtype="uint8", shape=(len(data),), stype=STYPE, data=data)
            self._records[place] = ArrayRecord({**whole, REQUEST_KEY: array})
        return self._records[place]


def _key_of(message: Message, arrays: ArrayRecord) -> str:
    """Give the key of the model in a message, which must be that of all others."""
    records = list(message.content.array_records.items())
    if len(records) == 1 and _same(records[0][1], arrays):
        return str(records[0][0])
    msg = (
        "Compressed: expected the model, and no other arrays, in every message, found "
        f"{len(records)} records or another model; use downlink=None"
    )
    raise SettingError(msg)


def _same(a: ArrayRecord, b: ArrayRecord) -> bool:
    return a is b or (list(a) == list(b) and all(a[k].data == b[k].data for k in a))


def _array(data: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.frombuffer(data, np.uint8)
