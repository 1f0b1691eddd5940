"""A whole model's update <-> one byte string.

An update is an ordered ``dict[str, Tensor]``. Rules map names to compressors, the
first match wins. Small tensors of one rule travel as one vector if its compressor
treats entries alike, since each message body costs about ten bytes; all of them do
under `flat`, and those that `budget` joins.

`messages` says what the bytes are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from .compressors import F16, Budget, Identity
from .errors import SettingError, SpecError
from .framing import Buffer
from .grouping import Group, Layout, joint_layout, layout_of
from .messages import Writer, read_payloads, read_update
from .rng import Rng
from .spec import Rule, parse_rules
from .spending import spend
from .types import Compressor, Exact, Guarantee, Importance, State, weakest

#: Tensors of at most so many entries may be merged.
SMALL = 1024
#: A bare compressor leaves small tensors that are together at most this share of
#: the model to 16 bits: their bytes hardly count, and their loss would.
SMALL_SHARE = 0.01

__all__ = ["SMALL", "Group", "Layout", "ModelCodec", "layout_of", "read_payloads"]


class ModelCodec:
    """Encodes whole updates by rules.

    Parameters
    ----------
    spec : str or Compressor
        A compressor, its text, or rules (``"*.bias: f16(); *: topk(k=9)"``). A bare
        compressor gets the default rules: integers and booleans travel exactly,
        small tensors that are together at most 1% of the model at 16 bits (exactly,
        if the compressor is exact; within its bytes, if it is `Budget`), the rest by
        the compressor.

    Raises
    ------
    SpecError
        If rules hold more than one `Budget`, which is for the whole message.
    """

    def __init__(self, spec: str | Compressor) -> None:
        self.rules = parse_rules(spec) if isinstance(spec, str) else spec
        if sum(isinstance(compressor, Budget) for compressor in self.compressors) > 1:
            msg = (
                f"rules: expected at most one budget, found {self}; its bytes are "
                "those of the whole message, let one rule cover all that shares them"
            )
            raise SpecError(msg)

    def __str__(self) -> str:
        if isinstance(self.rules, Compressor):
            return str(self.rules)
        return "; ".join(map(str, self.rules))

    @property
    def compressors(self) -> list[Compressor]:
        """Those that the rules name."""
        if isinstance(self.rules, Compressor):
            return [self.rules]
        return [rule.compressor for rule in self.rules]

    def groups(self, layout: Layout) -> list[Group]:
        """Say what is encoded together and by what, in wire order.

        What `Budget` gets stands as one vector for each dtype; how it is cut depends on
        the update, see `fitted`.
        """
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
            Group(tuple(names), rules[assigned[names[0]]], joint_layout(names, layout))
            for names in order
        ]

    def _assign(self, layout: Layout) -> tuple[list[Compressor], dict[str, int]]:
        """Give the compressors, and for each name the index of the one to use."""
        if isinstance(self.rules, Compressor):
            exact = all(
                isinstance(self.rules.guarantee(t.shape), Exact)
                for t in layout.values()
            )
            whole = isinstance(self.rules, Budget)
            small = set() if whole else _small_names(layout)
            return [self.rules, Identity() if exact else F16(), Identity()], {
                name: int(name in small) if t.dtype.is_floating_point else 2
                for name, t in layout.items()
            }
        return self.compressors, {
            name: _first_match(name, self.rules) for name in layout
        }

    def guarantee(self, layout: Layout) -> Guarantee:
        """Give the worst guarantee over what is encoded together.

        That of the whole update: squared errors and variances add up. Of both unbiased
        and contractive parts nothing is known, unless the error of the latter is
        negligible, as with 16-bit floats.
        """
        groups = self.groups(layout)
        found = [g.compressor.guarantee(g.layout.shape) for g in groups]
        return weakest(found)

    def init(self, layout: Layout) -> State:
        """State of all compressors before the first update."""
        return {
            f"{group.names[0]}/{key}": value
            for group in self.groups(layout)
            for key, value in group.compressor.init(group.layout.shape).items()
        }

    def importance(self, layout: Layout) -> dict[str, Importance]:
        """Say which tensors need importance weights, and where the state holds them.

        Raises
        ------
        SettingError
            If a compressor that needs them is inside one that changes the entries.
        """
        found = {}
        for group in self.groups(layout):
            (first, *_), shape = group.names, group.layout.shape
            part = group.compressor.importance(shape)
            names = {key for key in group.compressor.init(shape) if _holds_weights(key)}
            if names != ({part.weights} if part else set()):
                msg = (
                    f"tensor {first!r}: importance weights of its entries are of no "
                    f"use inside {group.compressor}; use md_... itself, or on the "
                    "left of >>"
                )
                raise SettingError(msg)
            if part is not None:
                found[first] = part.inside(f"{first}/")
        return found

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
        _, data, after = self.fitted(update, state, rng)
        return data, after

    def fitted(
        self, update: Mapping[str, Tensor], state: State, rng: Rng
    ) -> tuple[list[Group], bytes, State]:
        """Do the same, and tell what was encoded together and by what in the end.

        Only a `Budget` is replaced, by what it has chosen for this update.
        """
        groups = self.groups(layout_of(update))
        writer = Writer(update, state, rng)
        others = [g for g in groups if not isinstance(g.compressor, Budget)]
        for group in groups:
            if isinstance(group.compressor, Budget):
                found = spend(group.compressor, update, others, writer)
                return found.groups, found.data, writer.states_of(others)
        return groups, writer.write(groups), writer.states_of(groups)

    @staticmethod
    def decode(data: Buffer, layout: Layout) -> dict[str, Tensor]:
        """Rebuild an update from its bytes; settings of the sender are not needed.

        Raises
        ------
        WireError
            If the bytes are not exactly one update of this layout.
        """
        return read_update(data, layout)


def _holds_weights(key: str) -> bool:
    """Whether this name in a state is that of importance weights, at any depth."""
    return key.rpartition(".")[2] == Importance().weights


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
