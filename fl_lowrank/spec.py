"""Text <-> compressor, and rules that choose a compressor by a tensor's name.

::

    rules := pattern ":" chain (";" pattern ":" chain)*

with chains as in `syntax`. Texts arrive from the network, so they are parsed and never
evaluated. What clients are sent has no schedules; those are for the server,
see `scheduled`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

from .compressors import COMPRESSORS, Then
from .errors import SettingError, SpecError
from .schedules import Schedule
from .syntax import Call, Chain, check_length, check_settings, read
from .types import Compressor

#: Each of them is held against each name of a model.
MAX_RULES = 256
#: Patterns and what is written for them; the pattern of a bare compressor is "".
Trees: TypeAlias = tuple[tuple[str, object], ...]


@dataclass(frozen=True)
class Rule:
    """Tensors whose name fits ``pattern`` (as in a shell) use ``compressor``."""

    pattern: str
    compressor: Compressor

    def __str__(self) -> str:
        return f"{self.pattern}: {self.compressor}"


def parse(text: str) -> Compressor:
    """Build the compressor that a text describes; ``str`` gives the text back.

    Raises
    ------
    SpecError
        If the text is not understood, or holds a schedule; `SettingError` if a
        setting is out of range.

    Examples
    --------
    >>> str(parse("topk(fraction=0.01)>>natural()"))
    'topk(fraction=0.01) >> natural()'
    """
    return _compressor(read(text), None)


def parse_rules(text: str) -> list[Rule] | Compressor:
    """Read ``pattern: compressor; ...``, or a bare compressor text.

    ``exact()`` is another name for ``identity()`` in rules.

    Examples
    --------
    >>> for rule in parse_rules("*.bias: f16(); *: topk(k=9)"):
    ...     print(rule.pattern, "->", rule.compressor)
    *.bias -> f16()
    * -> topk(k=9)
    """
    return built(trees_of(text), None)


def trees_of(text: str) -> Trees:
    """Split rules, and read what is written for each pattern.

    Raises
    ------
    SpecError
        If the text is not understood, or has more than `MAX_RULES` rules.
    """
    check_length(text)
    if ":" not in text:
        return (("", read(text)),)
    parts, trees = text.split(";"), []
    if len(parts) > MAX_RULES:
        msg = f"rules: expected at most {MAX_RULES}, found {len(parts)}; use wildcards"
        raise SpecError(msg)
    for part in parts:
        pattern, colon, body = part.partition(":")
        if not colon or not pattern.strip():
            msg = f"rules: expected 'pattern: compressor', found {part.strip()!r}"
            raise SpecError(msg)
        trees.append((pattern.strip(), read(body)))
    return tuple(trees)


def built(trees: Trees, round_: int | None) -> list[Rule] | Compressor:
    """Build what the trees mean in a round; without one they may hold no schedule."""
    if not trees[0][0]:
        return _compressor(trees[0][1], round_)
    return [Rule(pattern, _compressor(tree, round_)) for pattern, tree in trees]


def _compressor(tree: object, round_: int | None) -> Compressor:
    found = _value(tree, round_)
    if not isinstance(found, Compressor):
        msg = f"spec: expected a compressor, found {tree}"
        raise SpecError(msg)
    return found


def _value(tree: object, round_: int | None) -> object:
    """Give what a tree means in a round: a compressor, number, text or truth value."""
    if isinstance(tree, Schedule):
        if round_ is None:
            msg = (
                f"spec: {tree} is a schedule, a function of the round that only the "
                "server knows; give it to Compressed(uplink=...), or send "
                "parse_scheduled(text).at(round)"
            )
            raise SpecError(msg)
        return _value(tree.of(round_), round_)
    if isinstance(tree, Chain):
        return Then(_compressor(tree.first, round_), _compressor(tree.rest, round_))
    return _build(tree, round_) if isinstance(tree, Call) else tree


def _build(call: Call, round_: int | None) -> Compressor:
    """Make the compressor, with every setting checked by name and type."""
    name = call.name
    cls = COMPRESSORS.get("identity" if name == "exact" else name)
    if cls is None:
        msg = (
            f"spec: there is no compressor {name!r}; there are "
            f"{', '.join(sorted(COMPRESSORS))}"
        )
        raise SpecError(msg)
    known = check_settings(cls, name, dict(call.settings))
    settings = {}
    for key, tree in call.settings:
        value, options = _value(tree, round_), str(known[key].type)
        if isinstance(tree, Schedule) and type(value) is float:
            value = _rounded(value, options)
        settings[key] = _typed(f"{name}({key})", options, value)
    return cls(**settings)


def _rounded(value: float, annotation: str) -> float:
    """Give a schedule's number as a setting of this annotation takes it."""
    takes = [part.strip() for part in annotation.split("|")]
    return math.floor(value + 0.5) if "int" in takes and "float" not in takes else value


def _typed(what: str, annotation: str, value: object) -> object:
    """Fit a value to the annotation of its field."""
    options = [part.strip() for part in annotation.split("|")]
    if type(value) is int and "float" in options and "int" not in options:
        try:
            return float(value)
        except OverflowError:
            msg = f"{what}: the number is too large"
            raise SettingError(msg) from None
    names = {type(value).__name__}
    if isinstance(value, Compressor):
        names.add("Compressor")
    if not names & set(options):
        msg = f"spec: {what} takes {annotation}, found {value!r}"
        raise SpecError(msg)
    return value
