"""Text <-> compressor, and rules that choose a compressor by a tensor's name.

::

    chain  := call (">>" call)*
    call   := name "(" [setting ("," setting)*] ")"
    setting:= name "=" value
    value  := number | "true" | "false" | quoted text | chain
    rules  := pattern ":" chain (";" pattern ":" chain)*

Texts arrive from the network, so they are parsed and never evaluated, and their
length and depth are bounded.
"""

from __future__ import annotations

import re
from dataclasses import MISSING, dataclass, fields
from typing import NoReturn

from .compressors import COMPRESSORS, Then
from .errors import SettingError, SpecError
from .types import Compressor
from .wire import MAX_DEPTH

MAX_LENGTH = 4096
_TOKEN = re.compile(
    r"\s*(?:(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"
    r"|(?P<name>[A-Za-z_]\w*)|\"(?P<text>[^\"]*)\"|(?P<sign>>>|[(),=]))",
    re.ASCII,
)


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
        If the text is not understood; `SettingError` if a setting is out of range.

    Examples
    --------
    >>> str(parse("topk(fraction=0.01)>>natural()"))
    'topk(fraction=0.01) >> natural()'
    """
    parser = _Parser(text)
    result = parser.chain(0)
    parser.end()
    return result


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
    _bounded(text)
    if ":" not in text:
        return parse(text)
    rules = []
    for part in text.split(";"):
        pattern, colon, body = part.partition(":")
        if not colon or not pattern.strip():
            msg = f"rules: expected 'pattern: compressor', found {part.strip()!r}"
            raise SpecError(msg)
        rules.append(Rule(pattern.strip(), parse(body)))
    return rules


def _bounded(text: str) -> None:
    if len(text) > MAX_LENGTH:
        msg = f"spec: a text of {len(text)} characters, at most {MAX_LENGTH} are read"
        raise SpecError(msg)


class _Parser:
    """One pass over the tokens."""

    def __init__(self, text: str) -> None:
        _bounded(text)
        self.text = text
        self.tokens: list[tuple[str, str]] = []
        pos = 0
        while text[pos:].strip():
            match = _TOKEN.match(text, pos)
            if match is None or match.lastgroup is None:
                self.fail(f"unexpected {text[pos:].strip()[:10]!r}")
            self.tokens.append((match.lastgroup, match[match.lastgroup]))
            pos = match.end()
        self.at = 0

    def fail(self, what: str) -> NoReturn:
        msg = (
            f"spec: cannot read {self.text[:200]!r}: {what}; write for example "
            "'topk(fraction=0.01) >> natural()'"
        )
        raise SpecError(msg)

    def peek(self) -> tuple[str, str]:
        return self.tokens[self.at] if self.at < len(self.tokens) else ("end", "")

    def take(self, group: str, token: str | None = None) -> str:
        found = self.peek()
        if found[0] != group or (token is not None and found[1] != token):
            self.fail(f"expected {token or group}, found {found[1] or 'the end'}")
        self.at += 1
        return found[1]

    def accept(self, token: str) -> bool:
        if self.peek() == ("sign", token):
            self.at += 1
            return True
        return False

    def end(self) -> None:
        if self.at < len(self.tokens):
            self.fail(f"expected the end, found {self.peek()[1]}")

    def chain(self, depth: int) -> Compressor:
        if depth > MAX_DEPTH:
            self.fail(f"nested deeper than {MAX_DEPTH}")
        first = self.call(depth)
        return Then(first, self.chain(depth + 1)) if self.accept(">>") else first

    def call(self, depth: int) -> Compressor:
        name = self.take("name")
        settings: dict[str, object] = {}
        self.take("sign", "(")
        while not self.accept(")"):
            if settings:
                self.take("sign", ",")
            key = self.take("name")
            self.take("sign", "=")
            if key in settings:
                self.fail(f"{key} is given twice")
            settings[key] = self.value(depth)
        return _build(name, settings)

    def value(self, depth: int) -> object:
        group, token = self.peek()
        if group == "name" and token not in ("true", "false"):
            return self.chain(depth + 1)
        self.at += 1
        if group == "number":
            return int(token) if re.fullmatch(r"[-+]?\d+", token) else float(token)
        if group == "name":
            return token == "true"
        if group != "text":
            self.fail(f"expected a value, found {token or 'the end'}")
        return token


def _build(name: str, settings: dict[str, object]) -> Compressor:
    """Make the compressor, with every setting checked by name and type."""
    cls = COMPRESSORS.get("identity" if name == "exact" else name)
    if cls is None:
        msg = (
            f"spec: there is no compressor {name!r}; there are "
            f"{', '.join(sorted(COMPRESSORS))}"
        )
        raise SpecError(msg)
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]  # dataclasses
    for key, value in settings.items():
        if key not in known:
            have = ", ".join(known) or "none"
            msg = f"spec: {name} has no setting {key!r}; its settings: {have}"
            raise SpecError(msg)
        settings[key] = _typed(f"{name}({key})", str(known[key].type), value)
    missing = [
        key for key, f in known.items() if f.default is MISSING and key not in settings
    ]
    if missing:
        msg = f"spec: {name} needs {', '.join(missing)}"
        raise SpecError(msg)
    return cls(**settings)


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
