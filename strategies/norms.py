"""Updates that are far too large to be true."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fl_lowrank.errors import ProtocolError, SettingError

#: No update of one example is so long; sums of such ones are still finite in float32.
_IMPOSSIBLE = 1e18
_NUM_REMEMBERED = 1000


@dataclass
class NormLimit:
    """Refuses updates whose norm is far above the median of the last ones.

    First messages of a memory are compared with each other: those of feedbacks that
    send distances become much shorter afterwards. Norms are per example, in the
    units of the memory.

    Parameters
    ----------
    factor : float, optional
        So many medians are too much; without it only what is absurd by itself.
    text : str
        Says what is compared and how large it is, for errors.
    """

    factor: float | None
    text: str = "the norm of its update is {:.3g} for each example"
    _first: deque[float] = field(default_factory=lambda: deque(maxlen=_NUM_REMEMBERED))
    _later: deque[float] = field(default_factory=lambda: deque(maxlen=_NUM_REMEMBERED))

    def __post_init__(self) -> None:
        if self.factor is not None and not self.factor > 1.0:
            msg = f"Compressed: expected max_norm above 1, found {self.factor}"
            raise SettingError(msg)

    @property
    def knows_nothing(self) -> bool:
        """Whether there is nothing yet to compare with."""
        return not self._first and not self._later

    def note(self, norm: float, *, first: bool = False) -> None:
        """Remember the norm of an update that may be compared with."""
        (self._first if first else self._later).append(norm)

    def check(
        self, norm: float, *, first: bool = False, otherwise: float = 0.0
    ) -> None:
        """Refuse an update that is too long, and remember it if it is not.

        Where the median is 0, ``otherwise`` stands for it.

        Raises
        ------
        ProtocolError
            If it is.
        """
        known = (self._first if first else self._later) or self._first or self._later
        usual = (median(known) if known else math.inf) or otherwise
        most = _IMPOSSIBLE
        if self.factor is not None and usual > 0.0:
            most = min(most, self.factor * usual)
        if not norm <= most:
            msg = (
                f"{self.text.format(norm)}, the median of the last ones {usual:.3g}; "
                f"more than {most:.3g} is left out"
            )
            raise ProtocolError(msg)
        self.note(norm, first=first)


class Sent:
    """Arrays that travel exactly, as clients were sent them.

    Parameters
    ----------
    entries : Mapping
        By name; flat, in row-major order.

    Attributes
    ----------
    norms : dict
        Joint norm of real numbers (True) and of integers (False).
    """

    def __init__(self, entries: Mapping[str, NDArray[Any]]) -> None:
        self._entries = entries
        self.norms = _norms((_is_real(v), v) for v in entries.values())

    def distances(self, found: Mapping[str, Tensor]) -> dict[bool, float]:
        """Give the norms of the change to what came back."""
        return _norms(
            (_is_real(old), np.subtract(new, old, dtype=np.float64))
            for old, new in (
                (self._entries[name], tensor.numpy().reshape(-1))
                for name, tensor in found.items()
            )
        )


@dataclass
class ExactLimit:
    """Does the same with the distances of exact arrays to those that were sent.

    Integers are counts, and far larger than real numbers, so they are judged alone.
    """

    factor: float | None
    _limits: dict[bool, NormLimit] = field(init=False)

    def __post_init__(self) -> None:
        text = "the change of its exact {} has a norm of {{:.3g}}"
        self._limits = {
            True: NormLimit(self.factor, text.format("real numbers")),
            False: NormLimit(self.factor, text.format("integers")),
        }

    def note(self, sent: Sent, found: Mapping[str, Tensor]) -> None:
        """Remember distances that may be compared with."""
        for real, distance in sent.distances(found).items():
            self._limits[real].note(distance)

    def check(self, sent: Sent, found: Mapping[str, Tensor]) -> None:
        """Refuse what is too far away, and remember distances that are not.

        Where most have changed nothing, a change is compared with what was sent.

        Raises
        ------
        ProtocolError
            If something is.
        """
        for real, distance in sent.distances(found).items():
            self._limits[real].check(distance, otherwise=sent.norms[real])


def _is_real(array: NDArray[Any]) -> bool:
    return array.dtype.kind == "f"


def _norms(arrays: Iterable[tuple[bool, NDArray[Any]]]) -> dict[bool, float]:
    """Give the joint norm of those that are real, and that of the others."""
    found: dict[bool, float] = {}
    with np.errstate(over="ignore"):  # infinite, which is too far
        for real, array in arrays:
            norm = float(np.linalg.norm(array.astype(np.float64, copy=False)))
            found[real] = math.hypot(found.get(real, 0.0), norm)
    return found
