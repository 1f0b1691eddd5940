"""A byte budget over the tensors of a whole update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from .compressors import Budget
from .compressors.allocation.fit import Sender, Share, fit
from .compressors.allocation.magnitudes import squared_error
from .compressors.allocation.plan import parts_of
from .grouping import Group, joint_layout, layout_of
from .messages import Writer, naming, read_update
from .types import check_input


@dataclass(frozen=True)
class Spent:
    """A whole message, and the groups it was made of."""

    groups: list[Group]
    data: bytes


class _Spender(Sender[Spent]):
    """Makes whole messages of an update from shares of a budget.

    Parameters
    ----------
    update : Mapping[str, Tensor]
        All tensors.
    names : sequence of str
        Those that share the budget.
    others : sequence of Group
        What travels beside them.
    writer : Writer
        Of the update.
    """

    def __init__(
        self,
        update: Mapping[str, Tensor],
        names: Sequence[str],
        others: Sequence[Group],
        writer: Writer,
    ) -> None:
        self._update = update
        self._layout = layout_of(update)
        self._names = names
        self._others = others
        self._writer = writer

    def encode(self, shares: list[Share]) -> tuple[Spent, int]:
        """Write the message of these shares and of the other groups."""
        groups = list(self._others)
        for members, compressor in shares:
            own = tuple(self._names[i] for i in members)
            groups.append(Group(own, compressor, joint_layout(own, self._layout)))
        order = {name: i for i, name in enumerate(self._layout)}
        groups.sort(key=lambda group: order[group.names[0]])
        data = self._writer.write(groups)
        return Spent(groups, data), len(data)

    def error(self, message: Spent, exponent: int) -> float:
        """Give the squared error of what shares the budget."""
        decoded = read_update(message.data, self._layout)
        return sum(
            squared_error(decoded[name], self._update[name], exponent)
            for name in self._names
        )


def spend(
    budget: Budget,
    update: Mapping[str, Tensor],
    others: Sequence[Group],
    writer: Writer,
) -> Spent:
    """Find the message of at most ``budget.bytes`` bytes with the least squared error.

    Parameters
    ----------
    budget : Budget
        Of the whole message.
    update : Mapping[str, Tensor]
        All tensors.
    others : sequence of Group
        What travels beside those that share the budget, as it is.
    writer : Writer
        Of the update.

    Raises
    ------
    InputError
        If not even one entry fits, or a tensor is not finite; the message names it.
    """
    beside = {name for group in others for name in group.names}
    names = [name for name in update if name not in beside]
    for name in names:
        with naming(name):
            check_input("budget", update[name])
    parts = parts_of([update[name] for name in names], budget.method)
    return fit(parts, budget.bytes, _Spender(update, names, others, writer)).message
