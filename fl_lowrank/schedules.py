"""Settings that change from round to round: pure functions of the round.

==============================================  ====================================
``linear(start, end, rounds=n)``                equal steps from one round to the next
``cosine(start, end, rounds=n)``                half a cosine: slow, fast, slow
``exponential(start, end, rounds=n)``           equal factors
``steps(value, at=r, then=other)``              ``other`` from round r on
==============================================  ====================================

The first three give ``start`` in round ``begin`` (1 if left out) and before, and
``end`` n - 1 rounds later and ever after. ``steps`` takes any two settings: numbers,
texts, compressors, or schedules, which count the same rounds as the one around them.

Cosine: I. Loshchilov, F. Hutter, "SGDR: Stochastic Gradient Descent with Warm
Restarts", ICLR 2017, arXiv 1608.03983, equation 5, without restarts. Exponential: a
sparsity that changes by a factor each epoch warms up the training in Y. Lin, S. Han,
H. Mao, Y. Wang, W. J. Dally, "Deep Gradient Compression", ICLR 2018, arXiv 1712.01887,
section 3.4.
"""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from dataclasses import MISSING, dataclass, field, fields
from typing import ClassVar

from .errors import SettingError
from .types import format_setting

#: Rounds are counted up to here.
MAX_ROUND = 1 << 31
#: So many rounds of a ramp stand for all of them when a schedule is checked.
_SAMPLES = 16
_DIGITS = 12  # of numbers between the ends: 0.25 rather than 0.24999999999999997


class Schedule(ABC):
    """A setting as a function of the round; subclasses are frozen dataclasses."""

    name: ClassVar[str]

    @abstractmethod
    def of(self, round_: int) -> object:
        """Give the setting in a round: a value, or another schedule."""

    @abstractmethod
    def turns(self) -> set[int]:
        """Give the rounds that tell what it will be: ends, jumps, some between."""

    def parts(self) -> tuple[object, ...]:
        """Give what it chooses from, where a schedule may stand too."""
        return ()

    def __str__(self) -> str:
        given = []
        for f in fields(self):  # type: ignore[arg-type]  # subclasses are dataclasses
            value = getattr(self, f.name)
            if f.default is MISSING or value != f.default:
                text = format_setting(value)
                given.append(f"{f.name}={text}" if f.kw_only else text)
        return f"{self.name}({', '.join(given)})"


@dataclass(frozen=True)
class Ramp(Schedule):
    """From one number to another in so many rounds.

    Parameters
    ----------
    start, end : int or float
        The first number and the last.
    rounds : int
        Rounds from the first to the last, both counted; at least 2.
    begin : int
        The round of the first number.

    Raises
    ------
    SettingError
        If a number is not finite, or the rounds are no such numbers.
    """

    start: float
    end: float
    rounds: int = field(kw_only=True)
    begin: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        for value in (self.start, self.end):
            _check_number(self.name, value)
        _check_round(self.name, "rounds", self.rounds, least=2)
        _check_round(self.name, "begin", self.begin, least=1)

    def of(self, round_: int) -> float:
        """Give the number of a round; between the ends it is a float."""
        done = round_ - self.begin
        if done <= 0:
            return self.start
        if done >= self.rounds - 1:
            return self.end
        value = self._between(done / (self.rounds - 1))
        value = float(f"{value:.{_DIGITS}g}")
        return min(max(value, min(self.start, self.end)), max(self.start, self.end))

    @abstractmethod
    def _between(self, t: float) -> float:
        """Give the number at t in (0, 1)."""

    def turns(self) -> set[int]:
        """Give both ends and some rounds between them."""
        gaps = min(self.rounds - 1, _SAMPLES)
        return {self.begin + i * (self.rounds - 1) // gaps for i in range(gaps + 1)}


@dataclass(frozen=True)
class Linear(Ramp):
    """Equal steps from one round to the next; see `Ramp`."""

    name: ClassVar[str] = "linear"

    def _between(self, t: float) -> float:
        return (1.0 - t) * self.start + t * self.end


@dataclass(frozen=True)
class Cosine(Ramp):
    """Half a cosine between the ends; see `Ramp`."""

    name: ClassVar[str] = "cosine"

    def _between(self, t: float) -> float:
        left = 0.5 * (1.0 + math.cos(math.pi * t))
        return left * self.start + (1.0 - left) * self.end


@dataclass(frozen=True)
class Exponential(Ramp):
    """Equal factors from one round to the next; see `Ramp`. Both ends are positive."""

    name: ClassVar[str] = "exponential"

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.start, self.end) <= 0:
            msg = (
                f"{self.name}: expected both ends above 0, found {self.start} and "
                f"{self.end}; use linear or cosine"
            )
            raise SettingError(msg)

    def _between(self, t: float) -> float:
        return math.exp((1.0 - t) * math.log(self.start) + t * math.log(self.end))


@dataclass(frozen=True)
class Steps(Schedule):
    """One setting, and another from some round on.

    Parameters
    ----------
    value, then : object
        Any settings, schedules included.
    at : int
        The first round of ``then``.

    Raises
    ------
    SettingError
        If the round is below 2, so that ``value`` would never be used.
    """

    name: ClassVar[str] = "steps"

    value: object
    at: int = field(kw_only=True)
    then: object = field(kw_only=True)

    def __post_init__(self) -> None:
        _check_round(self.name, "at", self.at, least=2)

    def of(self, round_: int) -> object:
        """Give the setting of a round."""
        return self.value if round_ < self.at else self.then

    def turns(self) -> set[int]:
        """Give the rounds before and after the jump."""
        return {self.at - 1, self.at}

    def parts(self) -> tuple[object, ...]:
        """Give both settings."""
        return self.value, self.then


def _check_number(who: str, value: float) -> None:
    ok = isinstance(value, int | float) and not isinstance(value, bool)
    # An integer beyond the floats is not finite here either.
    if not ok or not abs(value) <= sys.float_info.max:
        msg = f"{who}: expected finite numbers for start and end, found {value}"
        raise SettingError(msg)


def _check_round(who: str, what: str, value: object, *, least: int) -> None:
    if type(value) is not int or not least <= value <= MAX_ROUND:
        msg = f"{who}: expected {what} of {least} to {MAX_ROUND}, found {value}"
        raise SettingError(msg)


#: Every schedule that a text may name.
SCHEDULES: dict[str, type[Schedule]] = {
    cls.name: cls for cls in (Linear, Cosine, Exponential, Steps)
}
