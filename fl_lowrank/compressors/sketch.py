"""Messages that are summed without decoding: a count sketch of the largest entries.

A message holds the positions of its nonzero entries and R cells; each entry is
added, with a sign, to three of them (`peeling`). The sum of messages has the union of
the positions and the sum of the cells, and is decoded once, by peeling. Cells are
integers, multiples of ``2^exponent``, so the sum is exact: it equals the sum of
what the messages decode to.

*The scale* needs no agreement: each message takes the exponent that gives its largest
entry ``bits`` bits. `Sketch.add` brings coarser cells to the finest exponent by a left
shift, which is exact and has 63 bits of room.

*The cells* must be equally many in all messages of a sum, before their union u is
known: R = 1.3 u + 64 for the u that ``capacity`` expects, a share of the entries. The
receiver sees u of every sum, so it sets the capacity of the next round, a tenth more
than the last u/d, say. In the first, n clients with unrelated updates keep
``1 - (1 - fraction)^n`` of the entries together, related ones fewer. A sum whose u is
too large for its R raises `SketchError` with the numbers that are needed; `peel`
still gives what can be had.

*The hash* must be the same in all messages of a sum, so its seed is a setting. A
fixed one is fine: positions are not chosen with regard to it, and whether a set of
positions can be peeled depends on nothing else. An unlucky set (2% of all with u near
100, 0.4% with 1,000, none of 100 with 10,000) stays unlucky as long as it stays the
same: then take another seed. Nothing stops a sender from choosing positions against
a known seed; the sum is then refused, as are contradictory messages.

A message for itself can always be decoded. Entries that the hash ties together
travel beside the cells, in a *stash* that is summed as well; it is nearly always
empty. If R would reach the number of entries of the tensor, the cells are the
entries themselves, one each, and all sums can be decoded.

Wire cost: positions and R cells, entropy coded. Positions and values of the same
precision (``topk``) are always smaller: this is for sums that somebody makes without
decoding (a switch, a relay, secure aggregation).

References
----------
H. Li, Y. Xu et al., "Accelerating Distributed Deep Learning using Lossless Homomorphic
Compression", 2024, arXiv 2402.07529: index set and count
sketch. I. A. Maslov, I. V. Polyakov, "A comparison of methods for compressing tensors
of optimizer moments in distributed training of large language models" (in Russian):
homomorphic compression is weak for few hosts.

Differences: integers instead of floats, whose sums are not exact and whose last bit
the paper's code overwrites; positions are coded near their entropy and merged by OR;
largest entries are selected; see `peeling` for the hash.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..addends import Addend
from ..errors import SettingError
from ..rng import Rng
from ..types import (
    Additive,
    Contractive,
    Exact,
    Guarantee,
    Payload,
    Shape,
    State,
    check_input,
)
from .common import check_keep, finish, keep_count, shift
from .peeling import enough_cells
from .sketch_parts import Sum
from .sketch_sum import Undecoded, all_of, joint
from .sparse import largest


@dataclass(frozen=True)
class Sketch(Additive):
    """Keep the largest entries, in a form that is summed without decoding.

    Guarantee: ``Contractive(delta)``, delta the larger of ``k/d - k 4^-bits`` (as
    ``topk``, less the rounding of k entries by ``2^-bits`` of the largest) and
    ``(1 - 4^-bits) / d`` (rounding to the nearest harms no entry, and the largest is
    kept). Sums are exact. Wire cost: see the module.

    Parameters
    ----------
    fraction : float, optional
        Share of the entries to keep, in (0, 1]; rounded up to at least one.
    k : int, optional
        Their number, instead of ``fraction``.
    capacity : float, optional
        Share of the entries that all messages of a sum may hold together, in (0, 1];
        at least ``fraction``, which is the default: enough where all keep the same.
    bits : int
        Of the largest entry, 1 to 32; the cells take one to three bits more. 24 keep
        float32 entries down to 2^-24 of the largest.
    seed : int
        Of cells and signs, in [0, 2^63); the same for all messages of a sum.
    """

    name: ClassVar[str] = "sketch"

    fraction: float | None = None
    k: int | None = None
    capacity: float | None = None
    bits: int = 24
    seed: int = 0

    def __post_init__(self) -> None:
        check_keep(self.name, self.fraction, self.k)
        least = self.fraction or 0.0
        if self.capacity is not None and not (
            0.0 < self.capacity <= 1.0 and self.capacity >= least
        ):
            msg = (
                f"sketch: expected a capacity in (0, 1] and at least the fraction "
                f"{least}, found {self.capacity}; give the share of the entries that "
                "all clients of a round keep together"
            )
            raise SettingError(msg)
        if not 1 <= self.bits <= 32:
            msg = f"sketch: expected 1 to 32 bits, found {self.bits}; try bits=24"
            raise SettingError(msg)
        if not 0 <= self.seed < 1 << 63:
            msg = f"sketch: expected a seed in [0, 2^63), found {self.seed}; try seed=0"
            raise SettingError(msg)

    def guarantee(self, shape: Shape) -> Guarantee:
        """Error of ``topk`` and of the rounding, which are orthogonal."""
        d = math.prod(shape)
        if not d:
            return Exact()
        k, rounding = keep_count(self.fraction, self.k, d), 4.0**-self.bits
        return Contractive(max(k / d - k * rounding, (1.0 - rounding) / d))

    def num_cells(self, numel: int) -> int:
        """Cells of a message for a tensor of so many entries."""
        kept = keep_count(self.fraction, self.k, numel)
        union = max(kept, math.ceil((self.capacity or 0.0) * numel))
        return min(enough_cells(union), numel)

    def encode(self, x: Tensor, state: State, rng: Rng) -> tuple[Payload, State]:
        """Select by magnitude, round to integers and add them to their cells."""
        del rng
        flat = check_input(self.name, x).reshape(-1)
        kept = largest(flat.abs(), keep_count(self.fraction, self.k, flat.numel()))
        work = flat[kept].to(torch.float64)
        peak = float(work.abs().max()) if work.numel() else 0.0
        exponent = math.frexp(peak)[1] - self.bits if peak > 0.0 else 0
        whole = shift(work, -exponent).round().to(torch.int64)
        nonzero = whole != 0
        part = Sum.of(
            kept[nonzero],
            whole[nonzero],
            flat.numel(),
            self.num_cells(flat.numel()),
            self.seed,
            exponent,
        )
        return part.payload(tuple(x.shape), x.dtype), state

    @staticmethod
    def decode(payload: Payload) -> Tensor:
        """Peel; `SketchError` if entries are left, as only a sum may have them."""
        found = all_of(payload)
        return finish(payload, found.dense(payload.numel))

    @staticmethod
    def add(payloads: Sequence[Payload]) -> Payload:
        """Merge the positions and sum the cells on the finest scale."""
        return joint(payloads)

    @classmethod
    def addend(cls, payload: Payload) -> Addend:
        """Leave the peeling to the sum."""
        part = Sum.read(payload)
        return Undecoded(payload, (part.seed, part.cells.numel()))


@dataclass(frozen=True)
class Peeled:
    """What a sketch gives back.

    Attributes
    ----------
    values : Tensor
        float64, in the shape of the tensor: exact but at ``unpeeled``, where they are
        estimates (the median of three cells, each right on average).
    unpeeled : Tensor
        Positions in the flattened tensor, increasing; none if all is exact.
    union : int
        Entries that the sketch holds.
    cells : int
        Its cells.
    rounds : int
        Of peeling.
    """

    values: Tensor
    unpeeled: Tensor
    union: int
    cells: int
    rounds: int


def peel(payload: Payload) -> Peeled:
    """Decode what can be decoded of a sketch, and say what could not.

    Raises
    ------
    WireError
        If it is no sketch, or its fields contradict each other.
    """
    part = Sum.read(payload)
    found = part.recover(guess=True)
    return Peeled(
        found.dense(payload.numel).reshape(payload.shape),
        found.unpeeled,
        part.support.numel(),
        part.cells.numel(),
        found.rounds,
    )
