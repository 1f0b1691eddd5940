"""The sum of many compressed updates, without a dense update for each.

Messages are read one after another. What is read waits until it takes a part of the
model's memory; then all that waits is added at once: sketches are summed before they
are decoded, and low-rank factors stacked to one product.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from . import decoders
from .addends import Addend, Dense, Weighted, add_all, merge
from .codecs.indices import announced_bytes, decode_index_sets
from .errors import CompressionError, WireError
from .framing import Buffer
from .grouping import Layout
from .messages import naming, read_payloads
from .pages import Pages
from .types import Payload
from .wire import Later

#: What waits to be added may take this share of the model's float32 bytes, or so many.
_WAITING_SHARE = 0.25
_WAITING_BYTES = 2**20


@dataclass(frozen=True)
class ReadUpdate:
    """An update that was read and found well-formed, not yet added.

    Attributes
    ----------
    parts : tuple
        What each payload adds, with the names of the tensors it holds.
    """

    parts: tuple[tuple[tuple[str, ...], Addend], ...]

    @property
    def num_bytes(self) -> int:
        """Memory that it holds until it is added."""
        return sum(part.num_bytes for _, part in self.parts)

    @property
    def norm(self) -> float:
        """Euclidean norm of the update, without what is in sketches."""
        return math.sqrt(sum(part.squared_norm() for _, part in self.parts))


@dataclass(frozen=True)
class _Body:
    """A payload whose index sets are still to be decoded."""

    names: tuple[str, ...]
    payload: Payload
    later: Sequence[Later]

    @property
    def num_bytes(self) -> int:
        """Memory that it takes once they are."""
        sets = sum(announced_bytes(job.data, job.universe) for job in self.later)
        return self.payload.num_bytes + sets


@dataclass
class _Parsed:
    """What was read of a message in a first pass, up to the error if there is one."""

    bodies: list[_Body] = field(default_factory=list)
    error: CompressionError | None = None
    num_bytes: int = 0

    @classmethod
    def read(cls, data: Buffer, layout: Layout) -> _Parsed:
        """Read all but index sets."""
        parsed = cls()
        later: list[Later] = []
        try:
            for names, payload in read_payloads(data, layout, later):
                body = _Body(names, payload, tuple(later))
                later.clear()
                parsed.bodies.append(body)
                parsed.num_bytes += body.num_bytes
        except CompressionError as error:
            parsed.error = error
        return parsed


class UpdateSum:
    """Sums updates of one layout in float64.

    Its memory is that of the float64 sum, a quarter of the float32 model, and, for
    compressors that have no cheaper way, one dense update.

    Parameters
    ----------
    layout : Layout
        Of the updates.
    exact : bool
        Add bit for bit what each message decodes to, as a receiver must whose sum is to
        equal that of the senders' memories. Else low-rank factors are multiplied in
        float64, all at once, and sketches summed before they are decoded.
    norms : bool
        Every update tells its norm: sketches are decoded one by one.
    """

    def __init__(
        self, layout: Layout, *, exact: bool = False, norms: bool = False
    ) -> None:
        self._layout = layout
        self._exact = exact
        self._norms = norms
        ends = torch.tensor([0] + [t.numel for t in layout.values()]).cumsum(0).tolist()
        self._spans = {
            name: slice(start, end)
            for name, (start, end) in zip(layout, pairwise(ends), strict=True)
        }
        self._pages = Pages(ends[-1])
        self._flat = self._pages.vector
        self._most_waiting = max(_WAITING_BYTES, int(_WAITING_SHARE * 4 * ends[-1]))
        self._waiting: list[tuple[str, ReadUpdate]] = []
        self._waiting_bytes = 0
        self._failed: dict[str, WireError] = {}

    def read(self, data: Buffer) -> ReadUpdate:
        """Read one update and check all that can be wrong with it; nothing is added.

        Raises
        ------
        WireError
            If the bytes are not exactly one update of the layout.
        """
        (found,) = self.read_all([data])
        if isinstance(found, CompressionError):
            raise found
        return found

    def read_all(
        self, messages: Iterable[Buffer]
    ) -> Iterator[ReadUpdate | CompressionError]:
        """Read updates in their order, index sets of several in one pass.

        So many are read ahead as take a part of the model's memory.

        Yields
        ------
        ReadUpdate or CompressionError
            What `read` gives or raises.
        """
        ahead: list[_Parsed] = []
        ahead_bytes = 0
        for data in messages:
            ahead.append(_Parsed.read(data, self._layout))
            ahead_bytes += ahead[-1].num_bytes
            if ahead_bytes > self._most_waiting:
                yield from self._finished(ahead)
                ahead, ahead_bytes = [], 0
        yield from self._finished(ahead)

    def _finished(
        self, ahead: Sequence[_Parsed]
    ) -> Iterator[ReadUpdate | CompressionError]:
        jobs = [job for parsed in ahead for body in parsed.bodies for job in body.later]
        found = iter(decode_index_sets([(job.data, job.universe) for job in jobs]))
        for parsed in ahead:
            yield self._update(parsed, found)

    def _update(
        self, parsed: _Parsed, found: Iterator[Tensor | WireError]
    ) -> ReadUpdate | CompressionError:
        """Make what is added of bodies and of the index sets found for them."""
        sets = [[next(found) for _ in body.later] for body in parsed.bodies]
        if parsed.error is not None:
            return parsed.error
        parts = []
        try:
            for body, own in zip(parsed.bodies, sets, strict=True):
                with naming(body.names[0]):
                    for job, indices in zip(body.later, own, strict=True):
                        job.put(indices)
                    parts.append((body.names, self._addend(body.payload)))
        except CompressionError as error:
            return error
        return ReadUpdate(tuple(parts))

    def put(self, sender: str, message: ReadUpdate) -> None:
        """Add what was read, now or later."""
        self._waiting.append((sender, message))
        self._waiting_bytes += message.num_bytes
        if self._waiting_bytes > self._most_waiting:
            self._flush()

    def close(self) -> tuple[dict[str, Tensor], Mapping[str, WireError]]:
        """Give the sum, and the senders whose message could not be added after all.

        That happens to sketches alone, which are decoded last.
        """
        self._flush()
        total = {
            name: self._flat[span].view(self._layout[name].shape)
            for name, span in self._spans.items()
        }
        return total, self._failed

    def give_back(self, part: Tensor) -> None:
        """Free a piece of the sum, flat and contiguous, that is not needed any more."""
        self._pages.give_back(part)

    def _addend(self, payload: Payload) -> Addend:
        part = decoders.addend(payload)
        if (self._exact and not part.exact) or (self._norms and not part.tells_norm):
            return Dense(decoders.decode(payload))
        return part

    def _flush(self) -> None:
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        try:
            merged = _merged([message for _, message in waiting])
        except WireError:
            merged = []
            for sender, message in waiting:
                try:
                    merged += _merged([message])
                except WireError as error:
                    self._failed[sender] = error
        for names, parts in merged:
            self._add(names, parts)

    def _add(self, names: tuple[str, ...], parts: Sequence[Weighted]) -> None:
        spans = [self._spans[name] for name in names]
        if len(names) == 1:
            add_all(parts, self._flat[spans[0]].view(self._layout[names[0]].shape))
        elif all(a.stop == b.start for a, b in pairwise(spans)):
            add_all(parts, self._flat[spans[0].start : spans[-1].stop])
        else:
            sizes = [span.stop - span.start for span in spans]
            joint = torch.zeros(sum(sizes), dtype=torch.float64)
            add_all(parts, joint)
            for span, piece in zip(spans, torch.split(joint, sizes), strict=True):
                self._flat[span].add_(piece)


def _merged(
    messages: Sequence[ReadUpdate],
) -> list[tuple[tuple[str, ...], list[Weighted]]]:
    """Join what the messages add to the same tensors."""
    by_names: dict[tuple[str, ...], list[Weighted]] = {}
    for message in messages:
        for names, part in message.parts:
            by_names.setdefault(names, []).append((part, 1.0))
    found = []
    for names, parts in by_names.items():
        with naming(names[0]):
            found.append((names, merge(parts)))
    return found
