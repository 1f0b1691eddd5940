"""What is remembered around a compressor; both ends of each method in one place.

A memory is a ``dict[str, Tensor]`` in the units of the update, and a value: nothing
here changes its arguments. A feedback is three functions of the sender, and two of the
receiver.

========  =========================  =========================  ==========  ==========
name      prepare(mem, u) sends      settle(mem, c, applied)    share(c)    estimate
========  =========================  =========================  ==========  ==========
plain     C(u)                       none                       none        mean c
ef        C(mem + u)                 mem + u - c                none        mean c
ef21      C(u - mem)                 mem + c                    c           S / N
ef21sgdm  C(v - mem), v mean of u    mem + c                    c           S / N
diana     C(u - mem)                 mem + a c                  a c         S/N + mean
dasha     C(u - h - a (mem - h))     mem + c, h = u             c           S / N
========  =========================  =========================  ==========  ==========

``ef(precision=bfloat16)`` stores its error in two bytes an entry.

``c`` is what the other end decodes from the message of the last `Feedback.prepare`. It
is settled when the sender learns whether that message was applied, never before; a
lost message leaves mem and h as they were. ``share`` is what the receiver adds to its
running sum S of all memories.
"""

from __future__ import annotations

import re
from dataclasses import fields

from ..errors import SettingError
from ..schedules import SCHEDULES
from .base import Feedback, Tensors, check_pair
from .ef21 import EF21, EF21SGDM
from .error import EF, Plain
from .variance import Dasha, Diana

#: Every feedback that a text may name.
FEEDBACKS: dict[str, type[Feedback]] = {
    cls.name: cls for cls in (Plain, EF, EF21, EF21SGDM, Diana, Dasha)
}

__all__ = [
    "EF",
    "EF21",
    "EF21SGDM",
    "FEEDBACKS",
    "Dasha",
    "Diana",
    "Feedback",
    "Plain",
    "Tensors",
    "check_pair",
    "named",
]

_MAX_LENGTH = 200
_TEXT = re.compile(r"\s*(\w+)\s*(?:\(([^()]*)\)\s*)?", re.ASCII)
_SETTING = re.compile(r"\s*(\w+)\s*=\s*([\w.+-]+)\s*", re.ASCII)


def named(text: str) -> Feedback:
    """Give the feedback that a text such as ``diana(rate=0.1)`` describes.

    Raises
    ------
    SettingError
        If there is none, or a setting is unknown or out of range.

    Examples
    --------
    >>> str(named("ef21sgdm(momentum=0.1)"))
    'ef21sgdm(momentum=0.1)'
    """
    if any(f"{name}(" in text for name in SCHEDULES):
        msg = (
            f"feedback: expected numbers in {text[:80]!r}, found a schedule; memories "
            "at both ends are made for one setting, give the uplink a schedule instead"
        )
        raise SettingError(msg)
    match = _TEXT.fullmatch(text[:_MAX_LENGTH])
    if match is None or match[1] not in FEEDBACKS:
        msg = f"feedback: there is no {text[:40]!r}; there are {', '.join(FEEDBACKS)}"
        raise SettingError(msg)
    cls = FEEDBACKS[match[1]]
    known = [f.name for f in fields(cls)]  # type: ignore[arg-type]  # dataclasses
    settings: dict[str, float | str] = {}
    for part in filter(str.strip, (match[2] or "").split(",")):
        found = _SETTING.fullmatch(part)
        if found is None or found[1] not in known or found[1] in settings:
            msg = (
                f"feedback: {cls.name} does not take {part.strip()!r}; its settings: "
                f"{', '.join(known) or 'none'}, each once, as name=value"
            )
            raise SettingError(msg)
        is_word = found[1] in cls.words
        settings[found[1]] = found[2] if is_word else _number(cls.name, found[2])
    return cls(**settings)


def _number(who: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        msg = f"feedback: {who} takes numbers, found {text!r}"
        raise SettingError(msg) from None
