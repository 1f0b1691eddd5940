"""Compressors and rules as functions of the round."""

from __future__ import annotations

from dataclasses import dataclass, field

from .errors import CompressionError
from .schedules import Schedule
from .spec import Trees, built, trees_of
from .syntax import Call, Chain, check_length
from .types import Compressor


def parse_scheduled(text: str) -> Scheduled:
    """Read a compressor or rules whose settings may be schedules.

    Raises
    ------
    SpecError
        If the text is not understood; `SettingError` if a setting is out of range in
        some round.

    Examples
    --------
    >>> scheduled = parse_scheduled("topk(fraction=linear(0.5, 0.1, rounds=9))")
    >>> scheduled.at(1), scheduled.at(5), scheduled.at(100)
    ('topk(fraction=0.5)', 'topk(fraction=0.3)', 'topk(fraction=0.1)')
    """
    return Scheduled(trees_of(text))


@dataclass(frozen=True)
class Scheduled:
    """Compressors or rules as functions of the round; for the server.

    ``str`` gives the text that `parse_scheduled` reads. All settings are checked in
    the first round, at all ends and jumps of schedules, and in some rounds between.

    Parameters
    ----------
    trees : tuple of (str, object)
        Patterns and what is written for them; the pattern of a bare compressor is "".

    Raises
    ------
    SettingError, SpecError
        If there is a round without valid settings; the message names the round.
    """

    trees: Trees
    #: Different texts of the first round, of the last, and of those that are checked.
    texts: tuple[str, ...] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        texts = dict.fromkeys(self.at(round_) for round_ in sorted(self._turns() | {1}))
        object.__setattr__(self, "texts", tuple(texts))

    def __str__(self) -> str:
        return "; ".join(f"{p}: {tree}" if p else str(tree) for p, tree in self.trees)

    def at(self, round_: int) -> str:
        """Give the text of a round, counted from the start of the training."""
        try:
            rules = built(self.trees, round_)
            parts = [rules] if isinstance(rules, Compressor) else rules
            text = "; ".join(map(str, parts))
            check_length(text)
        except CompressionError as error:
            if not self._turns():
                raise  # as in every other round
            msg = f"in round {round_}: {error}"
            raise type(error)(msg) from error
        return text

    def _turns(self) -> set[int]:
        return set[int]().union(*(_turns(tree) for _, tree in self.trees))


def _turns(tree: object) -> set[int]:
    """Give the rounds that tell what the schedules in a tree will be."""
    match tree:
        case Schedule():
            return tree.turns().union(*map(_turns, tree.parts()))
        case Chain():
            return _turns(tree.first) | _turns(tree.rest)
        case Call():
            return set[int]().union(*(_turns(value) for _, value in tree.settings))
    return set()
