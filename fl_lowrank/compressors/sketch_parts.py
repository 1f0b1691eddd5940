"""What a sketch message holds: making it, checking it, summing it, opening it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import WireError
from ..types import Coding, Field, Kind, Payload, Shape
from .common import need, shift
from .peeling import SUB_TABLES, estimates, folded, hashed, peel

SKETCH = Kind(
    21,
    "sketch",
    ("head", "support", "cells", "stash", "stashed"),
    (Coding.VARINTS, Coding.INDICES, Coding.SYMBOLS, Coding.INDICES, Coding.SYMBOLS),
)

_EXPONENTS = range(-1200, 1100)  # more than float64 has, subnormals included


@dataclass(frozen=True)
class Recovered:
    """Numbers at positions, which may repeat; those at ``unpeeled`` are not exact."""

    positions: Tensor
    numbers: Tensor  # float64
    unpeeled: Tensor
    rounds: int

    def dense(self, numel: int) -> Tensor:
        """Add the numbers to zeros."""
        out = torch.zeros(numel, dtype=torch.float64, device=self.numbers.device)
        return out.index_add_(0, self.positions, self.numbers)


@dataclass(frozen=True)
class Sum:
    """The fields of a sketch, of one message or of a sum.

    Attributes
    ----------
    numel : int
        Entries of the tensor. As many cells mean one cell for each entry, and then
        all positions are empty.
    seed, exponent : int
        Of the hash; of the unit ``2^exponent`` in which numbers are integers.
    support : Tensor
        Positions, increasing, of the entries in the cells.
    cells : Tensor
        int64, a multiple of three or one for each entry.
    stash, stashed : Tensor
        Positions and integers that lie beside the cells.
    """

    numel: int
    seed: int
    exponent: int
    support: Tensor
    cells: Tensor
    stash: Tensor
    stashed: Tensor

    @classmethod
    def of(
        cls,
        positions: Tensor,
        values: Tensor,
        numel: int,
        num_cells: int,
        seed: int,
        exponent: int,
    ) -> Sum:
        """Put integers into cells, and into the stash what could not be peeled."""
        none = positions[:0]
        if num_cells == numel:
            cells = torch.zeros(numel, dtype=torch.int64, device=values.device)
            cells[positions] = values
            return cls(numel, seed, exponent, none, cells, none, none)
        edges = hashed(positions, num_cells, seed)
        cells = folded(edges, values, num_cells)
        left = peel(edges, cells).left
        if not left.numel():
            return cls(numel, seed, exponent, positions, cells, none, none)
        cells -= folded(edges.rows(left), values[left], num_cells)
        stay = torch.ones_like(positions, dtype=torch.bool)
        stay[left] = False
        stash, stashed = positions[left], values[left]
        return cls(numel, seed, exponent, positions[stay], cells, stash, stashed)

    @classmethod
    def read(cls, payload: Payload) -> Sum:
        """Check the fields; `WireError` if they contradict each other."""
        if payload.kind != SKETCH:
            msg = (
                f"sketch: expected a payload of sketch(...), found {payload.kind.name}"
                "; leave it out"
            )
            raise WireError(msg)
        head, (support, cells, stash, stashed) = (
            payload.tensor("head"),
            map(payload.tensor, SKETCH.fields[1:]),
        )
        need(head.numel() == 2 and int(head[0]) >= 0, payload, "no seed and exponent")
        seed, exponent = int(head[0]), int(head[1])
        need(exponent in _EXPONENTS, payload, f"exponent {exponent}")
        numel, count = payload.numel, cells.numel()
        hashes = 0 < count < numel and count % SUB_TABLES == 0
        direct = count == numel and not support.numel() and not stash.numel()
        need(hashes or direct, payload, f"{count} cells")
        need(
            stash.numel() == stashed.numel(),
            payload,
            f"{stash.numel()} positions for {stashed.numel()} stashed values",
        )
        there = cells.device
        support, stash, stashed = support.to(there), stash.to(there), stashed.to(there)
        return cls(numel, seed, exponent, support, cells, stash, stashed)

    def payload(self, shape: Shape, dtype: torch.dtype) -> Payload:
        """Give the fields their codings."""
        fields = {
            "head": Field(Coding.VARINTS, torch.tensor([self.seed, self.exponent])),
            "support": Field(Coding.INDICES, self.support),
            "cells": Field(Coding.SYMBOLS, self.cells),
            "stash": Field(Coding.INDICES, self.stash),
            "stashed": Field(Coding.SYMBOLS, self.stashed),
        }
        return Payload(SKETCH, shape, dtype, fields)

    @property
    def peak(self) -> int:
        """Largest magnitude of all integers."""
        ends = [v.aminmax() for v in (self.cells, self.stashed) if v.numel()]
        return max((abs(int(v)) for pair in ends for v in pair), default=0)

    def in_units_of(self, exponent: int, values: Tensor) -> Tensor:
        """Express cells or stashed integers in smaller units; only 0 fits any."""
        return values << min(max(self.exponent - exponent, 0), 62)

    def recover(self, *, guess: bool = False) -> Recovered:
        """Peel, and add the stash; what cannot be peeled is 0, or estimated.

        Raises
        ------
        WireError
            If something is left in cells without entries.
        """
        if self.cells.numel() == self.numel:
            positions = torch.arange(self.numel, device=self.cells.device)
            unit = shift(self.cells.to(torch.float64), self.exponent)
            return Recovered(positions, unit, positions[:0], 0)
        edges = hashed(self.support, self.cells.numel(), self.seed)
        peeling = peel(edges, self.cells)
        if bool(((peeling.rest != 0) & (peeling.load == 0)).any()):
            msg = (
                "sketch: the cells hold more than the entries that are announced; the "
                "message is damaged or its sender is at fault"
            )
            raise WireError(msg)
        values = peeling.values
        if guess:
            values[peeling.left] = estimates(edges.rows(peeling.left), peeling.rest)
        whole = torch.cat((values, self.stashed))
        return Recovered(
            torch.cat((self.support, self.stash)),
            shift(whole.to(torch.float64), self.exponent),
            self.support[peeling.left],
            peeling.rounds,
        )


def total(payloads: Sequence[Payload]) -> Sum:
    """Sum messages in the integers, on the finest of their scales.

    Raises
    ------
    WireError
        If seeds or numbers of cells differ, or the sum may not fit 64 bits.
    """
    parts = [Sum.read(payload) for payload in payloads]
    first = parts[0]
    for i, part in enumerate(parts):
        found = part.seed, part.cells.numel()
        if found != (first.seed, first.cells.numel()):
            msg = (
                f"add: payload 0 has seed {first.seed} and {first.cells.numel()} "
                f"cells, payload {i} seed {found[0]} and {found[1]} cells; all of a "
                "sum must be made with the same settings"
            )
            raise WireError(msg)
    peaks = [part.peak for part in parts]
    scales = [part.exponent for part, peak in zip(parts, peaks, strict=True) if peak]
    finest = min(scales, default=0)
    reaches = [
        peak << max(part.exponent - finest, 0)
        for part, peak in zip(parts, peaks, strict=True)
    ]
    if sum(reaches) >= 1 << 63:
        widest = reaches.index(max(reaches))
        msg = (
            f"add: payload {widest} reaches 2^{peaks[widest].bit_length()} units of "
            f"2^{parts[widest].exponent}, which 64 bits cannot hold beside units of "
            f"2^{finest}; its sender is at fault, leave it out"
        )
        raise WireError(msg)
    there = first.cells.device
    cells = torch.zeros_like(first.cells)
    held = torch.zeros(first.numel, dtype=torch.bool, device=there)
    for part in parts:
        cells += part.in_units_of(finest, part.cells).to(there)
        held[part.support.to(there)] = True
    moved = [part.in_units_of(finest, part.stashed).to(there) for part in parts]
    beside = torch.cat([part.stash.to(there) for part in parts])
    stash, place = torch.unique(beside, return_inverse=True)
    stashed = torch.zeros_like(stash).index_add_(0, place, torch.cat(moved))
    support = held.nonzero().reshape(-1)
    return Sum(first.numel, first.seed, finest, support, cells, stash, stashed)
