"""Groups of tensors <-> the bytes of an update.

Inside `wire.seal` stand the table of `grouping` and then the bodies of all tensors and
vectors, each where its first tensor stands.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType

import torch
from torch import Tensor

from . import decoders, wire
from .errors import CompressionError
from .framing import Buffer, open_sealed, seal
from .grouping import Group, Layout, join, joint_layout, read_table, write_table
from .rng import Rng
from .types import Payload, State


class Writer:
    """Writes messages of one update; a group is encoded only once."""

    def __init__(self, update: Mapping[str, Tensor], state: State, rng: Rng) -> None:
        self._update = update
        self._state = state
        self._rng = rng
        self._done: dict[Group, tuple[bytes, State]] = {}

    def write(self, groups: Sequence[Group]) -> bytes:
        """Give the message of these groups, in the order of their first tensors."""
        bodies = [self._body(group)[0] for group in groups]
        return seal(write_table(groups, list(self._update)), *bodies)

    def states_of(self, groups: Sequence[Group]) -> State:
        """Give the state after the message."""
        return {
            f"{group.names[0]}/{k}": v
            for group in groups
            for k, v in self._body(group)[1].items()
        }

    def _body(self, group: Group) -> tuple[bytes, State]:
        if group not in self._done:
            self._done[group] = self._encode(group)
        return self._done[group]

    def _encode(self, group: Group) -> tuple[bytes, State]:
        first = group.names[0]
        x = join([self._update[name] for name in group.names])
        with naming(first):
            before = self._fitting(group)
            payload, after = group.compressor.encode(x, before, self._rng.child(first))
        return wire.pack_body(payload), after

    def _fitting(self, group: Group) -> State:
        """Give the state for a group, or none if it is of another compressor or size.

        A schedule changes compressors between rounds: what another one has left must
        neither be used nor be kept.
        """
        wanted = group.compressor.init(group.layout.shape)
        owned = {k: f"{group.names[0]}/{k}" for k in wanted}
        found = {k: self._state[v] for k, v in owned.items() if v in self._state}
        fits = found.keys() == wanted.keys() and all(
            found[k].shape == v.shape for k, v in wanted.items()
        )
        return found if fits else {}


def read_payloads(
    data: Buffer, layout: Layout, later: list[wire.Later] | None = None
) -> Iterator[tuple[tuple[str, ...], Payload]]:
    """Read the payloads of an update, with the names of the tensors in each.

    With a list for what is read ``later``, sets of indices are only noted in it.
    """
    reader = open_sealed(data)
    for members in read_table(reader, tuple(layout)):
        expect = joint_layout(members, layout)
        with naming(members[0]):
            payload = wire.unpack_body(reader, decoders.KINDS, expect, later=later)
        yield members, payload
    reader.finish()


def read_update(data: Buffer, layout: Layout) -> dict[str, Tensor]:
    """Rebuild an update.

    Raises
    ------
    WireError
        If the bytes are not exactly one update of this layout.
    """
    out: dict[str, Tensor] = dict.fromkeys(layout, torch.empty(0))
    for names, payload in read_payloads(data, layout):
        with naming(names[0]):
            parts = decoders.decode(payload).reshape(-1)
        sizes = [layout[name].numel for name in names]
        for name, part in zip(names, torch.split(parts, sizes), strict=True):
            out[name] = part.reshape(layout[name].shape)
    return out


class naming:
    """Let errors say at which tensor they happened.

    A class, since a generator would take several times as long for each tensor.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, CompressionError):
            # In place: some of these errors hold more than their text.
            error.args = (f"tensor {self._name!r}: {error}",)
