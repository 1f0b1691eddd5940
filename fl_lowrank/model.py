"""A whole model's update <-> one byte string.

An update is an ordered ``dict[str, Tensor]``. Rules map names to compressors, the
first match wins. Small tensors of one rule travel as one vector if its compressor
treats entries alike, since each message body costs about ten bytes; all of them do
under `flat`.

The bytes (inside `wire.seal`) are::

    varint     number of tensors
    varint     number G of merged vectors
    bits       for each tensor ceil(log2(G + 1)) bits: 0 alone, g in vector g
    bodies     of all tensors and vectors, each where its first tensor stands
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from . import decoders, wire
from .codecs import bits
from .codecs.varint import write_varint
from .compressors import F16, Identity
from .errors import CompressionError, SpecError, WireError
from .framing import Reader, open_sealed, seal
from .rng import Rng
from .spec import Rule, parse_rules
from .types import Compressor, Exact, Payload, State
from .wire import TensorLayout

#: Tensors of at most so many entries may be merged.
SMALL = 1024
#: A bare compressor leaves small tensors that are together at most this share of
#: the model to 16 bits: their bytes hardly count, and their loss would.
SMALL_SHARE = 0.01
MAX_TENSORS = 1 << 16

Layout = Mapping[str, TensorLayout]


@dataclass(frozen=True)
class Group:
    """Tensors that are encoded together, and by what."""

    names: tuple[str, ...]
    compressor: Compressor
    layout: TensorLayout


def layout_of(tensors: Mapping[str, Tensor]) -> dict[str, TensorLayout]:
    """Names, shapes and dtypes of a model, in order."""
    return {k: TensorLayout(tuple(v.shape), v.dtype) for k, v in tensors.items()}


class ModelCodec:
    """Encodes whole updates by rules.

    Parameters
    ----------
    spec : str or Compressor
        A compressor, its text, or rules (``"*.bias: f16(); *: topk(k=9)"``). A bare
        compressor gets the default rules: integers and booleans travel exactly,
        small tensors that are together at most 1% of the model at 16 bits (exactly,
        if the compressor is exact), the rest by the compressor.
    """

    def __init__(self, spec: str | Compressor) -> None:
        self.rules = parse_rules(spec) if isinstance(spec, str) else spec

    def __str__(self) -> str:
        if isinstance(self.rules, Compressor):
            return str(self.rules)
        return "; ".join(map(str, self.rules))

    def groups(self, layout: Layout) -> list[Group]:
        """Say what is encoded together and by what, in wire order."""
        rules, assigned = self._assign(layout)
        merged: dict[tuple[int, torch.dtype], list[str]] = {}
        order: list[list[str]] = []
        for name, rule in assigned.items():
            dtype = layout[name].dtype
            alone = [name]
            compressor, small = rules[rule], layout[name].numel <= SMALL
            if compressor.joins or (compressor.elementwise and small):
                alone = merged.setdefault((rule, dtype), alone)
                if alone != [name]:
                    alone.append(name)
                    continue
            order.append(alone)
        return [
            Group(tuple(names), rules[assigned[names[0]]], _joint_layout(names, layout))
            for names in order
        ]

    def _assign(self, layout: Layout) -> tuple[list[Compressor], dict[str, int]]:
        """Give the compressors, and for each name the index of the one to use."""
        if isinstance(self.rules, Compressor):
            exact = all(
                isinstance(self.rules.guarantee(t.shape), Exact)
                for t in layout.values()
            )
            small = _small_names(layout)
            return [self.rules, Identity() if exact else F16(), Identity()], {
                name: int(name in small) if t.dtype.is_floating_point else 2
                for name, t in layout.items()
            }
        return [r.compressor for r in self.rules], {
            name: _first_match(name, self.rules) for name in layout
        }

    def init(self, layout: Layout) -> State:
        """State of all compressors before the first update."""
        return {
            f"{group.names[0]}/{key}": value
            for group in self.groups(layout)
            for key, value in group.compressor.init(group.layout.shape).items()
        }

    def encode(
        self, update: Mapping[str, Tensor], state: State, rng: Rng
    ) -> tuple[bytes, State]:
        """Compress an update to one byte string.

        Parameters
        ----------
        update : Mapping[str, Tensor]
            In the order of the model.
        state : State
            What the last call gave, or ``{}``.
        rng : Rng
            Each tensor draws from a child stream of its own.

        Returns
        -------
        tuple of bytes and State

        Raises
        ------
        InputError
            If a tensor cannot be compressed; the message names it.
        SpecError
            If no rule fits a name.
        """
        groups = self.groups(layout_of(update))
        parts = [_group_table(groups, list(update))]
        after: State = {}
        for group in groups:
            first = group.names[0]
            owned = (k for k in state if k.rpartition("/")[0] == first)
            before = {k.rpartition("/")[2]: state[k] for k in owned}
            x = _join([update[name] for name in group.names])
            try:
                payload, now = group.compressor.encode(x, before, rng.child(first))
            except CompressionError as error:
                msg = f"tensor {first!r}: {error}"
                raise type(error)(msg) from error
            parts.append(wire.pack_body(payload))
            after |= {f"{first}/{k}": v for k, v in now.items()}
        return seal(b"".join(parts)), after

    @staticmethod
    def decode(data: bytes, layout: Layout) -> dict[str, Tensor]:
        """Rebuild an update from its bytes; settings of the sender are not needed.

        Raises
        ------
        WireError
            If the bytes are not exactly one update of this layout.
        """
        out: dict[str, Tensor] = dict.fromkeys(layout, torch.empty(0))
        for names, payload in read_payloads(data, layout):
            try:
                parts = decoders.decode(payload).reshape(-1)
            except WireError as error:
                msg = f"tensor {names[0]!r}: {error}"
                raise WireError(msg) from error
            sizes = [layout[name].numel for name in names]
            for name, part in zip(names, torch.split(parts, sizes), strict=True):
                out[name] = part.reshape(layout[name].shape)
        return out


def read_payloads(
    data: bytes, layout: Layout
) -> Iterator[tuple[tuple[str, ...], Payload]]:
    """Read the payloads of an update, with the names of the tensors in each."""
    reader = Reader(open_sealed(data))
    names = list(layout)
    count = reader.varint(MAX_TENSORS, "the number of tensors")
    if count != len(names):
        msg = (
            f"model: expected {len(names)} tensors, found {count}; both ends must "
            "train the same model"
        )
        raise WireError(msg)
    for members in _read_group_table(reader, names):
        expect = _joint_layout(members, layout)
        try:
            payload = wire.unpack_body(reader, decoders.KINDS, expect)
        except WireError as error:
            msg = f"tensor {members[0]!r}: {error}"
            raise type(error)(msg) from error
        yield tuple(members), payload
    reader.finish()


def _group_table(groups: Sequence[Group], names: Sequence[str]) -> bytes:
    merged = [g.names for g in groups if len(g.names) > 1]
    number = {name: i for i, group in enumerate(merged, 1) for name in group}
    width = len(merged).bit_length()
    flags = torch.tensor(
        [number.get(name, 0) >> bit & 1 for name in names for bit in range(width)],
        dtype=torch.bool,
    )
    head = write_varint(len(names)) + write_varint(len(merged))
    return head + bits.encode_bits(flags)


def _read_group_table(reader: Reader, names: Sequence[str]) -> list[list[str]]:
    total = reader.varint(len(names), "the number of merged vectors")
    width = total.bit_length()
    flags = bits.decode_bits(
        reader.take((len(names) * width + 7) // 8), len(names) * width
    ).tolist()
    merged: dict[int, list[str]] = {}
    order: list[list[str]] = []
    for i, name in enumerate(names):
        own = flags[i * width : (i + 1) * width]
        number = sum(int(flag) << bit for bit, flag in enumerate(own))
        if number in merged:
            merged[number].append(name)
            continue
        order.append([name])
        if number:
            merged[number] = order[-1]
    if max(merged, default=0) > total:
        msg = f"model: vector {max(merged)} of {total}; the message is damaged"
        raise WireError(msg)
    return order


def _joint_layout(names: Sequence[str], layout: Layout) -> TensorLayout:
    """Layout of one tensor, or of the vector of several."""
    first = layout[names[0]]
    if len(names) == 1:
        return first
    if any(layout[name].dtype != first.dtype for name in names):
        msg = f"model: {names[0]!r} is merged with tensors of another dtype"
        raise WireError(msg)
    return TensorLayout((sum(layout[name].numel for name in names),), first.dtype)


def _join(tensors: Sequence[Tensor]) -> Tensor:
    if len(tensors) == 1:
        return tensors[0]
    return torch.cat([t.reshape(-1) for t in tensors])


def _first_match(name: str, rules: Sequence[Rule]) -> int:
    for i, rule in enumerate(rules):
        if fnmatchcase(name, rule.pattern):
            return i
    msg = f"rules: none fits {name!r}; end them with '*: ...'"
    raise SpecError(msg)


def _small_names(layout: Layout) -> set[str]:
    """Small tensors, smallest first, while they are a small share of the model."""
    budget = math.floor(SMALL_SHARE * sum(t.numel for t in layout.values()))
    chosen = set()
    for name in sorted(layout, key=lambda n: layout[n].numel):
        budget -= layout[name].numel
        if budget < 0 or layout[name].numel > SMALL:
            break
        chosen.add(name)
    return chosen
