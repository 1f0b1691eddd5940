"""Text -> tree: what is written, before anybody asks what it means.

::

    chain   := call (">>" call)*
    call    := name "(" [setting ("," setting)*] ")"
    setting := name "=" value
    value   := number | "true" | "false" | quoted text | chain

A call of one of `schedules` may stand wherever a value or a compressor may, and its
first settings may stand without their names. Texts arrive from the network: their
length and depth are bounded.
"""

from __future__ import annotations

import re
from dataclasses import MISSING, Field, dataclass, fields
from typing import NoReturn

from .errors import SpecError
from .schedules import SCHEDULES, Schedule
from .types import format_setting
from .wire import MAX_DEPTH

MAX_LENGTH = 4096
_TOKEN = re.compile(
    r"\s*(?:(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"
    r"|(?P<name>[A-Za-z_]\w*)|\"(?P<text>[^\"]*)\"|(?P<sign>>>|[(),=]))",
    re.ASCII,
)


@dataclass(frozen=True)
class Call:
    """A name with its settings: numbers, texts, truth values and trees."""

    name: str
    settings: tuple[tuple[str, object], ...]

    def __str__(self) -> str:
        given = (f"{key}={format_setting(value)}" for key, value in self.settings)
        return f"{self.name}({', '.join(given)})"


@dataclass(frozen=True)
class Chain:
    """``first >> rest``."""

    first: object
    rest: object

    def __str__(self) -> str:
        return f"{self.first} >> {self.rest}"


def read(text: str) -> object:
    """Give the tree of a chain: a `Call`, a `Chain` or a `Schedule`.

    Raises
    ------
    SpecError
        If the text is not one chain; `SettingError` if there is no such schedule.
    """
    parser = _Parser(text)
    tree = parser.chain(0)
    parser.end()
    return tree


def check_length(text: str) -> None:
    """Refuse long texts.

    Raises
    ------
    SpecError
        If it has more than `MAX_LENGTH` characters.
    """
    if len(text) > MAX_LENGTH:
        msg = f"spec: a text of {len(text)} characters, at most {MAX_LENGTH} are read"
        raise SpecError(msg)


def check_settings(
    cls: type, name: str, given: dict[str, object]
) -> dict[str, Field[object]]:
    """Give the fields of a dataclass by name, if these settings can be its own.

    Raises
    ------
    SpecError
        If one is unknown or missing.
    """
    known = names_of(cls)
    for key in given:
        if key not in known:
            have = ", ".join(known) or "none"
            msg = f"spec: {name} has no setting {key!r}; its settings: {have}"
            raise SpecError(msg)
    missing = [
        key for key, f in known.items() if f.default is MISSING and key not in given
    ]
    if missing:
        msg = f"spec: {name} needs {', '.join(missing)}"
        raise SpecError(msg)
    return known


def names_of(cls: type) -> dict[str, Field[object]]:
    """Give the fields of a dataclass by name."""
    return {f.name: f for f in fields(cls)}


class _Parser:
    """One pass over the tokens."""

    def __init__(self, text: str) -> None:
        check_length(text)
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

    def chain(self, depth: int) -> object:
        if depth > MAX_DEPTH:
            self.fail(f"nested deeper than {MAX_DEPTH}")
        first = self.call(depth)
        return Chain(first, self.chain(depth + 1)) if self.accept(">>") else first

    def call(self, depth: int) -> Call | Schedule:
        name = self.take("name")
        schedule = SCHEDULES.get(name)
        # In a schedule, settings without names stand in the order of its fields.
        positions = list(names_of(schedule)) if schedule else []
        settings: dict[str, object] = {}
        self.take("sign", "(")
        while not self.accept(")"):
            if settings:
                self.take("sign", ",")
            named = self.tokens[self.at + 1 : self.at + 2] == [("sign", "=")]
            if len(settings) < len(positions) and not named:
                key = positions[len(settings)]
            else:
                key = self.take("name")
                self.take("sign", "=")
            if key in settings:
                self.fail(f"{key} is given twice")
            settings[key] = self.value(depth)
        if schedule is None:
            return Call(name, tuple(settings.items()))
        check_settings(schedule, name, settings)
        return schedule(**settings)

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
